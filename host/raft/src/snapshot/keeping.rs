//! The retention of the log, and the slowdown of writers when a follower needs more of it.
//!
//! # Contract
//! - Before the newest snapshot, at most `keep_entries` entries and at most `keep_bytes`
//!   bytes of the log are kept.
//! - A leader keeps more for a follower that is catching up: the log after the snapshot that it is
//!   sending, and then the log from the follower's position, up to `catch_up_bytes`. A follower
//!   that responds to no heartbeat, or makes no progress for [`PATIENCE`], is not waited for.
//! - When half of `catch_up_bytes` are used, the leader limits the rate of commands so that the
//!   rest lasts ([`rate`]). Writers slow down to the pace of the follower, but never stop: at
//!   least [`RATE_MIN`] bytes per second are admitted. A slower follower falls out of the log
//!   and gets another snapshot.
//!
//! # Caveats
//! openraft itself does not purge entries that it is sending to a follower. So a follower
//! that receives the log at less than `RATE_MIN` keeps more than `catch_up_bytes`, for as
//! long as its connection lives.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openraft::{Instant as _, async_runtime::WatchReceiver};
use tokio::time::{Instant, sleep, sleep_until};

use super::Transfers;
use crate::{node::Node, settings::SnapshotPolicy};
use conclave_storage::raft_types::LogId;
use conclave_types::{NodeId, error::Error};

/// The interval at which the retention is decided. Polled, because the log and the followers'
/// positions change with each entry, and a silent follower raises no event.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The time for which a follower without progress is still waited for. With a hung disk a follower
/// responds to heartbeats and accepts no entries.
const PATIENCE: Duration = Duration::from_secs(30);
/// The minimum number of entries to purge. Purging fewer is not worth its cost.
const PURGE_COUNT_MIN: u64 = 256;
/// The time in which the admitted rate would use up the rest of `catch_up_bytes`, if
/// the rate stayed the same.
const HORIZON: Duration = Duration::from_secs(30);
/// The rate that is always admitted, in bytes per second.
const RATE_MIN: u64 = 64 << 10;

/// The followers' positions in the log, and the times since when they stand there.
#[derive(Default)]
struct Followers(BTreeMap<NodeId, (u64, Instant)>);

impl Followers {
    /// Records the followers' positions. Returns the lowest position of a follower that is waited for.
    fn lowest(&mut self, matched: &BTreeMap<NodeId, u64>, now: Instant) -> Option<u64> {
        self.0.retain(|node_id, _| matched.contains_key(node_id));
        for (node_id, index) in matched {
            let known = self.0.entry(*node_id).or_insert((*index, now));
            if known.0 != *index {
                *known = (*index, now);
            }
        }
        let waited_for = self.0.values().filter(|(_, since)| now - *since < PATIENCE);
        waited_for.map(|(index, _)| *index).min()
    }
}

/// The extent and size of the log, for [`purge_to`].
#[derive(Clone, Copy)]
struct Extent {
    /// The index of the newest snapshot.
    snapshot: u64,
    /// The first index after which the log has at most `keep_bytes`.
    within_keep_bytes: u64,
    /// The index after which a follower needs the log, and the size of that part in bytes.
    needed: Option<(u64, u64)>,
}

/// Returns the index up to which the log is purged.
fn purge_to(extent: Extent, policy: SnapshotPolicy) -> u64 {
    let Extent { snapshot, within_keep_bytes, needed } = extent;
    let by_count = snapshot.saturating_sub(policy.keep_entries);
    let by_bytes = within_keep_bytes.saturating_sub(1).min(snapshot);
    let to = by_count.max(by_bytes);
    match needed {
        Some((index, bytes)) if bytes <= policy.catch_up_bytes => to.min(index),
        _ => to,
    }
}

/// Returns the admitted rate in bytes per second while a follower needs so many bytes
/// of log. `None`: no limit.
fn rate(needed_bytes: u64, policy: SnapshotPolicy) -> Option<u64> {
    let most = policy.catch_up_bytes;
    let left = most.checked_sub(needed_bytes)?;
    (left < most / 2).then(|| (left / HORIZON.as_secs()).max(RATE_MIN))
}

/// Purges the log, and slows writers down if necessary, until Raft has stopped.
pub(crate) async fn keep_log(
    node: Arc<Node>,
    transfers: Arc<Transfers>,
    admission: Arc<Admission>,
    policy: SnapshotPolicy,
) {
    let (mut followers, mut slowed, mut purging_to) = (Followers::default(), false, 0);
    loop {
        sleep(POLL_INTERVAL).await;
        let index = |log_id: &Option<LogId>| log_id.as_ref().map_or(0, |log_id| log_id.index);
        let (snapshot, purged, matched) = {
            let metrics = node.raft.metrics();
            let metrics = metrics.borrow_watched();
            let heard = |node_id: &NodeId| {
                let heard =
                    metrics.heartbeat.as_ref().and_then(|heard| heard.get(node_id)?.as_ref());
                heard.is_some_and(|heard| heard.elapsed() < node.timing.election_max)
            };
            let matched = metrics.replication.iter().flatten();
            let others = matched.filter(|(node_id, _)| **node_id != node.id() && heard(node_id));
            let matched: BTreeMap<_, _> =
                others.map(|(node_id, log_id)| (*node_id, index(log_id))).collect();
            (index(&metrics.snapshot), index(&metrics.purged), matched)
        };
        // A follower that needs a snapshot anyway has a position before the log.
        let matched = matched.into_iter().filter(|(_, index)| *index >= purged).collect();
        let following = followers.lowest(&matched, Instant::now());
        let sending = transfers.lowest().filter(|_| node.is_leader());
        let needed = following.into_iter().chain(sending).min();
        let needed = needed.map(|index| (index, node.log.bytes_after(index)));
        let limit = needed.and_then(|(_, bytes)| rate(bytes, policy));
        if limit.is_some() != slowed {
            slowed = limit.is_some();
            match limit {
                Some(bytes_per_second) => tracing::warn!(
                    bytes_per_second,
                    "writers are slowed down: a follower that is catching up needs more than half of catch_up_bytes"
                ),
                None => tracing::info!("writers are no longer slowed down"),
            }
        }
        admission.limit(limit);
        let within_keep_bytes = node.log.first_within(policy.keep_bytes);
        let to = purge_to(Extent { snapshot, within_keep_bytes, needed }, policy);
        // openraft retries by itself if it is sending entries that are to be purged.
        if to >= purged.saturating_add(PURGE_COUNT_MIN) && to > purging_to {
            purging_to = to;
            if node.raft.trigger().purge_log(to).await.is_err() {
                return;
            }
        }
    }
}

/// Admits commands at a limited rate.
pub(crate) struct Admission(Mutex<Gate>);

struct Gate {
    /// The limit in bytes per second.
    limit: Option<u64>,
    /// The time at which the next command may pass.
    next: Instant,
}

impl Default for Admission {
    fn default() -> Self {
        Self(Mutex::new(Gate { limit: None, next: Instant::now() }))
    }
}

impl Admission {
    fn limit(&self, limit: Option<u64>) {
        let mut gate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gate.limit = limit;
    }

    /// Waits until a command of so many bytes is admitted.
    ///
    /// # Errors
    /// Fails if the command would be admitted only after the deadline. The command has had no effect.
    pub(crate) async fn wait(&self, bytes: usize, deadline: Instant) -> Result<(), Error> {
        let turn = {
            let mut gate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(limit) = gate.limit else { return Ok(()) };
            let turn = gate.next.max(Instant::now());
            if turn >= deadline {
                return Err(Error::busy(
                    "writers are slowed down until a follower has caught up (catch_up_bytes): try again",
                ));
            }
            gate.next = turn + Duration::from_secs_f64(bytes as f64 / limit as f64);
            turn
        };
        sleep_until(turn).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const POLICY: SnapshotPolicy = SnapshotPolicy {
        entries: 1_000,
        bytes: 1 << 20,
        interval: None,
        interval_entries: 1,
        keep_entries: 100,
        keep_bytes: 1 << 20,
        catch_up_bytes: 64 << 20,
        stall: Duration::from_secs(30),
    };

    #[test]
    fn log_is_kept_by_count_and_by_bytes() {
        let extent = Extent { snapshot: 1_000, within_keep_bytes: 1, needed: None };
        assert_eq!(purge_to(extent, POLICY), 900);
        let large = Extent { within_keep_bytes: 951, ..extent };
        assert_eq!(purge_to(large, POLICY), 950, "the limit on bytes is reached first");
        let larger = Extent { within_keep_bytes: 2_000, ..extent };
        assert_eq!(purge_to(larger, POLICY), 1_000, "not beyond the snapshot");
        assert_eq!(purge_to(Extent { snapshot: 0, ..extent }, POLICY), 0);
    }

    #[test]
    fn log_that_a_follower_needs_is_kept_up_to_the_limit() {
        let needed =
            |bytes| Extent { snapshot: 1_000, within_keep_bytes: 951, needed: Some((500, bytes)) };
        assert_eq!(purge_to(needed(64 << 20), POLICY), 500);
        assert_eq!(purge_to(needed((64 << 20) + 1), POLICY), 950);
    }

    #[test]
    fn writers_slow_down_and_never_stop() {
        assert_eq!(rate(32 << 20, POLICY), None);
        let half = rate((32 << 20) + 1, POLICY).unwrap();
        assert!(half > 1 << 20, "{half}");
        assert_eq!(rate((64 << 20) - 1, POLICY), Some(RATE_MIN));
        assert_eq!(rate((64 << 20) + 1, POLICY), None, "the follower is no longer waited for");
        // Even if writers use the whole rate, the limit is not reached for a long time.
        let (mut used, mut seconds) = ((32 << 20) + 1, 0);
        while let Some(rate) = rate(used, POLICY) {
            (used, seconds) = (used + rate, seconds + 1);
        }
        assert!(seconds > 60, "{seconds}");
    }

    #[test]
    fn follower_without_progress_is_not_waited_for() {
        let (mut followers, start) = (Followers::default(), Instant::now());
        let at = |two, three| BTreeMap::from([(2, two), (3, three)]);
        assert_eq!(followers.lowest(&at(10, 5), start), Some(5));
        assert_eq!(followers.lowest(&at(20, 5), start + PATIENCE / 2), Some(5));
        assert_eq!(followers.lowest(&at(30, 5), start + PATIENCE), Some(30));
        assert_eq!(followers.lowest(&at(30, 6), start + PATIENCE), Some(6));
        let without_three = BTreeMap::from([(2, 30)]);
        assert_eq!(followers.lowest(&without_three, start + PATIENCE), Some(30), "node 3 has left");
    }

    #[tokio::test]
    async fn admission_spaces_commands_and_refuses_what_would_be_late() {
        let (admission, start) = (Admission::default(), Instant::now());
        let deadline = start + Duration::from_secs(5);
        for _ in 0..100 {
            admission.wait(1 << 20, deadline).await.unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(5), "there is no limit");
        admission.limit(Some(10 << 20));
        let start = Instant::now();
        for tenth in 0..4 {
            admission.wait(1 << 20, start + Duration::from_secs(60)).await.unwrap();
            assert!(start.elapsed() >= Duration::from_millis(100) * tenth, "{tenth}");
        }
        admission.wait(100 << 20, start + Duration::from_secs(60)).await.unwrap();
        admission.wait(1, Instant::now() + Duration::from_secs(5)).await.unwrap_err();
        admission.limit(None);
        admission.wait(1 << 20, Instant::now()).await.unwrap();
    }
}
