//! The backend of the ports: the replica.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use conclave_api::{
    Backend, BackupFile, Events, MachineInfo, MethodKind, MethodSpec, Metric, Subscribed,
    Subscription, Upgrades,
};
use conclave_machine as machine;
use conclave_machine::{WatchError, Watcher};
use conclave_raft as raft;
use conclave_raft::{Replica, backup::BackupStream};
use conclave_types::{
    Call, Caller, ComponentId, Receipt, TrapKind,
    backup::WrappingKey,
    components::{Activated, ComponentPart, ComponentStatus, Difference, Permissions, Pushed},
    error::Error,
    limits::LimitsChange,
    status::{
        Answered, ClockStatus, ClusterStatus, Consistency, Health, Leader, LimitsSet, NodeStatus,
        TimeSet, Verification,
    },
};

/// The replica, as the backend of the ports.
#[derive(Clone)]
pub(crate) struct ReplicaBackend(pub(crate) Replica);

impl Backend for ReplicaBackend {
    async fn command(
        &self,
        call: Call,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        self.0.command(call, caller, deadline).await
    }

    async fn query(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Answered, Error> {
        self.0.query(call, caller, consistency, deadline).await
    }

    async fn subscribe(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        resume: Option<u64>,
        deadline: Instant,
    ) -> Result<Subscribed, Error> {
        let begun = self.0.subscribe(call, caller, consistency, resume, deadline).await?;
        let result = begun.result.map(|machine::Subscribing { initial, events }| Subscription {
            initial,
            events: Box::new(ReplicaEvents(events)),
        });
        Ok(Subscribed { index: begun.index, result })
    }

    async fn snapshot_now(&self) -> Result<u64, Error> {
        self.0.snapshot_now().await
    }

    async fn back_up(
        &self,
        key: Option<WrappingKey>,
        deadline: Instant,
    ) -> Result<BackupFile, Error> {
        let BackupStream { index, pieces } =
            self.0.back_up(key.map(crate::backup::of_operator), deadline).await?;
        Ok(BackupFile { index, pieces })
    }

    async fn verify(&self, deadline: Instant) -> Result<Verification, Error> {
        self.0.verify(deadline).await
    }

    async fn set_time(&self, time_ms: u64, deadline: Instant) -> Result<TimeSet, Error> {
        self.0.set_time(time_ms, deadline).await
    }

    async fn set_limits(
        &self,
        change: LimitsChange,
        deadline: Instant,
    ) -> Result<LimitsSet, Error> {
        self.0.set_limits(change, deadline).await
    }

    async fn cluster_status(&self) -> ClusterStatus {
        self.0.cluster_status().await
    }

    fn node_status(&self) -> NodeStatus {
        self.0.node_status()
    }

    fn leader(&self) -> Option<Leader> {
        self.0.leader()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.0.health()
    }

    fn machine(&self) -> Arc<MachineInfo> {
        let component = self.0.worker().component();
        let description = component.description();
        let methods = component.methods().iter().map(|method| MethodSpec {
            name: method.name.clone(),
            kind: match method.kind {
                machine::MethodKind::Command => MethodKind::Command,
                machine::MethodKind::Query => MethodKind::Query,
                machine::MethodKind::Subscription => MethodKind::Subscription,
            },
        });
        Arc::new(MachineInfo {
            name: description.name.clone(),
            version: description.version.clone(),
            state_version: description.state_version,
            component_id: component.id(),
            methods: methods.collect(),
            descriptor_set: component.descriptor_set().clone(),
        })
    }

    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = self.state_machine_metrics();
        metrics.extend(self.standby_metrics());
        metrics.extend(self.log_metrics());
        metrics.extend(self.divergence_metrics());
        metrics.extend(clock_metrics(self.0.clock()));
        metrics
    }
}

impl ReplicaBackend {
    /// Returns the metrics of the state machine and its component.
    fn state_machine_metrics(&self) -> Vec<Metric> {
        let (stats, component) = (self.0.worker().stats(), self.0.worker().component());
        let description = component.description();
        let mut metrics = vec![
            Metric::gauge(
                "conclave_component_info",
                "The active state machine. The value is always 1.",
                1.0,
            )
            .label("component", component.id().to_string())
            .label("name", description.name.clone())
            .label("version", description.version.clone()),
            Metric::counter(
                "conclave_entries_applied_total",
                "Entries applied to the state machine.",
                stats.entries,
            ),
            Metric::counter(
                "conclave_queries_total",
                "Queries answered by the state machine.",
                stats.queries,
            ),
            Metric::counter(
                "conclave_standby_builds_total",
                "Standby instances of the state machine built after a trap.",
                stats.standby_builds,
            ),
        ];
        let [compiled, loaded] = self.0.compilations();
        metrics.extend([
            Metric::counter(
                "conclave_components_compiled_total",
                "Components compiled by this node since its start.",
                compiled,
            ),
            Metric::counter(
                "conclave_components_loaded_total",
                "Components loaded from stored compiled code since the start.",
                loaded,
            ),
        ]);
        for (kind, count) in TrapKind::ALL.into_iter().zip(stats.traps) {
            let metric = Metric::counter(
                "conclave_traps_total",
                "Calls that trapped and were rolled back.",
                count,
            );
            metrics.push(metric.label("trap", kind.name()));
        }
        metrics
    }

    /// Returns the metrics of the standby instance and of snapshots.
    fn standby_metrics(&self) -> Vec<Metric> {
        vec![
            Metric::gauge(
                "conclave_standby",
                "1 if the state machine has a standby instance, else 0. Without one, a trap stops writes until it is built.",
                f64::from(u8::from(*self.0.worker().standby().borrow())),
            ),
            Metric::gauge(
                "conclave_standby_build_seconds",
                "Time that the last standby instance took until it answered queries, in seconds.",
                self.0.worker().standby_build_time().as_secs_f64(),
            ),
            Metric::gauge(
                "conclave_snapshot_restored_bytes",
                "Linear memory used to restore the last snapshot, in bytes; 0 if none was taken since the start.",
                self.0.snapshot_restored_bytes() as f64,
            ),
            Metric::gauge(
                "conclave_snapshot_failing",
                "1 if the last snapshot failed, else 0. Meanwhile the log grows; `conclave status` shows the reason.",
                f64::from(u8::from(self.0.snapshot_failure().is_some())),
            ),
        ]
    }

    /// Returns the metrics of the log, the disk and leadership.
    fn log_metrics(&self) -> Vec<Metric> {
        let (disk_hung, transfers) = self.0.fitness();
        vec![
            Metric::gauge(
                "conclave_log_live_bytes",
                "Size of the entries in the log, in bytes. The log takes more space on the disk.",
                self.0.log_live_bytes() as f64,
            ),
            Metric::gauge(
                "conclave_disk_hung_seconds",
                "Time that the disk has not completed a write, in seconds, if longer than an election takes; else 0.",
                disk_hung.as_secs_f64(),
            ),
            Metric::counter(
                "conclave_raft_transfers_total",
                "Leadership transfers from this node to another node.",
                transfers,
            ),
            Metric::gauge(
                "conclave_raft_lag_entries",
                "Entries that the leader has committed and this node has not applied.",
                self.0.lag() as f64,
            ),
        ]
    }

    /// Returns the metrics of consistency checks.
    fn divergence_metrics(&self) -> Vec<Metric> {
        let ([equal, diverged, repaired, undecided, withheld], quarantined) = self.0.agreement();
        vec![
            Metric::gauge(
                "conclave_diverged",
                "1 if this node's state machine has diverged from the others, so that it rejects requests; else 0.",
                f64::from(u8::from(quarantined)),
            ),
            Metric::counter(
                "conclave_divergences_total",
                "Consistency checks in which this node's state machine differed from the majority.",
                diverged,
            ),
            Metric::counter(
                "conclave_divergences_repaired_total",
                "Times that this node's state machine was repaired with a peer's state.",
                repaired,
            ),
            Metric::counter(
                "conclave_consistency_checks_equal_total",
                "Consistency checks in which this node's state machine agreed with the majority.",
                equal,
            ),
            Metric::counter(
                "conclave_consistency_checks_undecided_total",
                "Consistency checks that this node did not propose because no majority of the voters agreed.",
                undecided,
            ),
            Metric::counter(
                "conclave_snapshots_withheld_total",
                "Snapshots that a peer needed and this node did not send, because its state differs from other voters' \
                 and no majority decides, or because it is being repaired.",
                withheld,
            ),
        ]
    }
}

impl Upgrades for ReplicaBackend {
    async fn push_component(
        &self,
        piece: ComponentPart,
        deadline: Instant,
    ) -> Result<Pushed, Error> {
        self.0.push_component(piece, deadline).await
    }

    fn component_bytes(&self, component: ComponentId) -> Result<Bytes, Error> {
        self.0.component_bytes(component)
    }

    async fn list_components(&self) -> Vec<ComponentStatus> {
        self.0.list_components().await
    }

    async fn find_component(
        &self,
        beginning: &str,
        deadline: Instant,
    ) -> Result<ComponentId, Error> {
        self.0.find_component(beginning, deadline).await
    }

    async fn rehearse_component(
        &self,
        component: ComponentId,
        deadline: Instant,
    ) -> Result<ComponentStatus, Error> {
        self.0.rehearse_component(component, deadline).await
    }

    async fn diff_component(&self, component: ComponentId) -> Result<Difference, Error> {
        self.0.diff_component(component).await
    }

    async fn activate_component(
        &self,
        component: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> Result<Activated, Error> {
        self.0.activate_component(component, permissions, deadline).await
    }

    async fn rollback_component(
        &self,
        from: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> Result<Activated, Error> {
        self.0.rollback_component(from, permissions, deadline).await
    }
}

/// Returns the clocks as metrics. Unknown values are omitted.
fn clock_metrics(clock: ClockStatus) -> impl Iterator<Item = Metric> {
    let seconds = |ms: i64| ms as f64 / 1e3;
    let offset = clock.offset_ms.map(|ms| {
        let help = "Clock of this node minus that of a majority of the voters, in seconds.";
        Metric::gauge("conclave_clock_offset_seconds", help, seconds(ms))
    });
    let log_offset = clock.log_offset_ms.map(|ms| {
        let help = "Time of the log minus the clock of a majority of the voters, in seconds.";
        Metric::gauge("conclave_log_time_offset_seconds", help, seconds(ms))
    });
    let alarm = Metric::gauge(
        "conclave_clock_alarm",
        "1 if there is a problem with the clocks, else 0. `conclave status` shows the reason.",
        f64::from(u8::from(!clock.alarm.is_empty())),
    );
    [offset, log_offset, Some(alarm)].into_iter().flatten()
}

/// The interval at which a subscription without events reports its position.
const POSITION_INTERVAL: Duration = Duration::from_secs(1);

/// The events of a subscription, from the state machine.
struct ReplicaEvents(Watcher);

impl Events for ReplicaEvents {
    fn next(&mut self) -> BoxFuture<'_, Result<(u64, Vec<Bytes>), Error>> {
        Box::pin(async { next_or_position(&mut self.0).await.map_err(raft::watch_ended) })
    }

    fn position(&mut self) -> Option<u64> {
        self.0.position().ok().flatten()
    }
}

/// Returns the next events, or the position in the log if there were none.
async fn next_or_position(events: &mut Watcher) -> Result<(u64, Vec<Bytes>), WatchError> {
    loop {
        if let Ok(next) = timeout(POSITION_INTERVAL, events.next()).await {
            return next;
        }
        if let Some(position) = events.position()? {
            return Ok((position, Vec::new()));
        }
    }
}
