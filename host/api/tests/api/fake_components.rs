//! The component methods of the scripted replica.

use std::future::pending;

use bytes::Bytes;
use conclave_api::Upgrades;
use conclave_types::{
    ComponentId,
    components::{
        Activated, Change, ComponentPart, ComponentStatus, Difference, Permissions, Pushed,
        Readiness, Rehearsed,
    },
    error::Error,
};
use tokio::time::Instant;

use crate::fake::Fake;

pub const COMPONENT: ComponentId = ComponentId([9; 32]);

/// Has one component, ready on one node, with a breaking change. Its activation takes long.
impl Upgrades for Fake {
    async fn push_component(&self, piece: ComponentPart, _: Instant) -> Result<Pushed, Error> {
        let next_at = piece.at + piece.bytes.len() as u64;
        let component = (next_at == piece.total_bytes).then(status);
        Ok(Pushed { next_at, component })
    }

    fn component_bytes(&self, _: ComponentId) -> Result<Bytes, Error> {
        Ok(vec![7; 1_500_000].into())
    }

    async fn list_components(&self) -> Vec<ComponentStatus> {
        vec![status()]
    }

    async fn find_component(&self, beginning: &str, _: Instant) -> Result<ComponentId, Error> {
        match COMPONENT.to_string().starts_with(beginning) {
            true => Ok(COMPONENT),
            false => Err(Error::refused("push it first")),
        }
    }

    async fn rehearse_component(
        &self,
        _: ComponentId,
        _: Instant,
    ) -> Result<ComponentStatus, Error> {
        Ok(status())
    }

    async fn diff_component(&self, component: ComponentId) -> Result<Difference, Error> {
        let (subject, text) = ("kv.v1.KV/Put".to_owned(), "is not served any more".to_owned());
        Ok(Difference {
            from: ComponentId([7; 32]),
            to: component,
            from_state_version: 4,
            to_state_version: 5,
            restores: true,
            changes: vec![Change { subject, text, breaking: true }],
        })
    }

    async fn activate_component(
        &self,
        component: ComponentId,
        permissions: &Permissions,
        _: Instant,
    ) -> Result<Activated, Error> {
        if !permissions.allow_breaking {
            pending::<()>().await;
        }
        Ok(Activated { component, previous: ComponentId([7; 32]), index: 44 })
    }

    async fn rollback_component(
        &self,
        _: ComponentId,
        _: &Permissions,
        _: Instant,
    ) -> Result<Activated, Error> {
        Err(Error::refused("nothing to roll back to"))
    }
}

fn status() -> ComponentStatus {
    let rehearsed = Rehearsed { from: ComponentId([7; 32]), migration_ms: 12, entries: 34 };
    ComponentStatus {
        id: COMPONENT,
        bytes: 6,
        about: Default::default(),
        index: 40,
        activated_index: 0,
        active: false,
        previous: false,
        nodes: vec![
            (1, Readiness::Ready(rehearsed)),
            (2, Readiness::Failed("entry 7 traps".to_owned())),
        ],
    }
}
