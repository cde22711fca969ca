//! The layer's backend in a node: the replica.

use std::sync::Arc;

use tokio::{sync::watch, time::Instant};

use super::{Backend, MachineInfo, MethodKind, MethodSpec, Metric};
use crate::{
    error::Error,
    machine,
    raft::Replica,
    types::{
        Applied, Call, TrapKind,
        status::{Answered, ClusterStatus, Consistency, Health, Leader, NodeStatus},
    },
};

impl Backend for Replica {
    async fn command(&self, call: Call, deadline: Instant) -> Result<Applied, Error> {
        Replica::command(self, call, deadline).await
    }

    async fn query(
        &self,
        call: Call,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Answered, Error> {
        Replica::query(self, call, consistency, deadline).await
    }

    async fn snapshot_now(&self) -> Result<u64, Error> {
        Replica::snapshot_now(self).await
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
        let module = self.module();
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
        let stats = self.worker().stats();
        let mut metrics = vec![
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
