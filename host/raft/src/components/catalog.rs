//! The components of the cluster, with the voters' progress.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Components, rehearsals::Rehearsals};
use crate::{
    network::peer::ConnectionClass, node::Node, read_index::ReadIndex, registry::Registry,
};
use conclave_machine::{Component, diff};
use conclave_proto::{
    convert::component_id_from_wire,
    raft::{ComponentStatusRequest, ComponentStatusResponse, component_status_response::State},
};
use conclave_storage::raft_types::Member;
use conclave_types::{
    ComponentId, NodeId,
    components::{ComponentStatus, Difference, Readiness, Rehearsed},
    error::Error,
};

/// The time after which a voter that has not responded counts as unreachable.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// The components of the cluster, as this node and the other voters know them.
pub(crate) struct Catalog {
    node: Arc<Node>,
    components: Arc<Components>,
    rehearsals: Arc<Rehearsals>,
    read_index: Arc<ReadIndex>,
}

impl Catalog {
    pub(crate) fn new(
        node: Arc<Node>,
        components: Arc<Components>,
        rehearsals: Arc<Rehearsals>,
        read_index: Arc<ReadIndex>,
    ) -> Self {
        Self { node, components, rehearsals, read_index }
    }

    /// Returns the components in the log, as far as this node has applied it.
    pub(super) fn registry(&self) -> Registry {
        self.rehearsals.registry()
    }

    /// Returns the components in the log, including everything that was acknowledged before this call.
    pub(super) async fn fresh_registry(&self, deadline: Instant) -> Result<Registry, Error> {
        let index = self.read_index.get(deadline).await?;
        let mut metrics = self.node.raft.data_metrics();
        while metrics.borrow_and_update().last_applied.is_none_or(|log_id| log_id.index < index) {
            if let Some(why) = self.node.fatal_error() {
                return Err(Error::stopped(why));
            }
            let changed = timeout_at(deadline, metrics.changed()).await;
            if changed.map_err(|_| Error::deadline())?.is_err() {
                return Err(Error::shutting_down());
            }
        }
        Ok(self.registry())
    }

    /// Queries all voters in parallel. Waits for the default timeout, or until the
    /// deadline of a rehearsal.
    pub(super) async fn ask_voters(
        &self,
        component: ComponentId,
        rehearse: Option<Instant>,
    ) -> Vec<(NodeId, Readiness)> {
        let within = rehearse
            .map_or(ASK_TIMEOUT, |deadline| deadline.saturating_duration_since(Instant::now()));
        let voters = self.node.voters();
        let requests = voters.iter().map(|(node_id, member)| async move {
            let own = *node_id == self.node.id();
            let answer = async {
                match (own, rehearse.is_some()) {
                    (true, false) => Ok(self.rehearsals.readiness(component)),
                    (true, true) => Ok(self.rehearsals.rehearse(component).await),
                    (false, rehearse) => self.ask_one(*node_id, member, component, rehearse).await,
                }
            };
            let readiness = match timeout(within, answer).await {
                Ok(Ok(readiness)) => readiness,
                Ok(Err(why)) => Readiness::Unreachable(why),
                Err(_) => Readiness::Unreachable(format!(
                    "no response within {} s",
                    within.as_secs_f32().round()
                )),
            };
            (*node_id, readiness)
        });
        join_all(requests).await
    }

    async fn ask_one(
        &self,
        node_id: NodeId,
        member: &Member,
        component: ComponentId,
        rehearse: bool,
    ) -> Result<Readiness, String> {
        // A rehearsal takes long, and must not delay heartbeats.
        let class = if rehearse { ConnectionClass::Snapshot } else { ConnectionClass::Control };
        let peer = self.node.peers.peer(node_id, member);
        let mut client = peer.client(class).await.map_err(|error| error.to_string())?;
        let request =
            ComponentStatusRequest { component_id: component.0.to_vec().into(), rehearse };
        let answer = client.component_status(request).await;
        let answer = answer.map_err(|status| peer.failed(class, status).to_string())?;
        status_from_wire(&answer.into_inner())
    }

    /// Returns the status of one of the cluster's components, with the voters' progress.
    pub(super) async fn status(&self, id: ComponentId) -> ComponentStatus {
        let nodes = self.ask_voters(id, None).await;
        self.with_nodes(id, nodes)
    }

    fn with_nodes(&self, id: ComponentId, nodes: Vec<(NodeId, Readiness)>) -> ComponentStatus {
        let registry = self.registry();
        let known = registry.get(&id);
        ComponentStatus {
            id,
            bytes: known.map_or(0, |known| known.bytes.len() as u64),
            about: known.map(|known| known.about.clone()).unwrap_or_default(),
            index: known.map_or(0, |known| known.index),
            activated_index: known.map_or(0, |known| known.activated_index),
            active: registry.active() == id,
            previous: registry.previous() == Some(id),
            nodes,
        }
    }

    /// Returns all components of the cluster: the active one first, then the newest. Without a
    /// leader, returns the components that this node knows.
    pub(crate) async fn list(&self) -> Vec<ComponentStatus> {
        let registry = self.fresh_registry(Instant::now() + ASK_TIMEOUT).await;
        let registry = registry.unwrap_or_else(|_| self.registry());
        let mut ids: Vec<_> = registry.components().map(|(id, known)| (known.index, id)).collect();
        ids.sort_by_key(|(index, id)| (*id != registry.active(), u64::MAX - index));
        join_all(ids.into_iter().map(|(_, id)| self.status(id))).await
    }

    /// Returns the bytes of a component of the cluster.
    ///
    /// # Errors
    /// The component was removed meanwhile.
    pub(crate) fn bytes(&self, component: ComponentId) -> Result<Bytes, Error> {
        let known = self.node.applied().registry.get(&component).map(|known| known.bytes.clone());
        known.ok_or_else(|| Error::refused(format!("the cluster has no component {component}")))
    }

    /// Returns the component whose id begins with `beginning`.
    pub(crate) async fn find(
        &self,
        beginning: &str,
        deadline: Instant,
    ) -> Result<ComponentId, Error> {
        const LEAST: usize = 6;
        let beginning = beginning.to_ascii_lowercase();
        let registry = self.fresh_registry(deadline).await?;
        let mut found = registry
            .components()
            .map(|(id, _)| id)
            .filter(|id| id.to_string().starts_with(&beginning));
        match (beginning.len() >= LEAST, found.next(), found.next()) {
            (false, ..) => Err(Error::invalid(format!(
                "{beginning:?} is too short: give at least the first {LEAST} digits of the component's id"
            ))),
            (true, Some(id), None) => Ok(id),
            (true, None, _) => Err(Error::refused(format!(
                "the cluster has no component {beginning}: `conclave component list` shows the existing ones, \
                 and `conclave component push` adds one"
            ))),
            (true, Some(one), Some(other)) => Err(Error::invalid(format!(
                "{beginning} may be {one} or {other}: give more of the id"
            ))),
        }
    }

    /// Makes every voter rehearse a component, and waits for all of them.
    pub(crate) async fn rehearse(
        &self,
        id: ComponentId,
        deadline: Instant,
    ) -> Result<ComponentStatus, Error> {
        let nodes = self.ask_voters(id, Some(deadline)).await;
        Ok(self.with_nodes(id, nodes))
    }

    /// Returns the changes for clients if a component became active.
    pub(crate) async fn diff(&self, id: ComponentId) -> Result<Difference, Error> {
        let registry = self.registry();
        let from = self.compiled(&registry, registry.active()).await?;
        let to = self.compiled(&registry, id).await?;
        Ok(difference(&from, &to))
    }

    pub(super) async fn compiled(
        &self,
        registry: &Registry,
        id: ComponentId,
    ) -> Result<Component, Error> {
        let bytes = registry.get(&id).map(|known| known.bytes.clone());
        let bytes =
            bytes.ok_or_else(|| Error::refused(format!("the cluster has no component {id}")))?;
        let components = self.components.clone();
        let compiling = tokio::task::spawn_blocking(move || components.compile(id, &bytes));
        let compiled = compiling.await.map_err(|error| Error::caused_by(Error::fatal, error))?;
        compiled.map_err(|error| {
            Error::fatal(format!("cannot compile component {id}")).with_source(error)
        })
    }
}

pub(super) fn difference(from: &Component, to: &Component) -> Difference {
    Difference {
        from: from.id(),
        to: to.id(),
        from_state_version: from.state_version(),
        to_state_version: to.state_version(),
        restores: to.description().restores.contains(&from.state_version()),
        changes: diff::compare(from.descriptor_set(), to.descriptor_set()),
    }
}

/// Converts a readiness to its wire form.
pub(crate) fn status_to_wire(readiness: &Readiness) -> ComponentStatusResponse {
    let mut answer = ComponentStatusResponse::default();
    let state = match readiness {
        Readiness::Absent | Readiness::Unreachable(_) => State::Absent,
        Readiness::Preparing => State::Preparing,
        Readiness::Active => State::Active,
        Readiness::Failed(reason) => {
            answer.reason.clone_from(reason);
            State::Failed
        }
        Readiness::Ready(rehearsed) => {
            answer.from_component_id = rehearsed.from.0.to_vec().into();
            answer.migration_ms = rehearsed.migration_ms;
            answer.entries = rehearsed.entries;
            State::Ready
        }
    };
    answer.set_state(state);
    answer
}

fn status_from_wire(answer: &ComponentStatusResponse) -> Result<Readiness, String> {
    Ok(match answer.state() {
        State::Absent => Readiness::Absent,
        State::Preparing => Readiness::Preparing,
        State::Active => Readiness::Active,
        State::Failed => Readiness::Failed(answer.reason.clone()),
        State::Ready => Readiness::Ready(Rehearsed {
            from: component_id_from_wire(&answer.from_component_id)
                .map_err(|error| error.to_string())?,
            migration_ms: answer.migration_ms,
            entries: answer.entries,
        }),
        State::Unspecified => return Err("the response has no state".to_owned()),
    })
}
