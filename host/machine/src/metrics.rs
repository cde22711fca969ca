//! The metrics of this layer. The threads of a worker count here, and so does the engine that compiles components.

use conclave_metrics::{Counter, Gauge, Registry};

use super::worker::Worker;
use conclave_types::{Outcome, TrapKind};

/// The metrics of one node's state machine.
pub struct Metrics {
    /// The entries that the primary has applied, with any outcome.
    pub entries: Counter,
    /// The entries that the state machine answered with a failure.
    pub failures: Counter,
    /// The entries that trapped, in the order of [`TrapKind::ALL`].
    pub traps: [Counter; TrapKind::ALL.len()],
    /// The traps that the entry source had recorded, and which were not run again.
    pub traps_replayed: Counter,
    /// The entries that activated a component.
    pub activations: Counter,
    /// The entries whose component was not activated. Counted as failures too.
    pub activations_failed: Counter,
    /// The fuel used by the primary's calls.
    pub fuel: Counter,
    /// The queries answered, with any result.
    pub queries: Counter,
    /// The queries that trapped.
    pub query_traps: Counter,
    /// The standbys built from the entry source.
    pub standby_builds: Counter,
    /// The standbys replaced by an instance that was restored from a snapshot.
    pub rotations: Counter,
    /// The standbys promoted to primary.
    pub promotions: Counter,
    /// The snapshots begun.
    pub snapshots: Counter,
    /// The states restored into a running worker.
    pub restores: Counter,
    /// The linear memory of the primary.
    pub primary_memory_bytes: Gauge,
    /// The linear memory of the standby.
    pub standby_memory_bytes: Gauge,
    /// The log index that the standby has applied.
    pub standby_applied: Gauge,
    /// The size of the entries that wait for the standby.
    pub standby_queue_bytes: Gauge,
    /// The components that the engine compiled.
    pub compiled: Counter,
    /// The components whose kept code the engine loaded.
    pub loaded: Counter,
}

impl Metrics {
    /// Registers the metrics.
    #[allow(clippy::too_many_lines, reason = "a table: one metric per entry")]
    pub fn new(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help);
        let gauge = |name, help| registry.gauge(name, help);
        Self {
            entries: counter(
                "conclave_entries_applied_total",
                "Entries applied to the state machine.",
            ),
            failures: counter(
                "conclave_failures_total",
                "Entries that the state machine answered with a failure.",
            ),
            traps: registry.counters(
                "conclave_traps_total",
                "Calls that trapped and were rolled back.",
                "trap",
                TrapKind::ALL.map(TrapKind::name),
            ),
            traps_replayed: counter(
                "conclave_traps_replayed_total",
                "Entries that were skipped when they were applied again, because their trap is recorded.",
            ),
            activations: counter(
                "conclave_activations_total",
                "Entries that activated a component.",
            ),
            activations_failed: counter(
                "conclave_activations_failed_total",
                "Entries whose component was not activated. They are failures too.",
            ),
            fuel: counter(
                "conclave_fuel_used_total",
                "Fuel used by entries, on the primary instance.",
            ),
            queries: counter("conclave_queries_total", "Queries answered by the state machine."),
            query_traps: counter("conclave_query_traps_total", "Queries that trapped."),
            standby_builds: counter(
                "conclave_standby_builds_total",
                "Standby instances of the state machine built after a trap.",
            ),
            rotations: counter(
                "conclave_standby_rotations_total",
                "Standby instances replaced by an instance that was restored from a new snapshot.",
            ),
            promotions: counter(
                "conclave_standby_promotions_total",
                "Standby instances that replaced a primary instance after a trap.",
            ),
            snapshots: counter(
                "conclave_snapshots_begun_total",
                "Snapshots that the state machine began.",
            ),
            restores: counter(
                "conclave_state_restores_total",
                "Snapshots that replaced the state of the running state machine.",
            ),
            primary_memory_bytes: gauge(
                "conclave_primary_memory_bytes",
                "Linear memory of the primary instance, in bytes.",
            ),
            standby_memory_bytes: gauge(
                "conclave_standby_memory_bytes",
                "Linear memory of the standby instance, in bytes.",
            ),
            standby_applied: gauge(
                "conclave_standby_applied_index",
                "Index of the last entry applied by the standby instance.",
            ),
            standby_queue_bytes: gauge(
                "conclave_standby_queue_bytes",
                "Size of the entries that wait for the standby instance, in bytes.",
            ),
            compiled: counter(
                "conclave_components_compiled_total",
                "Components compiled by this node since its start.",
            ),
            loaded: counter(
                "conclave_components_loaded_total",
                "Components loaded from stored compiled code since the start.",
            ),
        }
    }

    /// Counts an entry.
    pub(super) fn outcome(&self, outcome: &Outcome) {
        self.entries.inc();
        match outcome {
            Outcome::Reply(_) => {}
            Outcome::Failure(_) => self.failures.inc(),
            Outcome::Trap(trap) => {
                let kinds = TrapKind::ALL.iter().zip(&self.traps);
                kinds.filter(|(kind, _)| **kind == trap.kind).for_each(|(_, count)| count.inc());
            }
        }
    }
}

/// Metrics that no page shows.
impl Default for Metrics {
    fn default() -> Self {
        Self::new(&Registry::default())
    }
}

/// Registers the metrics that show the worker's state. They are read at each scrape.
pub fn export_state(worker: Worker, registry: &Registry) {
    let active = registry.gauge_family(
        "conclave_component_info",
        "The active state machine. The value is always 1.",
        ["component", "name", "version"],
    );
    let standby = registry.gauge(
        "conclave_standby",
        "1 if the state machine has a standby instance, else 0. Without one, a trap stops writes until it is built.",
    );
    let build_seconds = registry.float_gauge(
        "conclave_standby_build_seconds",
        "Time that the last standby instance took until it answered queries, in seconds.",
    );
    registry.on_scrape(move || {
        let component = worker.component();
        let (id, description) = (component.id().to_string(), component.description());
        active.replace([([id, description.name.clone(), description.version.clone()], 1.0)]);
        standby.set((*worker.standby().borrow()).into());
        build_seconds.set(worker.standby_build_time().as_secs_f64());
    });
}
