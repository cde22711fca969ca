//! The metrics of this layer: Raft, the log, snapshots, divergence and clocks.

use conclave_metrics::{Counter, FloatGauge, Gauge, GaugeFamily, Registry};

use super::Replica;
use conclave_types::status::Role;

/// The metrics of one replica.
pub struct Metrics {
    pub(super) transfers: Counter,
    pub(super) divergences: Counter,
    pub(super) repairs: Counter,
    pub(super) checks_equal: Counter,
    pub(super) checks_undecided: Counter,
    pub(super) snapshots_withheld: Counter,
}

/// The metrics that show values of the replica's state.
struct State {
    term: Gauge,
    leader: Gauge,
    is_leader: Gauge,
    last_log_index: Gauge,
    committed_index: Gauge,
    applied_index: Gauge,
    snapshot_index: Gauge,
    purged_index: Gauge,
    lag_entries: Gauge,
    peer_connected: GaugeFamily<1>,
    peer_round_trip_seconds: GaugeFamily<1>,
    log_live_bytes: Gauge,
    disk_hung_seconds: FloatGauge,
    snapshot_failing: Gauge,
    snapshot_restored_bytes: Gauge,
    diverged: Gauge,
    clock_offset_seconds: GaugeFamily<0>,
    log_time_offset_seconds: GaugeFamily<0>,
    clock_alarm: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help);
        Self {
            transfers: counter(
                "conclave_raft_transfers_total",
                "Leadership transfers from this node to another node.",
            ),
            divergences: counter(
                "conclave_divergences_total",
                "Consistency checks in which this node's state machine differed from the majority.",
            ),
            repairs: counter(
                "conclave_divergences_repaired_total",
                "Times that this node's state machine was repaired with a peer's state.",
            ),
            checks_equal: counter(
                "conclave_consistency_checks_equal_total",
                "Consistency checks in which this node's state machine agreed with the majority.",
            ),
            checks_undecided: counter(
                "conclave_consistency_checks_undecided_total",
                "Consistency checks that this node did not propose because no majority of the voters agreed.",
            ),
            snapshots_withheld: counter(
                "conclave_snapshots_withheld_total",
                "Snapshots that a peer needed and this node did not send, because its state differs from other voters' \
                 and no majority decides, or because it is being repaired.",
            ),
        }
    }
}

impl State {
    #[allow(clippy::too_many_lines, reason = "a table: one metric per entry")]
    fn new(registry: &Registry) -> Self {
        let gauge = |name, help| registry.gauge(name, help);
        let optional = |name, help| registry.optional_gauge(name, help);
        let of_peer = |name, help| registry.gauge_family(name, help, ["peer"]);
        Self {
            term: gauge("conclave_raft_term", "Current term."),
            leader: gauge("conclave_raft_leader", "Node id of the leader; 0 if it is unknown."),
            is_leader: gauge("conclave_raft_is_leader", "1 if this node is the leader, else 0."),
            last_log_index: gauge("conclave_raft_last_log_index", "Index of the last log entry."),
            committed_index: gauge(
                "conclave_raft_committed_index",
                "Highest index known to be committed.",
            ),
            applied_index: gauge(
                "conclave_raft_applied_index",
                "Index of the last entry applied to the state machine.",
            ),
            snapshot_index: gauge(
                "conclave_raft_snapshot_index",
                "Last index included in the newest snapshot.",
            ),
            purged_index: gauge("conclave_raft_purged_index", "Last index purged from the log."),
            lag_entries: gauge(
                "conclave_raft_lag_entries",
                "Entries that the leader has committed and this node has not applied.",
            ),
            peer_connected: of_peer(
                "conclave_peer_connected",
                "1 if this node is connected to the other member, else 0.",
            ),
            peer_round_trip_seconds: of_peer(
                "conclave_peer_round_trip_seconds",
                "Smoothed round-trip time to the other member in seconds; 0 if not measured yet.",
            ),
            log_live_bytes: gauge(
                "conclave_log_live_bytes",
                "Size of the entries in the log, in bytes. The log takes more space on the disk.",
            ),
            disk_hung_seconds: registry.float_gauge(
                "conclave_disk_hung_seconds",
                "Time that the disk has not completed a write, in seconds, if longer than an election takes; else 0.",
            ),
            snapshot_failing: gauge(
                "conclave_snapshot_failing",
                "1 if the last snapshot failed, else 0. Meanwhile the log grows; `conclave status` shows the reason.",
            ),
            snapshot_restored_bytes: gauge(
                "conclave_snapshot_restored_bytes",
                "Linear memory used to restore the last snapshot, in bytes; 0 if none was taken since the start.",
            ),
            diverged: gauge(
                "conclave_diverged",
                "1 if this node's state machine has diverged from the others, so that it rejects requests; else 0.",
            ),
            clock_offset_seconds: optional(
                "conclave_clock_offset_seconds",
                "Clock of this node minus that of a majority of the voters, in seconds.",
            ),
            log_time_offset_seconds: optional(
                "conclave_log_time_offset_seconds",
                "Time of the log minus the clock of a majority of the voters, in seconds.",
            ),
            clock_alarm: gauge(
                "conclave_clock_alarm",
                "1 if there is a problem with the clocks, else 0. `conclave status` shows the reason.",
            ),
        }
    }

    fn update(&self, replica: &Replica) {
        let (parts, status) = (&replica.0, replica.node_status());
        let node = &parts.node;
        let set = |gauge: &Gauge, value: u64| gauge.set(value as i64);
        set(&self.term, status.term);
        set(&self.leader, status.leader.unwrap_or(0));
        set(&self.is_leader, (status.role == Role::Leader).into());
        set(&self.last_log_index, status.last_log);
        set(&self.committed_index, status.committed);
        set(&self.applied_index, status.applied);
        set(&self.snapshot_index, status.snapshot);
        set(&self.purged_index, status.purged);
        let (committed, applied) = parts.health.progress();
        set(&self.lag_entries, committed.saturating_sub(applied));
        let links = || status.links.iter().map(|link| ([link.node_id.to_string()], link));
        let connected = links().map(|(peer, link)| (peer, f64::from(u8::from(link.connected))));
        self.peer_connected.replace(connected);
        let round_trips = links().map(|(peer, link)| (peer, link.round_trip.as_secs_f64()));
        self.peer_round_trip_seconds.replace(round_trips);
        set(&self.log_live_bytes, node.log.live_bytes());
        self.disk_hung_seconds.set(node.disk.hung_for().unwrap_or_default().as_secs_f64());
        set(&self.snapshot_failing, parts.building.failure().is_some().into());
        set(&self.snapshot_restored_bytes, parts.building.restored_bytes());
        set(&self.diverged, node.divergence.quarantine().is_some().into());
        let clock = parts.time.status();
        let seconds = |ms: i64| ms as f64 / 1e3;
        self.clock_offset_seconds.set(clock.offset_ms.map(seconds));
        self.log_time_offset_seconds.set(clock.log_offset_ms.map(seconds));
        set(&self.clock_alarm, (!clock.alarm.is_empty()).into());
    }
}

/// Registers the metrics that show the replica's state. They are read at each scrape.
pub fn export_state(replica: Replica, registry: &Registry) {
    let state = State::new(registry);
    registry.on_scrape(move || state.update(&replica));
}
