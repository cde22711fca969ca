//! What a machine may use, and the guard that holds it to its memory.
//!
//! Every limit is far above normal use. The heap of an instance that lived through the log has another layout than that
//! of one that was restored from a snapshot, so a call that comes close to a limit might pass in one and trap in the
//! other. That is a divergence: within a node the standby finds it, between nodes the consistency checks do. So a state
//! machine whose state grows should not leave it to these limits to say when it is full. It counts what it holds, by a
//! rule that only the log decides, and refuses at a fraction of the memory. The key-value store does so at a quarter
//! (`guest-kv/src/limits.rs`). For those that do not count, calls that move the state have twice the memory of calls
//! that change it ([`ClusterLimits::state_call_memory_bytes_max`]).

use wasmtime::ResourceLimiter;

use super::error::{Error, FatalError};
use conclave_types::limits::{ClusterLimits, MEMORY_BYTES_MOST};

const MIB: usize = 1 << 20;

/// The largest piece of a snapshot that crosses between host and guest. From the contract in `wit/`.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = MIB;

/// What is asked for at once when a snapshot is read: the key-value store gives it in a millisecond,
/// for which queries and entries wait.
pub(super) const SNAPSHOT_READ_BYTES: usize = 256 << 10;

/// The fuel of a piece as a fraction of that of a call that moves the whole state. At the default a piece takes
/// some seconds at most, for which queries wait.
const PIECE_FUEL_DIVISOR: u64 = 20;
/// The least fuel of a piece: interpreters need some hundred units per byte.
const PIECE_FUEL_LEAST: u64 = 1_000_000_000;

/// Linear memories of one instance. Each reserves 4 GiB of addresses, of which a process has 128 TiB; a
/// machine has one, and another for each language runtime that it is composed of.
const MEMORIES_MAX: usize = 16;
/// Its tables. The adapters between the core modules of a component have one each.
const TABLES_MAX: usize = 256;
/// Its core instances. A component of Python has some twenty, and one for each native extension.
const INSTANCES_MAX: usize = 256;

/// The limits of a state machine. [`Limits::cluster`] changes through the log; the rest is constant while a node runs.
/// `table_elements_max` and `stack_bytes` decide outcomes and are part of the engine's fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The limits before the first entry. An instance has those of the entry that it stands at.
    pub cluster: ClusterLimits,
    /// Elements of one instance's tables. Default 1,000,000: a table entry is a function that may be
    /// called indirectly, and the largest programs have some tens of thousands.
    pub table_elements_max: usize,
    /// The stack of WebAssembly calls, in bytes. Default 1 MiB: Rust guests keep their large values
    /// on a stack of their own in linear memory (also 1 MiB), so this is return addresses and spills.
    /// At least 64 KiB, at most 64 MiB.
    pub stack_bytes: usize,
    /// Entries that wait for the primary, and those that the primary has finished and the standby has not
    /// seen, in bytes each. Default 32 MiB: some requests of the largest size, or a second of small
    /// ones. At least 1 MiB.
    pub queue_bytes_max: usize,
    /// Queries that wait for the standby. Default 4,096; more are refused with `Busy`.
    pub queries_waiting_max: usize,
    /// Subscriptions at once. Default 10,000; more are refused with `Busy`. Each holds 64 KiB or the events of one
    /// entry, if its reader is slow.
    pub subscriptions_max: usize,
    /// A component's component, in bytes. Default 64 MiB: Python's is 18 MB, JavaScript's 12 MB.
    pub component_bytes_max: usize,
    /// Lines that the machine may write to the node's log at once. Default 100.
    pub log_lines_burst: u32,
    /// Lines per second that it may write in the long run. Default 5: of 4 KiB each, 1.8 GB per day.
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
            subscriptions_max: 10_000,
            component_bytes_max: 64 * MIB,
            log_lines_burst: 100,
            log_lines_per_second: 5,
        }
    }
}

impl Limits {
    /// Refuses what the layer cannot keep.
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
            MEMORY_BYTES_MOST as u64,
            "1 MiB to 4 GiB − 64 KiB",
        )?;
        check(
            "table_elements_max",
            self.table_elements_max as u64,
            1,
            100_000_000,
            "1 to 100,000,000",
        )?;
        // Fuel is counted in a signed number.
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

    /// The bytes that one transfer from the guest may take: the largest answer with its events, whatever their
    /// number, or a piece of a snapshot. wasmtime counts 48 bytes for each event, which
    /// [`EVENT_OVERHEAD_BYTES`](defaults::EVENT_OVERHEAD_BYTES) covers.
    pub(super) fn transfer_bytes_max(&self) -> usize {
        (self.cluster.response_bytes_max + self.cluster.event_bytes_max).max(4 * MIB) + 64 * 1024
    }

    /// The same for a query. An answer between the two limits fails and costs nothing else; a larger one costs the
    /// instance, because the host's memory is bounded too.
    pub(super) fn query_transfer_bytes_max(&self) -> usize {
        (16 * self.cluster.response_bytes_max).min(256 * MIB).max(self.transfer_bytes_max())
    }

    /// Fuel of one call that moves a piece of a state, `read` or `write`: a piece has at most 1 MiB.
    pub(super) fn fuel_per_piece(&self) -> u64 {
        let whole = self.cluster.fuel_per_state_call;
        (whole / PIECE_FUEL_DIVISOR).max(PIECE_FUEL_LEAST).min(whole)
    }

    /// What a machine of too many parts is told.
    pub(super) fn too_many_parts() -> String {
        format!(
            "it has more than {MEMORIES_MAX} memories, {TABLES_MAX} tables or {INSTANCES_MAX} core instances"
        )
    }

    /// The stack of a thread that runs a machine: WebAssembly's, and what the host needs below it.
    pub(super) fn thread_stack_bytes(&self) -> usize {
        self.stack_bytes + 2 * MIB
    }
}

/// Holds one instance to its limits, and remembers when it hit one: a guest whose allocation is
/// denied usually aborts with a plain `unreachable`, and only this tells it from a panic.
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

    /// Another limit of memory, from the next growth on. What the instance holds already it keeps.
    pub(super) fn set_memory_bytes_max(&mut self, bytes: usize) {
        self.memory_bytes_max = bytes;
    }

    /// Forgets the denials of the call before.
    pub(super) fn begin_call(&mut self) {
        self.denied = false;
    }

    /// Whether memory or table space was denied since the call began.
    pub(super) fn denied(&self) -> bool {
        self.denied
    }

    /// What the instance holds.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// What the types of the instance's memories allow, together. A memory that declares no maximum
    /// counts with the 4 GiB that its addresses reach.
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
        // A memory that is created grows from nothing.
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
        // The one growth that wasmtime refuses before it asks us: past what 32-bit addresses reach.
        if error.root_cause().to_string() == "memory growth exceeds memory type's limits" {
            self.denied = true;
            return Ok(());
        }
        // The limit allowed it and the operating system did not: another replica may have it.
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
        "this node could not give the machine memory that its limit allows: {error:#}. Give the node more memory"
    )))
}
