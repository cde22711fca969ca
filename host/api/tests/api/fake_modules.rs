//! The part of the scripted replica that is about modules.

use std::future::pending;

use conclave_api::Upgrades;
use conclave_types::{
    ModuleId,
    error::Error,
    modules::{
        Activated, Change, Difference, ModulePart, ModuleStatus, Permissions, Pushed, Readiness,
        Rehearsed,
    },
};
use tokio::time::Instant;

use crate::fake::Fake;

pub const MODULE: ModuleId = ModuleId([9; 32]);

/// One module, ready on one node, that breaks a client; activating it takes long.
impl Upgrades for Fake {
    async fn push_module(&self, piece: ModulePart, _: Instant) -> Result<Pushed, Error> {
        let next_at = piece.at + piece.bytes.len() as u64;
        let module = (next_at == piece.total_bytes).then(status);
        Ok(Pushed { next_at, module })
    }

    async fn list_modules(&self) -> Vec<ModuleStatus> {
        vec![status()]
    }

    async fn find_module(&self, beginning: &str, _: Instant) -> Result<ModuleId, Error> {
        match MODULE.to_string().starts_with(beginning) {
            true => Ok(MODULE),
            false => Err(Error::refused("push it first")),
        }
    }

    async fn rehearse_module(&self, _: ModuleId, _: Instant) -> Result<ModuleStatus, Error> {
        Ok(status())
    }

    async fn diff_module(&self, module: ModuleId) -> Result<Difference, Error> {
        let (subject, text) = ("kv.v1.KV/Put".to_owned(), "is not served any more".to_owned());
        Ok(Difference {
            from: ModuleId([7; 32]),
            to: module,
            from_state_version: 4,
            to_state_version: 5,
            restores: true,
            changes: vec![Change { subject, text, breaking: true }],
        })
    }

    async fn activate_module(
        &self,
        module: ModuleId,
        permissions: &Permissions,
        _: Instant,
    ) -> Result<Activated, Error> {
        if !permissions.allow_breaking {
            pending::<()>().await;
        }
        Ok(Activated { module, previous: ModuleId([7; 32]), index: 44 })
    }

    async fn rollback_module(
        &self,
        _: ModuleId,
        _: &Permissions,
        _: Instant,
    ) -> Result<Activated, Error> {
        Err(Error::refused("nothing to roll back to"))
    }
}

fn status() -> ModuleStatus {
    let rehearsed = Rehearsed { from: ModuleId([7; 32]), carry_over_ms: 12, entries: 34 };
    ModuleStatus {
        id: MODULE,
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
