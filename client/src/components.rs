//! Calls that upgrade the state machine of a cluster.

use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use crate::{
    client::Client,
    error::Error,
    options::CallOptions,
    proto::cluster::{
        ActivateComponentRequest, ActivateComponentResponse, Component, DiffComponentRequest,
        DiffComponentResponse, ListComponentsRequest, ListComponentsResponse, PullComponentRequest,
        PullComponentResponse, PushComponentRequest, PushComponentResponse,
        RehearseComponentRequest, RehearseComponentResponse, RollbackComponentRequest,
    },
};

/// The size of a piece, which is the maximum that nodes accept.
const PIECE_BYTES: usize = 1 << 20;

/// Deadline for the last piece, which the node compiles before it responds, and for
/// [`Client::rehearse_component`], for which all voters rehearse the component.
const LONG: Duration = Duration::from_secs(280);

/// Deadline for an activation, which asks all voters and then waits for the state migration.
const ACTIVATION: Duration = Duration::from_secs(60);

/// The permissions of an operator for an activation or a rollback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Allows changes that may break clients of the active component.
    pub allow_breaking: bool,
    /// The voters that need not be ready, because they are down. A majority must be ready all the same.
    pub without: Vec<u64>,
}

/// Maximum number of times that a push restarts at the first piece after a change of the leader.
const RESTARTS_MAX: u32 = 8;

impl Client {
    /// Sends a component to the cluster, unless the cluster already has it. `id` is the component's
    /// SHA-256. `progress` receives the number of bytes sent. The number decreases if a new leader
    /// needs the pieces again.
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
            // Repeating a piece is harmless.
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

    /// Returns the bytes of a component and its id, a SHA-256. `component` is the id or a prefix of
    /// it. The caller should check the hash. `progress` receives the number of bytes received, and
    /// the total.
    pub async fn pull_component(
        &self,
        component: &str,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let mut bytes = Vec::new();
        let mut request = PullComponentRequest { component: component.to_owned(), at: 0 };
        loop {
            let part: PullComponentResponse = self
                .call("conclave.cluster.v1.Cluster/PullComponent", &request, &CallOptions::read())
                .await?;
            bytes.extend_from_slice(&part.bytes);
            progress(bytes.len() as u64, part.total_bytes);
            if bytes.len() as u64 >= part.total_bytes || part.bytes.is_empty() {
                return Ok((part.component, bytes));
            }
            // Another component may get the same prefix meanwhile.
            let id = part.component.iter().map(|byte| format!("{byte:02x}"));
            request = PullComponentRequest { component: id.collect(), at: bytes.len() as u64 };
        }
    }

    /// Returns the components of the cluster: the active one first, then the newest.
    pub async fn components(&self) -> Result<Vec<Component>, Error> {
        let request = ListComponentsRequest {};
        let response: ListComponentsResponse = self
            .call("conclave.cluster.v1.Cluster/ListComponents", &request, &CallOptions::read())
            .await?;
        Ok(response.components)
    }

    /// Makes every voter rehearse a component, and waits for them. `component` is its id or a
    /// prefix of the id.
    pub async fn rehearse_component(
        &self,
        component: &str,
    ) -> Result<RehearseComponentResponse, Error> {
        let request = RehearseComponentRequest { component: component.to_owned() };
        let options = CallOptions::write().retry_unknown(true).long(LONG);
        self.call("conclave.cluster.v1.Cluster/RehearseComponent", &request, &options).await
    }

    /// Returns the changes that clients would notice if a component were active.
    pub async fn diff_component(&self, component: &str) -> Result<DiffComponentResponse, Error> {
        let request = DiffComponentRequest { component: component.to_owned() };
        self.call("conclave.cluster.v1.Cluster/DiffComponent", &request, &CallOptions::read()).await
    }

    /// Activates a component. It is harmless to repeat: for the active component the response is the same.
    pub async fn activate_component(
        &self,
        component: &str,
        allow_breaking: bool,
    ) -> Result<ActivateComponentResponse, Error> {
        let permissions = Permissions { allow_breaking, ..Permissions::default() };
        self.activate_component_with(component, &permissions).await
    }

    /// Activates a component like [`Client::activate_component`], with more permissions.
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

    /// Activates the component before the active one, `from`. It is harmless to repeat.
    pub async fn rollback_component(
        &self,
        from: &str,
        allow_breaking: bool,
    ) -> Result<ActivateComponentResponse, Error> {
        let permissions = Permissions { allow_breaking, ..Permissions::default() };
        self.rollback_component_with(from, &permissions).await
    }

    /// Rolls back like [`Client::rollback_component`], with more permissions.
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
