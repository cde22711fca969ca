//! Replicas that do not agree: found, named, silenced and repaired.
//!
//! Every machine keeps a digest of what came of its entries. [`consistency_checks`] has the leader put the digest of a
//! majority into the log now and then; whoever applies such an entry compares. A replica that differs is in
//! *quarantine*: [`Divergence`] says so to all who would be answered, its machine applies nothing, its log goes
//! on. [`repair`] brings it a healthy peer's snapshot and ends the quarantine. [`verify`] compares the states
//! themselves, when somebody asks.
//!
//! # Contract
//! - **What a replica in quarantine would answer is answered by nobody**: calls are refused with the reason, its
//!   health is not serving, it gives no snapshots and takes none of its own.
//! - Which digest counts is decided by a majority of the voters, never by the leader's own, and by the log.
//! - **Votes are counted by lineage.** A node that has restored a peer's state votes with that peer, its
//!   *origin*, until it has agreed with a consistency check: a copy is no second opinion.
//! - While replicas disagree and no majority decides, a leader sends no snapshot of a disputed state and takes
//!   none of its own, so that its log keeps the entries with which a returning node can decide.
//! - A quarantine outlives a restart.
//!
//! # Caveats
//! - Up to a consistency check a replica that has diverged answers like any other.
//! - The digest covers outcomes. A state that was damaged before a snapshot, but whose damage shows in no outcome
//!   until the node that restored it has agreed with a check, counts as two lineages. `cluster verify` finds it.
//! - Digests of different versions of the algorithm are not compared, and condemn no node. After an upgrade that changes
//!   it the leader has all digests begin again at one entry.
//! - If a majority agrees on nothing there is no consistency check: an error in the log and a metric. If every voter
//!   differs from what a majority once had, nobody can repair anybody. With an interval of 0 consistency checks are neither
//!   proposed nor compared, also those of the past: that serves whatever each node has.

mod consistency_checks;
mod giving;
mod lineage;
mod repair;
mod verify;

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;

use self::verify::Verifications;
pub(super) use self::{
    consistency_checks::{heard_to_wire as digest_to_wire, run as run_consistency_checks},
    repair::run as run_healing,
    verify::to_wire as verified_to_wire,
};
use conclave_proto::{
    convert::{consistency_check_from_wire, consistency_check_to_wire},
    raft as wire,
};
use conclave_storage::LogStore;
use conclave_types::{ConsistencyCheck, Digest, NodeId};

/// Where a quarantine is remembered.
const RECORD: &str = "quarantine";
/// The pause before a node that has diverged again is repaired again: first none, then this, doubled each time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// How long a leader takes no snapshots while the voters disagree: the log grows meanwhile. A node that returns within
/// that time finds the entries with which it can decide.
const HOLD_MAX: Duration = Duration::from_secs(600);
/// A node that agreed for so long has its divergences behind it.
const FORGIVEN_AFTER: Duration = Duration::from_secs(3600);

/// What this node knows of its own agreement with the others.
pub(super) struct Divergence {
    log: LogStore,
    node_id: NodeId,
    compares: bool,
    state: Mutex<State>,
    /// Since when, as far as this node knows as the leader, voters disagree and no majority decides.
    disputed_since: Mutex<Option<Instant>>,
    /// A snapshot was refused to a peer, and none was given since.
    refused_snapshot: AtomicBool,
    /// The machine is to apply nothing.
    stopped: AtomicBool,
    /// Nobody is to be answered. Longer than `stopped`: also while what was missed is applied.
    refusing: watch::Sender<bool>,
    verifications: Verifications,
    counts: Counts,
}

#[derive(Default)]
struct State {
    last_equal: Option<ConsistencyCheck>,
    /// The node whose computation the state is.
    origin: NodeId,
    /// The index of the state that was restored last.
    restored_at: u64,
    quarantine: Option<Quarantine>,
    /// Divergences of late.
    strikes: u32,
    healed_at: Option<Instant>,
    /// The last divergence that was repaired, for people.
    last: String,
}

/// What is counted, for metrics.
#[derive(Default)]
struct Counts {
    equal: AtomicU64,
    diverged: AtomicU64,
    repaired: AtomicU64,
    undecided: AtomicU64,
    withheld: AtomicU64,
}

/// Why this node is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quarantine {
    /// Up to this consistency check the digests were equal; 0: none was compared.
    pub(super) equal_until: u64,
    /// Where they were not: what a majority has there.
    pub(super) consistency_check: ConsistencyCheck,
    /// The entry that brought it: the machine has stopped there.
    pub(super) at: u64,
    /// When that was found.
    pub(super) since: Instant,
}

impl Divergence {
    /// As it was when the node stopped. If nothing is compared, nothing is remembered either.
    pub(super) fn open(log: LogStore, node_id: NodeId, compares: bool) -> io::Result<Self> {
        let mut state = State { origin: node_id, ..State::default() };
        if let Some(record) = log.get_record(RECORD)? {
            if compares {
                state.quarantine = Some(quarantine_from_record(record)?);
                state.strikes = 1;
            } else {
                log.put_record(RECORD, None)?;
            }
        }
        let quarantined = state.quarantine.is_some();
        Ok(Self {
            log,
            node_id,
            compares,
            state: Mutex::new(state),
            disputed_since: Mutex::default(),
            refused_snapshot: AtomicBool::new(false),
            stopped: AtomicBool::new(quarantined),
            refusing: watch::Sender::new(quarantined),
            verifications: Verifications::default(),
            counts: Counts::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether consistency checks are compared.
    pub(super) fn compares(&self) -> bool {
        self.compares
    }

    /// Whether the machine is to apply nothing, and nothing is to be made of its state.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The quarantine that this node is in.
    pub(super) fn quarantine(&self) -> Option<Quarantine> {
        if !*self.refusing.borrow() {
            return None;
        }
        self.state().quarantine
    }

    /// Tells when a quarantine begins and ends.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.refusing.subscribe()
    }

    /// Why nobody is answered, if nobody is.
    pub(super) fn why(&self) -> Option<String> {
        let quarantine = self.quarantine()?;
        let strikes = self.state().strikes;
        let again = match strikes {
            0 | 1 => String::new(),
            times => format!(" for the {times}. time of late: is it a function of the log alone?"),
        };
        Some(format!(
            "this node's machine has diverged from the others{again}: {}; it is being replaced by a peer's state",
            between(&quarantine)
        ))
    }

    /// How often the node diverged, and the last time that was repaired, for people.
    pub(super) fn past(&self) -> (u64, String) {
        (self.counts.diverged.load(Ordering::Relaxed), self.state().last.clone())
    }

    /// The last consistency check that this node agreed with since it started.
    pub(super) fn last_equal(&self) -> Option<ConsistencyCheck> {
        self.state().last_equal
    }

    /// The node whose computation this node's state is.
    pub(super) fn origin(&self) -> NodeId {
        self.state().origin
    }

    /// The state was replaced by a snapshot's. Without an origin it is this node's own.
    pub(super) fn restored(&self, origin: Option<NodeId>, index: u64) {
        let mut state = self.state();
        state.origin = origin.unwrap_or(self.node_id);
        state.restored_at = index;
    }

    /// Whether this node, as the leader, takes no snapshot because the voters disagree and no majority decides.
    /// Not for longer than [`HOLD_MAX`].
    pub(super) fn holds_snapshots(&self) -> bool {
        let since = *self.disputed_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < HOLD_MAX)
    }

    fn set_disputed(&self, disputed: bool) {
        let mut since = self.disputed_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = disputed.then(|| since.unwrap_or_else(Instant::now));
    }

    /// Counts that a snapshot is not given to a peer, and logs it once until one is given again.
    pub(super) fn note_given(&self, to: NodeId, refusal: Option<&str>) {
        if refusal.is_some() {
            self.counts.withheld.fetch_add(1, Ordering::Relaxed);
        }
        let refused = self.refused_snapshot.swap(refusal.is_some(), Ordering::Relaxed);
        if let Some(why) = refusal
            && !refused
        {
            tracing::warn!(to, why, "no snapshot is sent to a peer that needs one");
        }
    }

    /// A consistency check was applied at index `at`, and this is the node's own digest, if it is still known.
    pub(super) fn compare(
        &self,
        at: u64,
        consistency_check: ConsistencyCheck,
        own: Option<Digest>,
    ) {
        let Some(own) = own else { return };
        let mut state = self.state();
        if own == consistency_check.digest {
            state.last_equal = Some(consistency_check);
            // The digest up to the restored state is a copy as well: its agreement says nothing.
            if consistency_check.index > state.restored_at {
                state.origin = self.node_id;
            }
            self.counts.equal.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if state.healed_at.is_some_and(|healed_at| healed_at.elapsed() > FORGIVEN_AFTER) {
            state.strikes = 0;
        }
        state.strikes += 1;
        let equal_until = state.last_equal.map_or(0, |consistency_check| consistency_check.index);
        let quarantine = Quarantine { equal_until, consistency_check, at, since: Instant::now() };
        state.quarantine = Some(quarantine);
        self.stopped.store(true, Ordering::Release);
        self.refusing.send_replace(true);
        self.counts.diverged.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            index = at,
            own = %own,
            majority = %consistency_check.digest,
            "this node's machine has diverged: {}",
            between(&quarantine)
        );
        drop(state);
        // A record that a crash loses is made again: the digest never gets equal by itself.
        if let Err(error) = self.log.put_record(RECORD, Some(record(&quarantine))) {
            tracing::warn!(%error, "cannot remember the quarantine");
        }
    }

    /// How long to wait before the quarantine is repaired.
    fn pause(&self) -> Duration {
        let state = self.state();
        let Some(since) = state.quarantine.map(|quarantine| quarantine.since) else {
            return Duration::ZERO;
        };
        pause_before(state.strikes).saturating_sub(since.elapsed())
    }

    /// A healthy state is in place and has reached the entry that openraft takes the machine to stand at. Calls
    /// are refused until [`Divergence::repaired`].
    pub(super) fn resume(&self) {
        self.stopped.store(false, Ordering::Release);
    }

    /// The machine is where the log is. Whether the quarantine is over: what was applied since may have had
    /// a consistency check that it differs from as well.
    pub(super) fn repaired(&self, index: u64) -> bool {
        let mut state = self.state();
        if self.is_stopped() {
            return false;
        }
        let Some(quarantine) = state.quarantine.take() else { return false };
        let took = quarantine.since.elapsed();
        state.healed_at = Some(Instant::now());
        // The state is that of a peer which agreed with it.
        state.last_equal = Some(quarantine.consistency_check);
        state.last = format!(
            "{}; repaired after {} ms with a peer's state at index {index}",
            between(&quarantine),
            took.as_millis()
        );
        drop(state);
        self.counts.repaired.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.log.put_record(RECORD, None) {
            tracing::warn!(%error, "cannot forget the quarantine");
        }
        self.refusing.send_replace(false);
        tracing::warn!(
            index,
            took_ms = took.as_millis() as u64,
            "this node's machine was replaced by a peer's state and serves again"
        );
        true
    }

    /// Counts, in this order: equal consistency checks, divergences, repaired ones, digests without a majority, and snapshots
    /// that were not given to a peer.
    pub(super) fn counted(&self) -> [u64; 5] {
        let Counts { equal, diverged, repaired, undecided, withheld } = &self.counts;
        [equal, diverged, repaired, undecided, withheld].map(|count| count.load(Ordering::Relaxed))
    }
}

fn pause_before(strikes: u32) -> Duration {
    match strikes.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => PAUSE_MIN.saturating_mul(1 << doublings.min(16)).min(PAUSE_MAX),
    }
}

fn between(quarantine: &Quarantine) -> String {
    let Quarantine { equal_until, consistency_check, .. } = quarantine;
    match equal_until {
        0 => format!("what came of the entries up to {} differs", consistency_check.index),
        from => {
            format!("up to entry {from} all was equal, at {} it is not", consistency_check.index)
        }
    }
}

fn record(quarantine: &Quarantine) -> Vec<u8> {
    let Quarantine { equal_until, consistency_check, at, .. } = *quarantine;
    let consistency_check = Some(consistency_check_to_wire(&consistency_check));
    wire::Quarantine { equal_until, consistency_check, at }.encode_to_vec()
}

fn quarantine_from_record(record: Vec<u8>) -> io::Result<Quarantine> {
    let malformed = |reason: String| {
        let reason = format!("the record of this node's quarantine is damaged: {reason}");
        io::Error::new(io::ErrorKind::InvalidData, reason)
    };
    let record = wire::Quarantine::decode(Bytes::from(record));
    let wire::Quarantine { equal_until, consistency_check, at } =
        record.map_err(|error| malformed(error.to_string()))?;
    let consistency_check = consistency_check_from_wire(&consistency_check.unwrap_or_default())
        .map_err(|error| malformed(error.to_string()))?;
    Ok(Quarantine { equal_until, consistency_check, at, since: Instant::now() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn who_diverges_again_and_again_waits_longer_and_longer() {
        let pauses = [0, 1, 2, 3, 4, 40].map(|strikes| pause_before(strikes).as_secs());
        assert_eq!(pauses, [0, 0, 1, 2, 4, 300]);
    }

    #[test]
    fn a_quarantine_is_remembered_as_it_was() {
        let consistency_check =
            ConsistencyCheck { index: 20, digest: Digest([7; 32]), version: 2, begins: false };
        let quarantine =
            Quarantine { equal_until: 10, consistency_check, at: 21, since: Instant::now() };
        let again = quarantine_from_record(record(&quarantine)).unwrap();
        assert_eq!(Quarantine { since: quarantine.since, ..again }, quarantine);
        assert!(
            between(&quarantine).contains("up to entry 10")
                && between(&quarantine).contains("at 20")
        );
        let error = quarantine_from_record(vec![0x12, 0x02, 0x12, 0x00]).unwrap_err();
        assert!(error.to_string().contains("digest"), "{error}");
    }
}
