//! The backend of the ports: the replica.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use conclave_api::{
    Backend, BackupFile, Events, MachineInfo, MethodKind, MethodSpec, Subscribed, Subscription,
    Upgrades,
};
use conclave_machine as machine;
use conclave_machine::{WatchError, Watcher};
use conclave_raft as raft;
use conclave_raft::{Replica, backup::BackupStream};
use conclave_types::{
    Call, Caller, ComponentId, Receipt,
    backup::WrappingKey,
    components::{Activated, ComponentPart, ComponentStatus, Difference, Permissions, Pushed},
    error::Error,
    limits::LimitsChange,
    status::{
        Answered, ClusterStatus, Consistency, Health, Leader, LimitsSet, NodeStatus, TimeSet,
        Verification,
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
