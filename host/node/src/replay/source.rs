//! The data for a replay.

use std::{collections::BTreeSet, io, sync::Arc};

use super::error::Error;
use conclave_machine::{Component, Engine, SavedState};
use conclave_raft::{Components, registry::Registry, saved_state, voters};
use conclave_storage::{Extent, Identity, LogStore, SnapshotFile};
use conclave_types::NodeId;

/// The parts of a source.
pub struct Parts {
    /// The identity of the data directory.
    pub identity: Identity,
    /// The log.
    pub log: LogStore,
    /// The newest snapshot.
    pub snapshot: Option<SnapshotFile>,
    /// The cluster's components, including the initial one.
    pub components: Arc<Components>,
    /// The initial component.
    pub initial_component: Component,
    /// The cluster's seed for the state machine's randomness.
    pub seed: [u8; 32],
}

/// An open copy of a stopped node's directory.
pub struct Source {
    pub(super) parts: Parts,
    span: Span,
}

/// The available indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first index whose state is available. 0: the initial state.
    pub first: u64,
    /// The newest snapshot's index.
    pub snapshot: Option<u64>,
    /// The last index that is known to be committed.
    pub committed: u64,
    /// The last index of the log.
    pub last: u64,
}

/// The start of a replay.
#[derive(Clone)]
pub enum Start {
    /// Before the first entry.
    InitialComponent,
    /// The state of a snapshot.
    Snapshot(SnapshotFile),
}

impl Start {
    /// Returns the index of the initial state of the replay.
    pub fn index(&self) -> u64 {
        match self {
            Self::InitialComponent => 0,
            Self::Snapshot(file) => file.index(),
        }
    }
}

/// The initial state of a replay, with its registry, voters and component.
pub(super) struct Begun {
    /// `None` for the initial state of the state machine.
    pub(super) saved: Option<SavedState>,
    pub(super) registry: Registry,
    pub(super) voters: BTreeSet<NodeId>,
    /// The active component.
    pub(super) component: Component,
}

impl Source {
    /// Creates a source from its parts.
    pub fn new(parts: Parts) -> Self {
        let span = span(parts.log.extent(), parts.snapshot.as_ref().map(SnapshotFile::index));
        Self { parts, span }
    }

    /// Returns the identity of the data directory.
    pub fn identity(&self) -> &Identity {
        &self.parts.identity
    }

    /// Returns the available indexes.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Returns the engine, which compiles components with the limits of the node.
    pub fn engine(&self) -> &Engine {
        self.parts.initial_component.engine()
    }

    /// Returns the latest start from which the state at `index` can be reached.
    ///
    /// # Errors
    /// The log before the index was purged.
    pub fn start(&self, index: u64) -> Result<Start, Error> {
        let Span { first, snapshot, last, .. } = self.span;
        match &self.parts.snapshot {
            Some(file) if file.index() <= index => Ok(Start::Snapshot(file.clone())),
            _ if first <= index => Ok(Start::InitialComponent),
            _ => Err(Error::Purged { wanted: index, snapshot: snapshot.unwrap_or(first), last }),
        }
    }

    /// Checks that the log reaches `index`, and that the entry is committed unless `uncommitted` is given.
    ///
    /// # Errors
    /// The log ends before the index, or the entry may not be committed.
    pub fn check_end(&self, index: u64, uncommitted: bool) -> Result<(), Error> {
        let Span { committed, last, .. } = self.span;
        if index > last {
            return Err(Error::Beyond { wanted: index, last });
        }
        if index > committed && !uncommitted {
            return Err(Error::Uncommitted { wanted: index, committed, last });
        }
        Ok(())
    }

    pub(super) fn begin(&self, start: &Start) -> io::Result<Begun> {
        let Parts { components, initial_component, .. } = &self.parts;
        match start {
            Start::InitialComponent => Ok(Begun {
                saved: None,
                registry: components.begin(),
                voters: BTreeSet::new(),
                component: initial_component.clone(),
            }),
            Start::Snapshot(file) => {
                let (saved, registry) = saved_state(file, components)?;
                let component = saved.component.clone();
                Ok(Begun { saved: Some(saved), registry, voters: voters(file)?, component })
            }
        }
    }
}

/// Returns the available indexes. A snapshot has only committed entries, even if the log's recorded
/// commit index is older. The log may reach back to the first entry although there is a snapshot,
/// since some entries are retained for slow followers.
fn span(extent: Extent, snapshot: Option<u64>) -> Span {
    let Extent { purged, first, last, committed } = extent;
    let covered = snapshot.unwrap_or(0);
    let index = |log_id: Option<conclave_storage::raft_types::LogId>| {
        log_id.map_or(0, |log_id| log_id.index)
    };
    let whole =
        purged.is_none() && (last.is_none() && snapshot.is_none() || last.is_some() && first <= 1);
    Span {
        first: if whole { 0 } else { covered },
        snapshot,
        committed: index(committed).max(covered),
        last: index(last).max(covered),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_storage::raft_types::LogId;

    fn extent(purged: Option<u64>, first: u64, committed: u64, last: u64) -> Extent {
        let at = |index| LogId::new_term_index(1, index);
        Extent {
            purged: purged.map(at),
            first,
            last: Some(at(last)),
            committed: Some(at(committed)),
        }
    }

    #[test]
    fn a_log_that_was_never_purged_reaches_back_to_the_beginning() {
        let found = span(extent(None, 0, 40, 45), None);
        assert_eq!(found, Span { first: 0, snapshot: None, committed: 40, last: 45 });
        let found = span(extent(None, 0, 40, 45), Some(30));
        assert_eq!(found, Span { first: 0, snapshot: Some(30), committed: 40, last: 45 });
    }

    #[test]
    fn a_purged_log_reaches_back_to_the_snapshot() {
        let found = span(extent(Some(20), 21, 40, 45), Some(30));
        assert_eq!(found, Span { first: 30, snapshot: Some(30), committed: 40, last: 45 });
        // The snapshot came from a leader, and the log ended before it.
        let found = span(extent(Some(60), 61, 60, 60), Some(60));
        assert_eq!(found, Span { first: 60, snapshot: Some(60), committed: 60, last: 60 });
    }

    #[test]
    fn what_a_snapshot_covers_is_committed() {
        assert_eq!(span(extent(None, 0, 10, 45), Some(30)).committed, 30);
    }
}
