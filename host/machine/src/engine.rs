//! The WebAssembly engine. Every relevant option of wasmtime 48 is set explicitly, with its reason.
//!
//! Everything that decides outcomes is part of the [fingerprint](Engine::fingerprint). Nodes with
//! different fingerprints can replicate together, but their limits may take effect at different points.
//!
//! Code is compiled for the processor on which it runs, so the sizes of stack frames differ between
//! processors. Therefore the depth of recursion at which the stack limit takes effect differs too.
//! It is the only limit that is not portable. The fingerprint covers the target and its features,
//! so two nodes that may differ have different fingerprints.

use std::{
    fmt,
    hash::{Hash, Hasher},
    num::NonZeroUsize,
    sync::Arc,
};

use wasmtime::{
    Config, Inlining, ModuleVersionStrategy, OperatorCost, OptLevel, RegallocAlgorithm, Strategy,
    WasmBacktraceDetails, WasmFeatures, component::Component,
};

use super::{
    compiled::{self, Compiling},
    error::{Error, LoadError},
    limits::Limits,
    metrics::Metrics,
    wasi,
};
use conclave_types::ComponentId;

/// The version of wasmtime in the lock file. wasmtime exports only its major version, so a test
/// compares this constant with the lock file.
const WASMTIME_VERSION: &str = "48.0.8";

/// A compiler and runtime for state machines. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    engine: wasmtime::Engine,
    limits: Limits,
    fingerprint: String,
    code_name: String,
    metrics: Arc<Metrics>,
}

impl Engine {
    /// Creates an engine that enforces these limits.
    ///
    /// # Errors
    /// Fails if a limit is out of its range, or if wasmtime does not support the processor.
    pub fn new(limits: &Limits) -> Result<Self, Error> {
        Self::with_metrics(limits, Arc::default())
    }

    /// Does the same, and counts the components that are compiled or loaded.
    ///
    /// # Errors
    /// Fails as [`Engine::new`] does.
    pub fn with_metrics(limits: &Limits, metrics: Arc<Metrics>) -> Result<Self, Error> {
        limits.validate()?;
        Self::of(options(limits), limits, metrics)
    }

    /// Creates an engine that uses wasmtime's interpreter, Pulley, instead of machine code. It gives a
    /// second opinion on a state machine's answers and is some ten times slower. Nodes never use it.
    ///
    /// # Errors
    /// Fails as [`Engine::new`] does.
    pub fn interpreter(limits: &Limits) -> Result<Self, Error> {
        limits.validate()?;
        let mut options = options(limits);
        let o = &mut options;
        o.record.push_str("target=pulley64\n");
        o.config.target("pulley64").map_err(|error| Error::Engine(format!("{error:#}")))?;
        // An interpreter has no faulting loads to catch: it checks bounds itself.
        o.set("signals_based_traps", false, Config::signals_based_traps);
        o.set("memory_guard_size", 0, Config::memory_guard_size);
        Self::of(options, limits, Arc::default())
    }

    fn of(options: Options, limits: &Limits, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let engine = wasmtime::Engine::new(&options.config)
            .map_err(|error| Error::Engine(format!("{error:#}")))?;
        let fingerprint = fingerprint(&engine, &options.record, limits);
        let code_name = code_name(&engine, &options.record);
        let limits = limits.clone();
        Ok(Self(Arc::new(Inner { engine, limits, fingerprint, code_name, metrics })))
    }

    /// Returns a string of everything that decides this engine's outcomes: wasmtime's version, the
    /// architecture, and a hash. The hash covers the options, the limits, the behaviour of WASI,
    /// and the target and features of the processor for which code is compiled. Engines with equal
    /// strings give the same outcomes, limits included.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// Returns the limits of the state machines of this engine.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Returns whether the other engine is a clone of this one. Only then may their instances be mixed.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the name under which compiled code is kept, apart from the component's id. It covers
    /// less than the fingerprint: code does not depend on the fuel of a call.
    pub(super) fn code_name(&self) -> &str {
        &self.0.code_name
    }

    /// Compiles a component, or loads its kept code.
    pub(super) fn compile(
        &self,
        id: ComponentId,
        component: &[u8],
        how: Compiling<'_>,
    ) -> Result<Component, LoadError> {
        compiled::component(self.inner(), self.code_name(), (id, component), how, &self.0.metrics)
    }

    pub(super) fn inner(&self) -> &wasmtime::Engine {
        &self.0.engine
    }
}

/// The WebAssembly features that components may use. Everything else is off, for these reasons:
/// - Threads and shared memory: races.
/// - Relaxed SIMD: its results depend on the processor. Its deterministic mode generated wrong code
///   as late as June 2026 (wasmtime #13702).
/// - GC, exceptions, stack switching and function references: they are young, and each brings
///   limits of its own.
/// - memory64: a limit above 4 GiB.
/// - Component async: a state machine answers within the call.
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

/// A configuration, and a record of the options set in it.
struct Options {
    config: Config,
    record: String,
}

impl Options {
    /// Sets an option on which outcomes depend or may depend.
    fn set<V: fmt::Debug>(
        &mut self,
        name: &str,
        value: V,
        set: impl FnOnce(&mut Config, V) -> &mut Config,
    ) {
        self.record.push_str(&format!("{name}={value:?}\n"));
        set(&mut self.config, value);
    }
}

fn options(limits: &Limits) -> Options {
    let mut options = Options { config: Config::new(), record: String::new() };
    let o = &mut options;
    // Inlining across functions would change where fuel is charged.
    o.set("compiler_inlining", Inlining::No, Config::compiler_inlining);
    // Calls are synchronous, on dedicated threads. This saves 1.4 µs per call (wasmtime #14280).
    o.set("concurrency_support", false, Config::concurrency_support);
    // Fuel is the only limit on time that is the same on every node. Measured with
    // `tests/machine/measure.rs`: fuel takes some 12 % of a small entry's 2 µs, epochs at most 3 %.
    o.set("consume_fuel", true, Config::consume_fuel);
    // Without this, the bits of a NaN depend on the processor.
    o.set("cranelift_nan_canonicalization", true, Config::cranelift_nan_canonicalization);
    // Code is compiled once and runs for months. This option and the next also decide how deep a
    // stack reaches.
    o.set("cranelift_opt_level", OptLevel::Speed, Config::cranelift_opt_level);
    o.set(
        "cranelift_regalloc_algorithm",
        RegallocAlgorithm::Backtracking,
        Config::cranelift_regalloc_algorithm,
    );
    // Only lets a shutdown interrupt a long call. The epoch does not tick; it moves when a worker
    // stops, and an interruption is never an outcome.
    o.set("epoch_interruption", true, Config::epoch_interruption);
    o.set("max_wasm_stack", limits.stack_bytes, Config::max_wasm_stack);
    // A 32-bit address with its offset cannot reach beyond the reservation and the guard, so loads
    // and stores need no bounds check.
    o.set("memory_guard_size", 32 << 20, Config::memory_guard_size);
    o.set("memory_may_move", false, Config::memory_may_move);
    // Reserves address space, not memory. Growth cannot fail for lack of address space, which would
    // be an outcome of one node alone. Two instances per node are 8 GiB of 128 TiB.
    o.set("memory_reservation", 4 << 30, Config::memory_reservation);
    o.set("memory_reservation_for_growth", 0, Config::memory_reservation_for_growth);
    // The cost of each instruction. Fuel stands for time, so an instruction that takes longer than
    // a simple one costs more.
    o.set("operator_cost", operator_cost(), Config::operator_cost);
    o.set("relaxed_simd_deterministic", true, Config::relaxed_simd_deterministic);
    o.set("shared_memory", false, Config::shared_memory);
    // Guard pages instead of checks.
    o.set("signals_based_traps", true, Config::signals_based_traps);
    o.set("strategy", Strategy::Cranelift, Config::strategy);
    o.set("wasm_features", features(), |config, features| {
        config.wasm_features(WasmFeatures::all(), false).wasm_features(features, true)
    });
    local_options(&mut options.config);
    options
}

/// Sets the options on which no outcome depends.
fn local_options(config: &mut Config) {
    config
        // For debugging the compiler, or the adapters between core modules.
        .cranelift_debug_verifier(false)
        .debug_adapter_modules(false)
        // DWARF for a native debugger.
        .debug_info(false)
        // Gives the position of a trap in the node's log.
        .generate_address_map(true)
        // Guards against bugs of the compiler.
        .guard_before_linear_memory(true)
        // Data segments are mapped, not copied: instances start faster and share pages.
        .memory_guaranteed_dense_image_size(16 << 20)
        .memory_init_cow(true)
        // For profilers and debuggers that unwind through compiled code.
        .native_unwind_info(true)
        // Compiling is the longest part of a start.
        .parallel_compilation(true)
        .table_lazy_init(true)
        // Names and lines of the frames below a trap, for the node's log, if the component has them.
        .wasm_backtrace_details(WasmBacktraceDetails::Enable)
        .wasm_backtrace_max_frames(NonZeroUsize::new(20));
    // Compiled code of another wasmtime is never accepted. This call cannot fail for this strategy.
    let _ = config.module_version(ModuleVersionStrategy::WasmtimeVersion);
}

/// The fuel of each instruction. It is wasmtime's table, in which almost all instructions cost 1,
/// except for those that take longer than a nanosecond. Measured with `measure_fuel_of_operators`
/// in `tests/machine/measure.rs`.
fn operator_cost() -> OperatorCost {
    // Functions of the runtime take 15 to 60 ns, even if there is nothing to do.
    const RUNTIME_CALL: u8 = 50;
    // The same functions, but inlined where the length is known. Compilers use them for every
    // copy of a value.
    const COPY: u8 = 20;
    // Divisions and roots take 3 ns on new processors, and some times that on older ones.
    const DIVISION: u8 = 8;
    let mut cost = OperatorCost::new();
    cost.MemoryCopy = COPY;
    for call in [
        &mut cost.DataDrop,
        &mut cost.ElemDrop,
        &mut cost.MemoryFill,
        &mut cost.MemoryGrow,
        &mut cost.MemoryInit,
        &mut cost.RefFunc,
        &mut cost.TableCopy,
        &mut cost.TableFill,
        &mut cost.TableGrow,
        &mut cost.TableInit,
    ] {
        *call = RUNTIME_CALL;
    }
    for division in [
        &mut cost.I32DivS,
        &mut cost.I32DivU,
        &mut cost.I32RemS,
        &mut cost.I32RemU,
        &mut cost.I64DivS,
        &mut cost.I64DivU,
        &mut cost.I64RemS,
        &mut cost.I64RemU,
        &mut cost.F32Div,
        &mut cost.F32Sqrt,
        &mut cost.F64Div,
        &mut cost.F64Sqrt,
        &mut cost.F32x4Div,
        &mut cost.F32x4Sqrt,
        &mut cost.F64x2Div,
        &mut cost.F64x2Sqrt,
    ] {
        *division = DIVISION;
    }
    // The kernel clears 64 KiB for each page.
    cost.variable.memory_grow_per_page = u8::MAX;
    cost
}

/// Feeds the data that wasmtime hashes into BLAKE3.
struct Feed(blake3::Hasher);

impl Hasher for Feed {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// Returns a hash of everything on which compiled code depends: wasmtime's version, the target, the
/// processor features and the options.
fn code_name(engine: &wasmtime::Engine, options: &str) -> String {
    let mut feed = Feed(blake3::Hasher::new());
    feed.write(format!("{WASMTIME_VERSION}\n{options}").as_bytes());
    engine.precompile_compatibility_hash().hash(&mut feed);
    hex::encode(feed.finish().to_le_bytes())
}

fn fingerprint(engine: &wasmtime::Engine, options: &str, limits: &Limits) -> String {
    let outcomes = format!(
        "tables={} stack={} wasi={}",
        limits.table_elements_max,
        limits.stack_bytes,
        wasi::VERSION
    );
    let mut feed = Feed(blake3::Hasher::new());
    feed.write(format!("{options}{outcomes}").as_bytes());
    // The target and the processor features. The hash also covers options that are in the record as well.
    engine.precompile_compatibility_hash().hash(&mut feed);
    format!(
        "wasmtime-{WASMTIME_VERSION}/{}/{}",
        std::env::consts::ARCH,
        hex::encode(feed.finish().to_le_bytes())
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use conclave_types::limits::ClusterLimits;

    #[test]
    fn the_fingerprint_names_the_wasmtime_of_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        let pinned = format!("name = \"wasmtime\"\nversion = \"{WASMTIME_VERSION}\"\n");
        assert!(
            lock.contains(&pinned),
            "update WASMTIME_VERSION, and read wasmtime's notes on fuel"
        );
    }

    #[test]
    fn the_fingerprint_depends_on_options_and_on_the_constant_limits_that_decide_outcomes() {
        let limits = Limits::default();
        let fingerprint = |limits: &Limits| Engine::new(limits).unwrap().fingerprint().to_owned();
        assert_eq!(fingerprint(&limits), fingerprint(&limits));
        let more_stack = Limits { stack_bytes: limits.stack_bytes * 2, ..limits.clone() };
        assert_ne!(fingerprint(&limits), fingerprint(&more_stack));
        let smaller_queue =
            Limits { queue_bytes_max: limits.queue_bytes_max / 2, ..limits.clone() };
        assert_eq!(fingerprint(&limits), fingerprint(&smaller_queue));
        // These limits change through the log, so they are the same on all nodes.
        let less_fuel = ClusterLimits { fuel_per_call: 5_000_000, ..limits.cluster };
        let less_fuel = Limits { cluster: less_fuel, ..limits.clone() };
        assert_eq!(fingerprint(&limits), fingerprint(&less_fuel));
        let code_name = |limits: &Limits| Engine::new(limits).unwrap().code_name().to_owned();
        assert_eq!(code_name(&limits), code_name(&less_fuel), "the code is the same");
    }

    /// Simulates two nodes on different processors.
    #[test]
    fn the_fingerprint_depends_on_the_processors_features() {
        let limits = Limits::default();
        let own = Engine::new(&limits).unwrap();
        let mut plain = options(&limits);
        // Naming a target turns off the detection of processor features.
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        plain.config.target(&target).unwrap();
        let plain = Engine::of(plain, &limits, Arc::default()).unwrap();
        assert_ne!(own.fingerprint(), plain.fingerprint());
        assert_ne!(own.code_name(), plain.code_name());
    }

    #[test]
    fn a_limit_out_of_range_is_refused_by_name() {
        let cluster = ClusterLimits { memory_bytes_max: 1, ..ClusterLimits::DEFAULT };
        let limits = Limits { cluster, ..Limits::default() };
        assert!(Engine::new(&limits).err().unwrap().to_string().contains("memory_bytes_max"));
    }
}
