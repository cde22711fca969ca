//! Shared helpers of the tests: a data directory with fixed keys, and entries.

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use conclave_crypto::MasterKey;
use conclave_storage::{
    LogStore, Options, Storage,
    raft_types::{Entry, LogId, Payload, TypeConfig},
};
use conclave_types::{Call, Command, CommandKind, ComponentId};
use openraft::{
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};
use tempfile::TempDir;

/// A substitute for a component: two whole pieces and a shorter one.
pub(crate) fn component() -> Bytes {
    Bytes::from(vec![5; (2 << 20) + 5])
}

pub(crate) fn options(dir: &Path) -> Options {
    let component = component();
    Options {
        dir: dir.to_owned(),
        cluster_id: "test".into(),
        node_id: 1,
        component_id: ComponentId::of(&component),
        component,
        master_key: MasterKey::from_bytes(std::array::from_fn(|at| at as u8)),
    }
}

pub(crate) fn open(dir: &Path) -> Storage {
    Storage::open(options(dir)).unwrap()
}

pub(crate) fn fresh() -> (TempDir, Storage) {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    (dir, storage)
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

pub(crate) fn entry_of(term: u64, index: u64, request: Vec<u8>) -> Entry {
    let call =
        Call { method: "kv.v1.KV/Put".into(), request: request.into(), principal: "".into() };
    let command = Command { time_ms: index, kind: CommandKind::Call(call) };
    Entry { log_id: log_id(term, index), payload: Payload::Normal(command) }
}

/// Returns an entry whose content is derived from its position, so that a misplaced entry is detected.
pub(crate) fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let seed = (term * 1_000_003 + index) as usize;
    entry_of(term, index, (0..bytes).map(|at| (seed + at * 7) as u8).collect())
}

/// Appends entries, and waits until they are durable.
pub(crate) async fn append(log: &LogStore, entries: Vec<Entry>) -> std::io::Result<()> {
    let (done, flushed) = TypeConfig::oneshot();
    log.clone().append(entries, IOFlushed::signal(done)).await?;
    flushed.await.unwrap()
}

pub(crate) fn all(log: &LogStore) -> Vec<Entry> {
    log.entries(0..u64::MAX, usize::MAX).unwrap()
}

/// Copies a directory in its current state, which is the state after a crash of the process.
pub(crate) fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_into(from, to.path());
    to
}

fn copy_into(from: &Path, to: &Path) {
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_into(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).unwrap();
        }
    }
}

/// Returns every file under a directory.
pub(crate) fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) fn chunks(snapshot: &conclave_storage::SnapshotFile) -> Vec<Bytes> {
    snapshot.read().unwrap().map(Result::unwrap).collect()
}

/// A medium whose syncs fail on request.
#[derive(Default)]
pub(crate) struct Failing(pub(crate) std::sync::atomic::AtomicBool);

impl conclave_storage::Medium for Failing {
    fn sync(&self, file: &fs::File) -> std::io::Result<()> {
        if self.0.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(std::io::Error::other("the disk is on fire"));
        }
        file.sync_data()
    }
}

pub(crate) fn open_failing(dir: &Path) -> (Storage, Arc<Failing>) {
    let medium = Arc::new(Failing::default());
    let storage = Storage::open_on(options(dir), medium.clone()).unwrap();
    (storage, medium)
}
