//! The layer's backend in a node: the replica.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    Backend, MachineInfo, MethodKind, MethodSpec, Metric, Subscribed, Subscription, Upgrades,
};
use crate::{
    error::Error,
    machine::{self, WatchError, Watcher},
    raft::{self, Replica},
    types::{
        Applied, Call, Caller, ModuleId, TrapKind,
        limits::LimitsChange,
        modules::{Activated, Difference, ModulePart, ModuleStatus, Permissions, Pushed},
        status::{
            Answered, ClockStatus, ClusterStatus, Consistency, Health, Leader, LimitsSet,
            NodeStatus, TimeSet, Verification,
        },
    },
};

impl Backend for Replica {
    async fn command(
        &self,
        call: Call,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Applied, Error> {
        Replica::command(self, call, caller, deadline).await
    }

    async fn query(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Answered, Error> {
        self.unless_disk_hangs(Replica::query(self, call, caller, consistency, deadline)).await
    }

    async fn subscribe(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        resume: Option<u64>,
        deadline: Instant,
    ) -> Result<Subscribed, Error> {
        let begun = Replica::subscribe(self, call, caller, consistency, resume, deadline);
        let begun = self.unless_disk_hangs(begun).await?;
        let result = begun.result.map(|machine::Subscribing { initial, events }| {
            let events = stream::unfold(events, |mut events| async {
                let next = next_or_place(&mut events).await.map_err(raft::watch_ended);
                Some((next, events))
            });
            Subscription { initial, events: events.boxed() }
        });
        Ok(Subscribed { index: begun.index, result })
    }

    async fn snapshot_now(&self) -> Result<u64, Error> {
        Replica::snapshot_now(self).await
    }

    async fn verify(&self, deadline: Instant) -> Result<Verification, Error> {
        Replica::verify(self, deadline).await
    }

    async fn set_time(&self, time_ms: u64, deadline: Instant) -> Result<TimeSet, Error> {
        Replica::set_time(self, time_ms, deadline).await
    }

    async fn set_limits(
        &self,
        change: LimitsChange,
        deadline: Instant,
    ) -> Result<LimitsSet, Error> {
        Replica::set_limits(self, change, deadline).await
    }

    async fn cluster_status(&self) -> ClusterStatus {
        Replica::cluster_status(self).await
    }

    fn node_status(&self) -> NodeStatus {
        Replica::node_status(self)
    }

    fn leader(&self) -> Option<Leader> {
        Replica::leader(self)
    }

    fn health(&self) -> watch::Receiver<Health> {
        Replica::health(self)
    }

    fn machine(&self) -> Arc<MachineInfo> {
        let module = self.worker().module();
        let description = module.description();
        let methods = module.methods().iter().map(|method| MethodSpec {
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
            module_id: module.id(),
            methods: methods.collect(),
            descriptor_set: module.descriptor_set().clone(),
        })
    }

    fn metrics(&self) -> Vec<Metric> {
        let (stats, module) = (self.worker().stats(), self.worker().module());
        let description = module.description();
        let mut metrics = vec![
            Metric::gauge(
                "conclave_machine_info",
                "The active machine; the number is always 1.",
                1.0,
            )
            .label("module", module.id().to_string())
            .label("name", description.name.clone())
            .label("version", description.version.clone()),
            Metric::counter(
                "conclave_machine_applied_total",
                "Entries that the machine applied.",
                stats.entries,
            ),
            Metric::counter(
                "conclave_machine_queries_total",
                "Queries that the machine answered.",
                stats.queries,
            ),
            Metric::counter(
                "conclave_machine_rebuilds_total",
                "Instances of the machine that were built again after a trap.",
                stats.reader_builds,
            ),
        ];
        metrics.extend([
            Metric::gauge(
                "conclave_standby",
                "Whether there is a standby instance of the state machine; without one, a trap stops writes until there is.",
                f64::from(u8::from(*self.worker().standby().borrow())),
            ),
            Metric::gauge(
                "conclave_standby_build_seconds",
                "The time that the last standby instance took until it answered queries.",
                self.worker().standby_build_time().as_secs_f64(),
            ),
            Metric::gauge(
                "conclave_snapshot_restored_bytes",
                "The linear memory that restoring the last snapshot took; 0: none was taken since the start.",
                self.snapshot_restored_bytes() as f64,
            ),
            Metric::gauge(
                "conclave_snapshot_failing",
                "Whether the last snapshot could not be taken; the log grows meanwhile, and the status says why.",
                f64::from(u8::from(self.snapshot_failure().is_some())),
            ),
        ]);
        let [compiled, loaded] = self.compilations();
        metrics.extend([
            Metric::counter(
                "conclave_components_compiled_total",
                "Components that this node compiled since it started.",
                compiled,
            ),
            Metric::counter(
                "conclave_components_loaded_total",
                "Components whose compiled code was kept and loaded instead.",
                loaded,
            ),
        ]);
        let (disk_hung, transfers) = self.fitness();
        metrics.extend([
            Metric::gauge(
                "conclave_log_live_bytes",
                "Bytes of the entries that the log has; the log takes more on the disk.",
                self.log_live_bytes() as f64,
            ),
            Metric::gauge(
                "conclave_disk_hung_seconds",
                "How long the disk has not completed a write, once that is longer than an election takes; 0 otherwise.",
                disk_hung.as_secs_f64(),
            ),
            Metric::counter(
                "conclave_raft_transfers_total",
                "Times that this node had another one take over its leadership.",
                transfers,
            ),
            Metric::gauge(
                "conclave_raft_lag_entries",
                "Entries that the leader has committed and that are not applied here.",
                self.lag() as f64,
            ),
        ]);
        let ([equal, diverged, healed, undecided, withheld], quarantined) = self.agreement();
        metrics.extend([
            Metric::gauge(
                "conclave_diverged",
                "Whether this node's machine differs from the others', so that it answers nobody.",
                f64::from(u8::from(quarantined)),
            ),
            Metric::counter(
                "conclave_divergences_total",
                "Checkpoints that this node's machine did not agree with.",
                diverged,
            ),
            Metric::counter(
                "conclave_divergences_healed_total",
                "Times that this node's machine was replaced by a peer's state.",
                healed,
            ),
            Metric::counter(
                "conclave_checkpoints_equal_total",
                "Checkpoints that this node's machine agreed with.",
                equal,
            ),
            Metric::counter(
                "conclave_checkpoints_undecided_total",
                "Checkpoints that this node did not propose because no majority of the voters agreed.",
                undecided,
            ),
            Metric::counter(
                "conclave_snapshots_withheld_total",
                "Times that a peer needed a snapshot and was sent none, because this node's state differs from other \
                 voters' and no majority decides, or is being repaired.",
                withheld,
            ),
        ]);
        metrics.extend(clock_metrics(self.clock()));
        for (kind, count) in TrapKind::ALL.into_iter().zip(stats.traps) {
            let metric = Metric::counter(
                "conclave_machine_traps_total",
                "Calls that trapped and were rolled back.",
                count,
            );
            metrics.push(metric.label("trap", kind.name()));
        }
        metrics
    }
}

impl Upgrades for Replica {
    async fn push_module(&self, piece: ModulePart, deadline: Instant) -> Result<Pushed, Error> {
        Replica::push_module(self, piece, deadline).await
    }

    async fn list_modules(&self) -> Vec<ModuleStatus> {
        Replica::list_modules(self).await
    }

    async fn find_module(&self, beginning: &str, deadline: Instant) -> Result<ModuleId, Error> {
        Replica::find_module(self, beginning, deadline).await
    }

    async fn rehearse_module(
        &self,
        module: ModuleId,
        deadline: Instant,
    ) -> Result<ModuleStatus, Error> {
        Replica::rehearse_module(self, module, deadline).await
    }

    async fn diff_module(&self, module: ModuleId) -> Result<Difference, Error> {
        Replica::diff_module(self, module).await
    }

    async fn activate_module(
        &self,
        module: ModuleId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> Result<Activated, Error> {
        Replica::activate_module(self, module, permissions, deadline).await
    }

    async fn rollback_module(
        &self,
        from: ModuleId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> Result<Activated, Error> {
        Replica::rollback_module(self, from, permissions, deadline).await
    }
}

/// The clocks as metrics. An unknown value has no line.
fn clock_metrics(clock: ClockStatus) -> impl Iterator<Item = Metric> {
    let seconds = |ms: i64| ms as f64 / 1e3;
    let offset = clock.offset_ms.map(|ms| {
        let help = "This node's clock minus that of a majority of the voters.";
        Metric::gauge("conclave_clock_offset_seconds", help, seconds(ms))
    });
    let log_offset = clock.log_offset_ms.map(|ms| {
        let help = "The log's time minus the clock of a majority of the voters.";
        Metric::gauge("conclave_log_time_offset_seconds", help, seconds(ms))
    });
    let alarm = Metric::gauge(
        "conclave_clock_alarm",
        "Whether something is wrong with the clocks: the status says what.",
        f64::from(u8::from(!clock.alarm.is_empty())),
    );
    [offset, log_offset, Some(alarm)].into_iter().flatten()
}

/// How often a subscription without events says how far it has come.
const PLACE_INTERVAL: Duration = Duration::from_secs(1);

/// The next events, or how far the log has come without any.
async fn next_or_place(events: &mut Watcher) -> Result<(u64, Vec<Bytes>), WatchError> {
    loop {
        if let Ok(next) = timeout(PLACE_INTERVAL, events.next()).await {
            return next;
        }
        if let Some(place) = events.place()? {
            return Ok((place, Vec::new()));
        }
    }
}
