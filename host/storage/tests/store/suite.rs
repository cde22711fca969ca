//! openraft's test suite for log stores. The suite also needs a state machine, which is kept in
//! memory here.

use std::{io, sync::Arc, sync::Mutex};

use conclave_storage::{
    LogStore,
    raft_types::{LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig},
};
use conclave_types::Receipt;
use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftSnapshotBuilder, StorageError,
    storage::{EntryResponder, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::alias::SnapshotOf,
};
use tempfile::TempDir;

use crate::support;

#[derive(Clone, Default)]
struct Machine(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<SnapshotMeta>,
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, Vec<u8>>> {
        let mut state = self.0.lock().unwrap();
        let (last_log_id, last_membership) = (state.applied, state.membership.clone());
        let meta = SnapshotMeta { last_log_id, last_membership };
        state.snapshot = Some(meta.clone());
        Ok(SnapshotOf::<TypeConfig, Vec<u8>> { meta, snapshot: Vec::new() })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.0.lock().unwrap();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let mut state = self.0.lock().unwrap();
            state.applied = Some(entry.log_id);
            if let Payload::Membership(membership) = entry.payload {
                state.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Receipt { index: entry.log_id.index, outcome: None });
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, _: Vec<u8>) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<TypeConfig, Vec<u8>>>> {
        let meta = self.0.lock().unwrap().snapshot.clone();
        Ok(meta.map(|meta| SnapshotOf::<TypeConfig, Vec<u8>> { meta, snapshot: Vec::new() }))
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let (dir, storage) = support::fresh();
        Ok((dir, storage.log, Machine::default()))
    }
}

#[test]
fn the_log_store_does_what_openraft_asks() {
    support::runtime().block_on(Suite::test_all(Builder)).unwrap();
}
