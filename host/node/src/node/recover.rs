//! Recovery of a stopped node's directory from states in which no node can start.

use bytes::Bytes;

use super::{master_key, startup};
use crate::config::StoppedNode;
use conclave_machine::{Component, Engine, Limits};
use conclave_raft as raft;
use conclave_raft::{Components, KeptCode, NotRecovered, Replaced, Skipped};
use conclave_storage::Storage;
use conclave_types::error::Error;

/// Records an entry of the log as trapped, so that this node never applies it. Blocking.
///
/// # Errors
/// The directory cannot be opened, or a replay would not reach the entry.
pub fn trap_entry(stopped: &StoppedNode, index: u64, uncommitted: bool) -> Result<Skipped, Error> {
    let storage = open(stopped)?;
    let skipped = raft::skip_entry(&storage.log, &storage.snapshots, index, uncommitted);
    skipped.map_err(not_recovered)
}

/// Activates another component in the newest snapshot. It applies all entries after the snapshot.
/// Blocking while the component is compiled and the state is restored.
///
/// # Errors
/// The directory cannot be opened, there is no snapshot, or the component does not accept its state.
pub fn replace_component(stopped: &StoppedNode, component: Bytes) -> Result<Replaced, Error> {
    let engine = Engine::new(&Limits::default()).map_err(startup)?;
    let component = Component::load(&engine, component);
    let component = component
        .map_err(|error| Error::invalid("cannot load the component").with_source(error))?;
    let Storage { identity, initial_component, log, snapshots, compiled, .. } = open(stopped)?;
    let (seed, kept) = (identity.seed(), KeptCode::new(compiled));
    let initial_component =
        Component::load_with(&engine, initial_component, kept.compiling(false)).map_err(startup)?;
    let components = Components::new(initial_component, seed, kept);
    let replaced = raft::replace_component(&log, &snapshots, &components, &component, seed);
    replaced.map_err(not_recovered)
}

fn open(stopped: &StoppedNode) -> Result<Storage, Error> {
    let key = master_key(&stopped.master_key)?;
    Storage::open_stopped(&stopped.data_dir, key).map_err(startup)
}

fn not_recovered(error: NotRecovered) -> Error {
    match error {
        NotRecovered::Refused(why) => Error::invalid(why),
        NotRecovered::Io(error) => startup(error),
    }
}
