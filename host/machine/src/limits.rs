//! The limits of a state machine, and the limiter that enforces its memory limit.
//!
//! Every limit is far above normal use. The heap of an instance that has applied the whole log has
//! another layout than that of an instance restored from a snapshot. So a call that comes close to
//! a limit might succeed in one and trap in the other. That is a divergence: within a node the
//! standby detects it, between nodes the consistency checks do.
//!
//! Therefore a state machine whose state grows should not rely on these limits. It should count
//! the size of its state, by a rule that depends only on the log, and reject calls at a fraction
//! of the memory. The key-value store does so at a quarter (`guest-kv/src/limits.rs`). For state
//! machines that do not count, calls that move the state get twice the memory of calls that change
//! it ([`ClusterLimits::state_call_memory_bytes_max`]).

use wasmtime::ResourceLimiter;

use super::error::{Error, FatalError};
use conclave_types::limits::{ClusterLimits, MEMORY_BYTES_MAX, SUBSCRIPTIONS_MAX};

const MIB: usize = 1 << 20;

/// The largest piece of a snapshot that crosses between host and guest. Set by the contract in `wit/`.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = MIB;

/// The size of one read from a snapshot. The key-value store returns that much in a millisecond,
/// during which queries and entries wait.
pub(super) const SNAPSHOT_READ_BYTES: usize = 256 << 10;

/// The divisor that gives the fuel of a piece from that of a call that moves the whole state. At
/// the default, a piece takes some seconds at most, during which queries wait.
const PIECE_FUEL_DIVISOR: u64 = 20;
/// The minimum fuel of a piece: interpreters need some hundred units per byte.
const PIECE_FUEL_LEAST: u64 = 1_000_000_000;

/// The maximum number of linear memories of one instance. Each reserves 4 GiB of addresses, and a
/// process has 128 TiB. A state machine has one memory, and another for each language runtime of
/// which it is composed.
const MEMORIES_MAX: usize = 16;
/// The maximum number of tables of one instance. The adapters between the core modules of a
/// component have one each.
const TABLES_MAX: usize = 256;
/// The maximum number of core instances of one component. A component in Python has some twenty,
/// and one for each native extension.
const INSTANCES_MAX: usize = 256;

/// The limits of a state machine. [`Limits::cluster`] changes through the log; the rest is constant
/// while a node runs. `table_elements_max` and `stack_bytes` decide outcomes and are part of the
/// engine's fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The limits before the first entry. An instance has the limits of the entry at which it stands.
    pub cluster: ClusterLimits,
    /// The maximum number of elements in one instance's tables. Default 1,000,000. A table entry is a
    /// function that may be called indirectly, and the largest programs have some tens of thousands.
    pub table_elements_max: usize,
    /// The stack of WebAssembly calls, in bytes. Default 1 MiB, at least 64 KiB, at most 64 MiB.
    /// Rust guests keep their large values on a separate stack in linear memory (also 1 MiB), so
    /// this stack holds only return addresses and spills.
    pub stack_bytes: usize,
    /// The maximum size in bytes of the entries that wait for the primary, and again of those that
    /// wait for the standby. Default 32 MiB, at least 1 MiB. The default holds some requests of the
    /// largest size, or one second of small ones.
    pub queue_bytes_max: usize,
    /// The maximum number of queries that wait for the standby. Default 4,096; more are
    /// rejected with `Busy`.
    pub queries_waiting_max: usize,
    /// The maximum number of concurrent subscriptions; more are rejected with
    /// `Busy`. A subscription whose reader is slow holds 64 KiB, or the events of one entry.
    pub subscriptions_max: usize,
    /// The maximum size of a component in bytes. Default 64 MiB: a component in Python has 18 MB,
    /// one in JavaScript 12 MB.
    pub component_bytes_max: usize,
    /// The number of lines that the state machine may write to the node's log in a burst. Default 100.
    pub log_lines_burst: u32,
    /// The sustained rate of log lines per second. Default 5: with 4 KiB per line, 1.8 GB per day.
    pub log_lines_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cluster: ClusterLimits::DEFAULT,
            table_elements_max: 1_000_000,
            stack_bytes: MIB,
            queue_bytes_max: 32 * MIB,
            queries_waiting_max: 4096,
            subscriptions_max: SUBSCRIPTIONS_MAX.default,
            component_bytes_max: 64 * MIB,
            log_lines_burst: 100,
            log_lines_per_second: 5,
        }
    }
}

impl Limits {
    /// Checks that every limit is in its range.
    pub(super) fn validate(&self) -> Result<(), Error> {
        let check = |name, value: u64, from: u64, to: u64, must| {
            if (from..=to).contains(&value) {
                Ok(())
            } else {
                Err(Error::Limit { name, value, must })
            }
        };
        let ClusterLimits {
            memory_bytes_max,
            fuel_per_call,
            fuel_per_query,
            fuel_per_state_call,
            response_bytes_max,
            event_bytes_max,
        } = self.cluster;
        check(
            "memory_bytes_max",
            memory_bytes_max as u64,
            1 << 20,
            MEMORY_BYTES_MAX.max as u64,
            "1 MiB to 4 GiB − 64 KiB",
        )?;
        check(
            "table_elements_max",
            self.table_elements_max as u64,
            1,
            100_000_000,
            "1 to 100,000,000",
        )?;
        // wasmtime counts fuel in a signed number.
        check("fuel_per_call", fuel_per_call, 1_000_000, 1 << 62, "10^6 to 2^62")?;
        check("fuel_per_query", fuel_per_query, 1_000_000, 1 << 62, "10^6 to 2^62")?;
        check("fuel_per_state_call", fuel_per_state_call, 1_000_000, 1 << 62, "10^6 to 2^62")?;
        check("stack_bytes", self.stack_bytes as u64, 64 << 10, 64 << 20, "64 KiB to 64 MiB")?;
        check(
            "response_bytes_max",
            response_bytes_max as u64,
            64 << 10,
            128 << 20,
            "64 KiB to 128 MiB",
        )?;
        check("event_bytes_max", event_bytes_max as u64, 64 << 10, 128 << 20, "64 KiB to 128 MiB")?;
        check("queue_bytes_max", self.queue_bytes_max as u64, 1 << 20, 4 << 30, "1 MiB to 4 GiB")?;
        check("queries_waiting_max", self.queries_waiting_max as u64, 1, 1 << 20, "1 to 2^20")?;
        check("subscriptions_max", self.subscriptions_max as u64, 1, 1 << 20, "1 to 2^20")?;
        check(
            "component_bytes_max",
            self.component_bytes_max as u64,
            1 << 10,
            1 << 30,
            "1 KiB to 1 GiB",
        )?;
        check("log_lines_burst", u64::from(self.log_lines_burst), 0, 1 << 20, "at most 2^20")?;
        check(
            "log_lines_per_second",
            u64::from(self.log_lines_per_second),
            0,
            1 << 20,
            "at most 2^20",
        )
    }

    /// Returns the number of bytes that one transfer from the guest may take: the largest answer
    /// with any number of events, or a piece of a snapshot. wasmtime counts 48 bytes per event,
    /// which [`EVENT_OVERHEAD_BYTES`](defaults::EVENT_OVERHEAD_BYTES) covers.
    pub(super) fn transfer_bytes_max(&self) -> usize {
        (self.cluster.response_bytes_max + self.cluster.event_bytes_max).max(4 * MIB) + 64 * 1024
    }

    /// Returns the transfer limit of a query. An answer between the two limits only fails the
    /// query. A larger one costs the instance, because the host's memory is bounded too.
    pub(super) fn query_transfer_bytes_max(&self) -> usize {
        (16 * self.cluster.response_bytes_max).min(256 * MIB).max(self.transfer_bytes_max())
    }

    /// Returns the fuel of one call that moves a piece of a state, `read` or `write`. A piece has
    /// at most 1 MiB.
    pub(super) fn fuel_per_piece(&self) -> u64 {
        let whole = self.cluster.fuel_per_state_call;
        (whole / PIECE_FUEL_DIVISOR).max(PIECE_FUEL_LEAST).min(whole)
    }

    /// Returns the message for a component with too many parts.
    pub(super) fn too_many_parts() -> String {
        format!(
            "it has more than {MEMORIES_MAX} memories, {TABLES_MAX} tables or {INSTANCES_MAX} core instances"
        )
    }

    /// Returns the stack size of a thread that runs a state machine: the stack of WebAssembly, and
    /// that of the host below it.
    pub(super) fn thread_stack_bytes(&self) -> usize {
        self.stack_bytes + 2 * MIB
    }
}

/// Enforces the memory and table limits of one instance, and remembers whether it reached one. A
/// guest whose allocation is denied usually aborts with a plain `unreachable`; only this flag
/// distinguishes that from a panic.
pub(super) struct Limiter {
    memory_bytes_max: usize,
    table_elements_max: usize,
    memory_bytes: usize,
    memory_bytes_declared: usize,
    table_elements: usize,
    denied: bool,
}

impl Limiter {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            memory_bytes_max: limits.cluster.memory_bytes_max,
            table_elements_max: limits.table_elements_max,
            memory_bytes: 0,
            memory_bytes_declared: 0,
            table_elements: 0,
            denied: false,
        }
    }

    /// Sets another memory limit, which applies from the next growth on. The instance keeps the
    /// memory that it holds.
    pub(super) fn set_memory_bytes_max(&mut self, bytes: usize) {
        self.memory_bytes_max = bytes;
    }

    /// Resets the denial flag before a call.
    pub(super) fn begin_call(&mut self) {
        self.denied = false;
    }

    /// Returns whether memory or table space was denied since the call began.
    pub(super) fn denied(&self) -> bool {
        self.denied
    }

    /// Returns the memory that the instance holds, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Returns the sum of the maxima that the instance's memories declare. A memory without a
    /// maximum counts as the 4 GiB that its addresses reach.
    pub(super) fn memory_bytes_declared(&self) -> usize {
        self.memory_bytes_declared
    }

    fn grow(
        used: &mut usize,
        max: usize,
        current: usize,
        desired: usize,
        own_max: Option<usize>,
    ) -> bool {
        let total = used.saturating_sub(current).saturating_add(desired);
        let allowed = total <= max && own_max.is_none_or(|own_max| desired <= own_max);
        if allowed {
            *used = total;
        }
        allowed
    }
}

impl ResourceLimiter for Limiter {
    fn memories(&self) -> usize {
        MEMORIES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // A memory that is being created grows from zero.
        if current == 0 {
            let declared = maximum.unwrap_or(usize::MAX);
            self.memory_bytes_declared = self.memory_bytes_declared.saturating_add(declared);
        }
        let allowed =
            Self::grow(&mut self.memory_bytes, self.memory_bytes_max, current, desired, maximum);
        self.denied |= !allowed;
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // wasmtime rejects this growth without calling the limiter: a growth past what 32-bit
        // addresses reach.
        if error.root_cause().to_string() == "memory growth exceeds memory type's limits" {
            self.denied = true;
            return Ok(());
        }
        // The limit allowed the growth but the operating system did not. Another replica may succeed.
        Err(host_fault(&error))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = Self::grow(
            &mut self.table_elements,
            self.table_elements_max,
            current,
            desired,
            maximum,
        );
        self.denied |= !allowed;
        Ok(allowed)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(host_fault(&error))
    }
}

fn host_fault(error: &wasmtime::Error) -> wasmtime::Error {
    wasmtime::Error::new(FatalError::new(format!(
        "this node could not allocate memory that the state machine's limit allows: {error:#}. Give the node more memory"
    )))
}
