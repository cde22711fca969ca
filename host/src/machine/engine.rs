//! The WebAssembly engine: every option that wasmtime 48 has here, set explicitly, with the reason.
//!
//! What decides outcomes is part of the [fingerprint](Engine::fingerprint). Nodes with different
//! fingerprints may replicate together, but their limits may strike at different places.

use std::{num::NonZeroUsize, sync::Arc};

use wasmtime::{
    Config, Inlining, ModuleVersionStrategy, OptLevel, RegallocAlgorithm, Strategy, WasmBacktraceDetails, WasmFeatures,
};

use super::{error::Error, limits::Limits};

/// The wasmtime that the lock file pins; it exports only its major version. A test holds the two
/// together.
const WASMTIME_VERSION: &str = "48.0.8";

/// A compiler and runtime for machines. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    engine: wasmtime::Engine,
    limits: Limits,
    fingerprint: String,
}

impl Engine {
    /// An engine that holds machines to these limits.
    ///
    /// # Errors
    /// A limit out of its range, or a processor that wasmtime does not serve.
    pub fn new(limits: &Limits) -> Result<Self, Error> {
        limits.validate()?;
        let config = config(limits);
        let engine = wasmtime::Engine::new(&config).map_err(|error| Error::Engine(format!("{error:#}")))?;
        let fingerprint = fingerprint(&config, limits);
        Ok(Self(Arc::new(Inner { engine, limits: limits.clone(), fingerprint })))
    }

    /// What the outcomes of this engine depend on: wasmtime's version, the architecture, and a hash
    /// of options and limits. Equal strings: the same outcomes, limits included.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// What machines of this engine may use.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(super) fn inner(&self) -> &wasmtime::Engine {
        &self.0.engine
    }
}

/// What machines may be built of. Everything else is off, among it: threads and shared memory
/// (races), relaxed SIMD (answers that depend on the processor; its deterministic mode had wrong code
/// as late as June 2026, wasmtime #13702), gc, exceptions, stack switching and function references
/// (young, and each a source of limits of its own), memory64 (a limit above 4 GiB), component async
/// (a machine answers when it is called).
fn features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::CALL_INDIRECT_OVERLONG
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::BULK_MEMORY_OPT
        | WasmFeatures::SIMD
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::FLOATS
        // The adapters between the core modules of one component copy from memory to memory.
        | WasmFeatures::MULTI_MEMORY
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::COMPONENT_MODEL
}

fn config(limits: &Limits) -> Config {
    let mut config = Config::new();
    config
        // Inlining across functions would move where fuel is charged.
        .compiler_inlining(Inlining::No)
        // Calls are synchronous, on threads of their own: 1.4 µs saved on each (wasmtime #14280).
        .concurrency_support(false)
        // The one limit on time that is the same on every node.
        .consume_fuel(true)
        // For people who debug the compiler.
        .cranelift_debug_verifier(false)
        // The bits of a NaN depend on the processor otherwise.
        .cranelift_nan_canonicalization(true)
        // Compiled once, run for months. Also fixes how deep a stack reaches.
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_regalloc_algorithm(RegallocAlgorithm::Backtracking)
        // The adapters' own assertions, for those who debug wasmtime.
        .debug_adapter_modules(false)
        // DWARF for a native debugger.
        .debug_info(false)
        // Only so that a shutdown does not wait for a long call: nothing ticks, the epoch moves when
        // a worker stops, and stopping is never an outcome.
        .epoch_interruption(EPOCHS)
        // What names a trap's place in the node's log. Never part of an outcome.
        .generate_address_map(true)
        // Guards against bugs of the compiler only, for twice the address space.
        .guard_before_linear_memory(true)
        // Data segments are mapped, not copied: instances start faster and share pages.
        .memory_init_cow(true)
        .memory_guaranteed_dense_image_size(16 << 20)
        // 32-bit addresses reach nothing but the reservation and the guard, so no load or store needs
        // a check of its bounds.
        .memory_guard_size(32 << 20)
        .memory_may_move(false)
        // Address space, not memory: growth cannot fail for want of a place, which would be an
        // outcome of one node alone. Two instances a node are 8 GiB of 128 TiB.
        .memory_reservation(4 << 30)
        .memory_reservation_for_growth(0)
        .max_wasm_stack(limits.stack_bytes)
        // For profilers and debuggers that unwind through compiled code.
        .native_unwind_info(true)
        // Compiling is the longest part of a start.
        .parallel_compilation(true)
        .relaxed_simd_deterministic(true)
        .shared_memory(false)
        // Guard pages instead of checks.
        .signals_based_traps(true)
        .strategy(Strategy::Cranelift)
        .table_lazy_init(true)
        // Names and lines of the frames below a trap, for the node's log, if the component has them.
        .wasm_backtrace_details(WasmBacktraceDetails::Enable)
        .wasm_backtrace_max_frames(NonZeroUsize::new(20))
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(features(), true);
    // Compiled code is never taken from another wasmtime. This cannot fail for this strategy.
    let _ = config.module_version(ModuleVersionStrategy::WasmtimeVersion);
    config
}

/// See the option of that name.
const EPOCHS: bool = true;

fn fingerprint(config: &Config, limits: &Limits) -> String {
    // Read back from the configuration, so that an option that is added above cannot be forgotten.
    let options = format!(
        "{:?} fuel={} epochs={} nan={:?} opt={:?} regalloc={:?} inlining={:?} stack={} reservation={} growth={} \
         guard={} move={} cow={} lazy={} relaxed={} signals={}",
        config.get_wasm_features(),
        config.get_consume_fuel(),
        config.get_epoch_interruption(),
        config.get_cranelift_nan_canonicalization(),
        config.get_cranelift_opt_level(),
        config.get_cranelift_regalloc_algorithm(),
        config.get_compiler_inlining(),
        config.get_max_wasm_stack(),
        config.get_memory_reservation(),
        config.get_memory_reservation_for_growth(),
        config.get_memory_guard_size(),
        config.get_memory_may_move(),
        config.get_memory_init_cow(),
        config.get_table_lazy_init(),
        config.get_relaxed_simd_deterministic(),
        config.get_signals_based_traps(),
    );
    let outcomes = format!(
        "memory={} tables={} fuel={} stack={} response={}",
        limits.memory_bytes_max,
        limits.table_elements_max,
        limits.fuel_per_call,
        limits.stack_bytes,
        limits.response_bytes_max
    );
    let hash = blake3::hash(format!("{options}\n{outcomes}").as_bytes());
    format!("wasmtime-{WASMTIME_VERSION}/{}/{}", std::env::consts::ARCH, hex::encode(&hash.as_bytes()[..8]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn the_fingerprint_names_the_wasmtime_of_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        let pinned = format!("name = \"wasmtime\"\nversion = \"{WASMTIME_VERSION}\"\n");
        assert!(lock.contains(&pinned), "update WASMTIME_VERSION, and read wasmtime's notes on fuel");
    }

    #[test]
    fn the_fingerprint_depends_on_options_and_on_the_limits_that_decide_outcomes() {
        let limits = Limits::default();
        let fingerprint = |limits: &Limits| Engine::new(limits).unwrap().fingerprint().to_owned();
        assert_eq!(fingerprint(&limits), fingerprint(&limits));
        let less_fuel = Limits { fuel_per_call: limits.fuel_per_call - 1, ..limits.clone() };
        assert_ne!(fingerprint(&limits), fingerprint(&less_fuel));
        let more_stack = Limits { stack_bytes: limits.stack_bytes * 2, ..limits.clone() };
        assert_ne!(fingerprint(&limits), fingerprint(&more_stack));
        let smaller_queue = Limits { queue_bytes_max: limits.queue_bytes_max / 2, ..limits.clone() };
        assert_eq!(fingerprint(&limits), fingerprint(&smaller_queue));
    }

    #[test]
    fn a_limit_out_of_range_is_refused_by_name() {
        let limits = Limits { memory_bytes_max: 1, ..Limits::default() };
        assert!(Engine::new(&limits).err().unwrap().to_string().contains("memory_bytes_max"));
    }
}
