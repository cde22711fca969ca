//! What there is to replay.

use std::{collections::BTreeSet, io, sync::Arc};

use super::error::Error;
use conclave_machine::{Component, Engine, SavedState};
use conclave_raft::{Components, registry::Registry, saved_state, voters};
use conclave_storage::{Extent, Identity, LogStore, SnapshotFile};
use conclave_types::NodeId;

/// What a source is made of.
pub struct Parts {
    /// Whose directory it is.
    pub identity: Identity,
    /// The log.
    pub log: LogStore,
    /// The newest snapshot.
    pub snapshot: Option<SnapshotFile>,
    /// The cluster's components; knows the one that the log begins with.
    pub components: Arc<Components>,
    /// That one.
    pub initial_component: Component,
    /// For the machine's randomness: the cluster's.
    pub seed: [u8; 32],
}

/// An open copy of a stopped node's directory.
pub struct Source {
    pub(super) parts: Parts,
    span: Span,
}

/// Which indexes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The lowest state that can be had. 0: the machine's initial one.
    pub first: u64,
    /// The newest snapshot's index.
    pub snapshot: Option<u64>,
    /// Up to here the log is known to be committed.
    pub committed: u64,
    /// The last entry.
    pub last: u64,
}

/// Where a replay begins.
#[derive(Clone)]
pub enum Start {
    /// Before the first entry.
    Genesis,
    /// With a snapshot's state.
    Snapshot(SnapshotFile),
}

impl Start {
    /// The index of the state that it begins with.
    pub fn index(&self) -> u64 {
        match self {
            Self::Genesis => 0,
            Self::Snapshot(file) => file.index(),
        }
    }
}

/// A state to begin with, and what goes with it.
pub(super) struct Begun {
    /// Nothing: the initial one.
    pub(super) saved: Option<SavedState>,
    pub(super) registry: Registry,
    pub(super) voters: BTreeSet<NodeId>,
    /// The component of the time.
    pub(super) component: Component,
}

impl Source {
    /// Takes the parts together.
    pub fn new(parts: Parts) -> Self {
        let span = span(parts.log.extent(), parts.snapshot.as_ref().map(SnapshotFile::index));
        Self { parts, span }
    }

    /// Whose directory it is.
    pub fn identity(&self) -> &Identity {
        &self.parts.identity
    }

    /// Which indexes there are.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Compiles components with the limits of the node.
    pub fn engine(&self) -> &Engine {
        self.parts.initial_component.engine()
    }

    /// The nearest beginning from which the state at `index` can be had.
    ///
    /// # Errors
    /// There is none.
    pub fn start(&self, index: u64) -> Result<Start, Error> {
        let Span { first, snapshot, last, .. } = self.span;
        match &self.parts.snapshot {
            Some(file) if file.index() <= index => Ok(Start::Snapshot(file.clone())),
            _ if first <= index => Ok(Start::Genesis),
            _ => Err(Error::Purged { wanted: index, snapshot: snapshot.unwrap_or(first), last }),
        }
    }

    /// Whether the log reaches to `index`, and surely so.
    ///
    /// # Errors
    /// It does not.
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
            Start::Genesis => Ok(Begun {
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

/// A snapshot is of committed entries, also where the log's own note is older. The log may reach back to the
/// beginning although there is a snapshot: some entries are kept for slow followers.
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
        // The snapshot came from a leader, and the log ends before it.
        let found = span(extent(Some(60), 61, 60, 60), Some(60));
        assert_eq!(found, Span { first: 60, snapshot: Some(60), committed: 60, last: 60 });
    }

    #[test]
    fn what_a_snapshot_covers_is_committed() {
        assert_eq!(span(extent(None, 0, 10, 45), Some(30)).committed, 30);
    }
}
