//! Bringing other machines to a cluster.

use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use crate::{
    client::Client,
    error::Error,
    options::CallOptions,
    proto::cluster::{
        ActivateComponentRequest, ActivateComponentResponse, Component, DiffComponentRequest,
        DiffComponentResponse, ListComponentsRequest, ListComponentsResponse, PushComponentRequest,
        PushComponentResponse, RehearseComponentRequest, RehearseComponentResponse,
        RollbackComponentRequest,
    },
};

/// What is sent at once: the largest piece that nodes take.
const PIECE_BYTES: usize = 1 << 20;

/// A node compiles the component before it answers the last piece, and all rehearse it in [`Client::rehearse_component`].
const LONG: Duration = Duration::from_secs(280);

/// An activation hears all voters and then waits for the state to be carried over.
const ACTIVATION: Duration = Duration::from_secs(60);

/// The permissions of an operator for an activation or a rollback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Clients of the active component may fail.
    pub allow_breaking: bool,
    /// These voters need not be ready, because they are down. A majority must be ready all the same.
    pub without: Vec<u64>,
}

/// So often a push begins again from the first piece, because another node has come to lead.
const RESTARTS_MAX: u32 = 8;

impl Client {
    /// Brings a component to all nodes. `progress` is told how many bytes have been sent; less than before, if
    /// another node has come to lead and wants them anew. `id` is the component's SHA-256. A component that
    /// the cluster has already is not sent.
    pub async fn push_component(
        &self,
        id: [u8; 32],
        component: Bytes,
        mut progress: impl FnMut(u64),
    ) -> Result<Component, Error> {
        let (mut at, mut restarts) = (0, 0);
        loop {
            let end = (at + PIECE_BYTES).min(component.len());
            let request = PushComponentRequest {
                component: id.to_vec(),
                total_bytes: component.len() as u64,
                at: at as u64,
                bytes: component[at..end].to_vec(),
            };
            // A piece that comes twice does no harm.
            let mut options = CallOptions::write().retry_unknown(true);
            if end == component.len() {
                options = options.long(LONG);
            }
            let answer: PushComponentResponse =
                self.call("conclave.cluster.v1.Cluster/PushComponent", &request, &options).await?;
            if let Some(pushed) = answer.component {
                progress(component.len() as u64);
                return Ok(pushed);
            }
            let next = usize::try_from(answer.next_at).unwrap_or(usize::MAX).min(component.len());
            restarts += u32::from(next <= at);
            if restarts > RESTARTS_MAX || next == component.len() {
                let why =
                    "the nodes do not agree on how much of the component they have: push it again";
                return Err(Error::new(Code::Aborted, why));
            }
            progress(next as u64);
            at = next;
        }
    }

    /// The components that the cluster has: the active one first, then the newest.
    pub async fn components(&self) -> Result<Vec<Component>, Error> {
        let request = ListComponentsRequest {};
        let response: ListComponentsResponse = self
            .call("conclave.cluster.v1.Cluster/ListComponents", &request, &CallOptions::read())
            .await?;
        Ok(response.components)
    }

    /// Makes every voter rehearse a component, and waits for them. `component` is its id, or the id's beginning.
    pub async fn rehearse_component(
        &self,
        component: &str,
    ) -> Result<RehearseComponentResponse, Error> {
        let request = RehearseComponentRequest { component: component.to_owned() };
        let options = CallOptions::write().retry_unknown(true).long(LONG);
        self.call("conclave.cluster.v1.Cluster/RehearseComponent", &request, &options).await
    }

    /// What would change for clients if a component were active.
    pub async fn diff_component(&self, component: &str) -> Result<DiffComponentResponse, Error> {
        let request = DiffComponentRequest { component: component.to_owned() };
        self.call("conclave.cluster.v1.Cluster/DiffComponent", &request, &CallOptions::read()).await
    }

    /// Makes a component the active one. Asking again does no harm: what is active already is answered as such.
    pub async fn activate_component(
        &self,
        component: &str,
        allow_breaking: bool,
    ) -> Result<ActivateComponentResponse, Error> {
        let permissions = Permissions { allow_breaking, ..Permissions::default() };
        self.activate_component_with(component, &permissions).await
    }

    /// The same with more permissions.
    pub async fn activate_component_with(
        &self,
        component: &str,
        permissions: &Permissions,
    ) -> Result<ActivateComponentResponse, Error> {
        let Permissions { allow_breaking, without } = permissions.clone();
        let request =
            ActivateComponentRequest { component: component.to_owned(), allow_breaking, without };
        let options = CallOptions::write().retry_unknown(true).long(ACTIVATION);
        self.call("conclave.cluster.v1.Cluster/ActivateComponent", &request, &options).await
    }

    /// Goes back from the active component, `from`, to the one before. Asking again does no harm.
    pub async fn rollback_component(
        &self,
        from: &str,
        allow_breaking: bool,
    ) -> Result<ActivateComponentResponse, Error> {
        let permissions = Permissions { allow_breaking, ..Permissions::default() };
        self.rollback_component_with(from, &permissions).await
    }

    /// The same with more permissions.
    pub async fn rollback_component_with(
        &self,
        from: &str,
        permissions: &Permissions,
    ) -> Result<ActivateComponentResponse, Error> {
        let Permissions { allow_breaking, without } = permissions.clone();
        let request = RollbackComponentRequest { from: from.to_owned(), allow_breaking, without };
        let options = CallOptions::write().retry_unknown(true).long(ACTIVATION);
        self.call("conclave.cluster.v1.Cluster/RollbackComponent", &request, &options).await
    }
}
