//! Recovery of a state that no node can start with, on the data directory of a stopped node.
//!
//! No recovery step is part of the log, so an operator repeats it on every node. A node on which a
//! step was forgotten, or done differently, reaches another state than the others. The consistency
//! checks detect that, and repair the minority.

use std::{collections::BTreeMap, io, sync::Arc};

use prost::Message;

use super::{
    components::{Components, about},
    entry_source::{SKIPPED, recorded_traps, trap_record},
    snapshot::{header, saved_state},
};
use crate::registry::Registry;
use conclave_machine::{Component, Rehearsal, rehearse};
use conclave_proto::convert::trap_to_wire;
use conclave_storage::{
    LogStore, SnapshotStore,
    raft_types::{LogId, Payload},
};
use conclave_types::{Command, CommandKind, Trap, TrapKind, components::ComponentCommand};

/// The reason why a directory cannot be changed as the operator requested.
#[derive(Debug, thiserror::Error)]
pub enum NotRecovered {
    /// The request does not fit the directory.
    #[error("{0}")]
    Refused(String),
    /// The directory cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn refused(why: String) -> NotRecovered {
    NotRecovered::Refused(why)
}

/// An entry that was recorded as trapped at the request of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its index.
    pub index: u64,
    /// The method that the entry calls, or another description of the entry.
    pub subject: String,
    /// Set if the entry had trapped before, so that nothing has changed.
    pub was_recorded: bool,
}

/// Returns the entries that were skipped at the request of an operator.
///
/// # Errors
/// Fails if the metadata entries cannot be read.
pub fn skipped_entries(log: &LogStore) -> io::Result<BTreeMap<u64, Trap>> {
    let mut traps = recorded_traps(log)?;
    traps.retain(|_, trap| trap.message == SKIPPED);
    Ok(traps)
}

/// Records an entry as trapped, so that replays return the trap without running the entry, and
/// waits until the record is on disk. Shuts the log down.
///
/// # Errors
/// Fails if no replay would reach the entry: it is not in the log, a snapshot covers it, no state
/// machine applies it, or it may not be committed.
pub fn skip_entry(
    log: &LogStore,
    snapshots: &SnapshotStore,
    index: u64,
    uncommitted: bool,
) -> Result<Skipped, NotRecovered> {
    let covered = snapshots.latest().map_err(io::Error::other)?.map_or(0, |file| file.index());
    let extent = log.extent();
    let at = |log_id: Option<LogId>| log_id.map_or(0, |log_id| log_id.index);
    let (last, committed) = (at(extent.last), at(extent.committed));
    if index <= covered && covered > 0 {
        return Err(refused(format!(
            "entry {index} is part of the newest snapshot, which reaches {covered}: a restart does not apply it again"
        )));
    }
    if index > last {
        return Err(refused(format!("the log ends at entry {last}, before {index}")));
    }
    if index > committed && !uncommitted {
        return Err(refused(format!(
            "entry {index} may not be committed, and another leader may have replaced it: this node \
             knows the entries up to {committed} to be committed. If the nodes stop while they apply this entry, add \
             --uncommitted"
        )));
    }
    let entry = log.entries(index..index + 1, usize::MAX)?.into_iter().next();
    let entry = entry.ok_or_else(|| refused(format!("entry {index} is not in the log")))?;
    let subject = subject(&entry.payload).ok_or_else(|| {
        refused(format!(
            "entry {index} is not applied by a state machine: see `conclave replay --entries`"
        ))
    })?;
    let name = trap_record(index);
    let was_recorded = log.get_record(&name)?.is_some();
    if !was_recorded {
        let trap = Trap { kind: TrapKind::Invalid, message: SKIPPED.to_owned() };
        log.put_record(&name, Some(trap_to_wire(&trap).encode_to_vec()))?;
        close(log)?;
    }
    Ok(Skipped { index, subject, was_recorded })
}

/// Returns a description of the part of an entry that a state machine applies. `None`: there is none.
fn subject(payload: &Payload) -> Option<String> {
    let Payload::Normal(Command { kind, .. }) = payload else { return None };
    match kind {
        CommandKind::Call(call) => Some(call.method.to_string()),
        CommandKind::Tick | CommandKind::SetTime => Some("tick".to_owned()),
        CommandKind::Component(ComponentCommand::Activate(activation)) => {
            Some(format!("activation of component {}", activation.component))
        }
        CommandKind::Component(ComponentCommand::Part(_))
        | CommandKind::ConsistencyCheck(_)
        | CommandKind::Verify
        | CommandKind::SetLimits(_) => None,
    }
}

/// Writes and syncs the metadata entries, and shuts the log down.
fn close(log: &LogStore) -> io::Result<()> {
    log.sync_records()?;
    log.shutdown();
    log.poisoned().map_or(Ok(()), |why| Err(io::Error::other(why)))
}

/// The result of replacing a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The index of the snapshot. From this index on the other component is the active one.
    pub index: u64,
    /// The time and the memory that restoring the state took.
    pub rehearsal: Rehearsal,
}

/// Makes `component` the active one of the newest snapshot, as if it had been activated at the
/// snapshot's index. It will apply the entries after that index, including those that trapped
/// before. It must be able to restore the state. Shuts the log down.
///
/// # Errors
/// Fails if there is no snapshot, if the component does not accept its state, or if the
/// directory cannot be written.
pub fn replace_component(
    log: &LogStore,
    snapshots: &SnapshotStore,
    components: &Arc<Components>,
    component: &Component,
    seed: [u8; 32],
) -> Result<Replaced, NotRecovered> {
    let file = snapshots.latest().map_err(io::Error::other)?.ok_or_else(|| {
        refused(
            "there is no snapshot in this directory, so the state starts with the cluster's initial component \
             and all entries of the log: only single entries can be skipped (--trap-entry)"
                .to_owned(),
        )
    })?;
    let index = file.index();
    let mut header = header(&file)?;
    let mut chunks = file.read().map_err(io::Error::other)?;
    let registry = Registry::read(&header, &mut chunks).map_err(io::Error::other)?;
    let mut registry = registry.unwrap_or_else(|| components.begin());
    if registry.active() == component.id() {
        return Err(refused(format!(
            "component {} is the active one of the snapshot at index {index} already",
            component.id()
        )));
    }
    let mut saved = saved_state(&file, components)?.0;
    saved.component = component.clone();
    let rehearsal = rehearse(component, seed, saved, std::iter::empty(), || false);
    let rehearsal =
        rehearsal.map_err(|error| refused(format!("the component cannot be used: {error}")))?;
    registry.replace(index, component.id(), component.bytes().clone(), about(component));
    registry.describe(&mut header);
    let mut writer =
        snapshots.create(file.term(), index, &header.encode_to_vec()).map_err(io::Error::other)?;
    for chunk in registry.chunks() {
        writer.write(&chunk).map_err(io::Error::other)?;
    }
    for chunk in chunks {
        writer.write(&chunk.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let written = writer.finish().map_err(io::Error::other)?;
    // The other component applies these entries again, on every node. After a crash at this point,
    // they are applied or trap again.
    for (trapped, trap) in recorded_traps(log)? {
        if trap.message != SKIPPED {
            log.put_record(&trap_record(trapped), None)?;
        }
    }
    close(log)?;
    snapshots.install(&written).map_err(io::Error::other)?;
    Ok(Replaced { index, rehearsal })
}
