//! Diverged replicas: detected, reported, quarantined and repaired.
//!
//! Every replica keeps a digest of the outcomes of its entries. From time to time
//! [`consistency_checks`] makes the leader put the digest of a majority into the log, and each
//! replica compares its own digest when it applies such an entry.
//!
//! A replica that differs is in *quarantine*: [`Divergence`] reports that, requests are rejected,
//! and no more entries are applied, while the log continues. [`repair`] fetches a healthy peer's
//! snapshot and ends the quarantine. [`verify`] compares the states themselves, on request.
//!
//! # Contract
//! - **A replica in quarantine serves no request.** Calls are rejected with the reason, its health
//!   is not serving, and it neither sends snapshots nor takes its own.
//! - A majority of the voters decides which digest counts, through the log. The leader's own
//!   digest does not decide.
//! - **Votes are counted by lineage.** A node that has restored a peer's state votes together
//!   with that peer, its *origin*, until it has agreed with a consistency check: a copy is
//!   not independent evidence.
//! - While replicas disagree and no majority decides, a leader sends no snapshot of a
//!   disputed state and takes none of its own. So its log keeps the entries with which a
//!   returning node can decide.
//! - A quarantine survives a restart.
//!
//! # Caveats
//! - Until the next consistency check, a diverged replica still serves requests.
//! - The digest covers outcomes. If a state was damaged before a snapshot, and the damage affects
//!   no outcome until the node that restored the snapshot has agreed with a check, the two nodes
//!   count as two lineages. `cluster verify` detects such damage.
//! - Digests of different versions of the algorithm are not compared, and quarantine no node. After
//!   an upgrade that changes the algorithm, the leader makes all digests start again at one entry.
//! - If no majority has the same digest, there is no consistency check, but an error in the log and
//!   a metric. If every voter differs from the digest that a majority once had, no node can repair
//!   another. With an interval of 0, consistency checks are neither proposed nor compared,
//!   including past ones: every node then serves the state that it has.

mod consistency_checks;
mod digests;
mod giving;
mod lineage;
mod repair;
mod state_hashes;
mod verify;

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;

pub(super) use self::{
    consistency_checks::ConsistencyChecks,
    digests::{Digests, heard_to_wire as digest_to_wire},
    giving::Giving,
    repair::Repairs,
    state_hashes::StateHashes,
    verify::{StateHashChecks, to_wire as verified_to_wire},
};
use super::Metrics;
use conclave_proto::{
    convert::{consistency_check_from_wire, consistency_check_to_wire},
    raft as wire,
};
use conclave_storage::LogStore;
use conclave_types::{ConsistencyCheck, Digest, NodeId};

/// The name of the metadata entry that stores a quarantine.
const RECORD: &str = "quarantine";
/// The pause before a node that has diverged again is repaired. The first repair starts at once;
/// further divergences double the pause.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// The longest time for which a leader takes no snapshots while the voters disagree. The log grows
/// during that time. A node that returns within it finds the entries with which it can decide.
const HOLD_MAX: Duration = Duration::from_secs(600);
/// The time of agreement after which earlier divergences no longer count.
const FORGIVEN_AFTER: Duration = Duration::from_secs(3600);

/// This node's agreement with the other replicas.
pub(super) struct Divergence {
    log: LogStore,
    node_id: NodeId,
    compares: bool,
    state: Mutex<State>,
    /// The time since when voters disagree and no majority decides, as far as this
    /// node knows as the leader.
    disputed_since: Mutex<Option<Instant>>,
    /// Set while the last snapshot requested by a peer was withheld.
    refused_snapshot: AtomicBool,
    /// Set while the state machine must apply nothing.
    stopped: AtomicBool,
    /// Set while requests are rejected. Lasts longer than `stopped`: until the missed
    /// entries are applied too.
    refusing: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    last_equal: Option<ConsistencyCheck>,
    /// The node that computed the state.
    origin: NodeId,
    /// The index of the last restored state.
    restored_at: u64,
    quarantine: Option<Quarantine>,
    /// The number of recent divergences.
    strikes: u32,
    healed_at: Option<Instant>,
    /// A description of the last repaired divergence, for operators.
    last: String,
}

/// The divergence for which this node is in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quarantine {
    /// The last consistency check with equal digests; 0 if none was compared.
    pub(super) equal_until: u64,
    /// The consistency check with different digests. It contains the majority's digest.
    pub(super) consistency_check: ConsistencyCheck,
    /// The index of the entry with that check, at which the state machine has stopped.
    pub(super) at: u64,
    /// The time at which the divergence was detected.
    pub(super) since: Instant,
}

impl Divergence {
    /// Restores the state from before the restart. If checks are not compared, a
    /// stored quarantine is removed.
    pub(super) fn open(
        log: LogStore,
        node_id: NodeId,
        compares: bool,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
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
            metrics,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether consistency checks are compared.
    pub(super) fn compares(&self) -> bool {
        self.compares
    }

    /// Returns whether entries must not be applied, and the state must not be used.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Returns the quarantine of this node, if it is in one.
    pub(super) fn quarantine(&self) -> Option<Quarantine> {
        if !*self.refusing.borrow() {
            return None;
        }
        self.state().quarantine
    }

    /// Returns whether requests are rejected, and its changes.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.refusing.subscribe()
    }

    /// Returns the reason why requests are rejected, if they are.
    pub(super) fn why(&self) -> Option<String> {
        let quarantine = self.quarantine()?;
        let strikes = self.state().strikes;
        let again = match strikes {
            0 | 1 => String::new(),
            times => format!(" again ({times} times; probably not deterministic)"),
        };
        Some(format!(
            "this node's state machine has diverged from the majority{again}: {}; a peer's state is replacing it",
            between(&quarantine)
        ))
    }

    /// Returns the number of divergences, and a description of the last repaired one for operators.
    pub(super) fn past(&self) -> (u64, String) {
        (self.metrics.divergences.get(), self.state().last.clone())
    }

    /// Returns the last consistency check with which this node agreed since it started.
    pub(super) fn last_equal(&self) -> Option<ConsistencyCheck> {
        self.state().last_equal
    }

    /// Returns the node that computed this node's state.
    pub(super) fn origin(&self) -> NodeId {
        self.state().origin
    }

    /// Records that a snapshot has replaced the state. Without an origin it is this node's own snapshot.
    pub(super) fn restored(&self, origin: Option<NodeId>, index: u64) {
        let mut state = self.state();
        state.origin = origin.unwrap_or(self.node_id);
        state.restored_at = index;
    }

    /// Returns whether this node, as the leader, takes no snapshot because the voters disagree and
    /// no majority decides. Lasts for at most [`HOLD_MAX`].
    pub(super) fn holds_snapshots(&self) -> bool {
        let since = *self.disputed_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < HOLD_MAX)
    }

    fn set_disputed(&self, disputed: bool) {
        let mut since = self.disputed_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = disputed.then(|| since.unwrap_or_else(Instant::now));
    }

    /// Counts a snapshot that is withheld from a peer, and logs it once until a snapshot is sent again.
    pub(super) fn note_given(&self, to: NodeId, refusal: Option<&str>) {
        if refusal.is_some() {
            self.metrics.snapshots_withheld.inc();
        }
        let refused = self.refused_snapshot.swap(refusal.is_some(), Ordering::Relaxed);
        if let Some(why) = refusal
            && !refused
        {
            tracing::warn!(to, why, "withholding a snapshot from a peer that needs one");
        }
    }

    /// Applies a consistency check at index `at`. `own` is this node's digest, if it is still known.
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
            // The digest up to the restored state is a copy as well, so its agreement proves nothing.
            if consistency_check.index > state.restored_at {
                state.origin = self.node_id;
            }
            self.metrics.checks_equal.inc();
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
        self.metrics.divergences.inc();
        tracing::error!(
            index = at,
            own = %own,
            majority = %consistency_check.digest,
            "this node's state machine has diverged: {}",
            between(&quarantine)
        );
        drop(state);
        // If a crash loses the metadata entry, it is written again: the digest never
        // becomes equal by itself.
        if let Err(error) = self.log.put_record(RECORD, Some(record(&quarantine))) {
            tracing::warn!(%error, "cannot store the quarantine");
        }
    }

    /// Returns the remaining pause before the repair of the quarantine.
    fn pause(&self) -> Duration {
        let state = self.state();
        let Some(since) = state.quarantine.map(|quarantine| quarantine.since) else {
            return Duration::ZERO;
        };
        pause_before(state.strikes).saturating_sub(since.elapsed())
    }

    /// Permits entries again: a healthy state has reached the position that openraft assumes.
    /// Requests are rejected until [`Divergence::repaired`].
    pub(super) fn resume(&self) {
        self.stopped.store(false, Ordering::Release);
    }

    /// Ends the quarantine once the state machine has reached the end of the log. Returns whether
    /// it ended: the entries applied since may contain another consistency check that differs.
    pub(super) fn repaired(&self, index: u64) -> bool {
        let mut state = self.state();
        if self.is_stopped() {
            return false;
        }
        let Some(quarantine) = state.quarantine.take() else { return false };
        let took = quarantine.since.elapsed();
        state.healed_at = Some(Instant::now());
        // The state comes from a peer that agreed with this check.
        state.last_equal = Some(quarantine.consistency_check);
        state.last = format!(
            "{}; repaired after {} ms with a peer's state at index {index}",
            between(&quarantine),
            took.as_millis()
        );
        drop(state);
        self.metrics.repairs.inc();
        if let Err(error) = self.log.put_record(RECORD, None) {
            tracing::warn!(%error, "cannot remove the stored quarantine");
        }
        self.refusing.send_replace(false);
        tracing::warn!(
            index,
            took_ms = took.as_millis() as u64,
            "this node's state was replaced by a peer's state, and this node serves again"
        );
        true
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
        0 => format!("the outcomes of the entries up to {} differ", consistency_check.index),
        from => {
            format!(
                "all outcomes up to entry {from} were equal, but those up to {} differ",
                consistency_check.index
            )
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
        let reason = format!("the metadata entry of this node's quarantine is damaged: {reason}");
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
                && between(&quarantine).contains("up to 20")
        );
        let error = quarantine_from_record(vec![0x12, 0x02, 0x12, 0x00]).unwrap_err();
        assert!(error.to_string().contains("digest"), "{error}");
    }
}
