//! The log's time: the time that the leader stamps on entries, and the comparison of the members' clocks.
//!
//! A state machine's time passes only through the log, so a stamp decides which keys and leases
//! expire, on every node and permanently. A wall clock alone must not decide that.
//!
//! # Contract
//! 1. The leader's stamps continue from the log's own time at the pace of its monotonic clock,
//!    slewed towards the clock of a majority of the voters by at most 500 ppm. See [`log_clock`].
//! 2. A wall clock that jumps moves no stamp, on any node. A time far ahead of the
//!    log's pace is stamped only
//!    - after the whole cluster was down: then wall clocks are the only evidence of the duration,
//!      and the clocks of a majority of the voters must agree;
//!    - by an operator's `conclave cluster set-time`, which is an entry of the log.
//! 3. Every second, and as soon as another leader becomes known, each node compares its clock with
//!    every member's, and adopts the leader's log time. So a new leader continues where the last
//!    one ended. See [`offsets`].
//! 4. A node whose clock differs from the majority's by more than 500 ms reports that in its
//!    log, status and metrics.
//!
//! The monotonic clock is `CLOCK_BOOTTIME`: it also counts while the host is suspended.
//!
//! # Caveat
//! A suspended virtual machine cannot be distinguished from one whose wall clock was set. If all
//! nodes of a cluster were suspended together, the log's time is behind by that duration, as leases
//! on monotonic clocks are, until an operator sets the time or all nodes are restarted.

mod alarm;
mod exchange;
mod log_clock;
mod offsets;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub(super) use self::exchange::Clock;
use self::{
    alarm::Alarm,
    log_clock::{Evidence, LogClock, Nanos, ms_of_nanos, nanos_of_ms},
    offsets::{OFFSET_MAX, Offset, majority},
};
use super::boot_time::boot_time;
use conclave_types::{NodeId, status::ClockStatus};

/// The time for which a comparison of clocks counts.
const FRESH: Duration = Duration::from_secs(10);
/// The difference between the log's time and the majority's clock beyond which a node raises an alarm.
const LOG_OFFSET_MAX: Duration = Duration::from_secs(5);

/// A reading of this host's clocks.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall: Nanos,
    boot: Duration,
}

impl Reading {
    fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        Self { wall, boot: boot_time() }
    }
}

/// The result of one comparison with a peer.
#[derive(Clone, Copy, Debug)]
struct Compared {
    at: Duration,
    offset: Offset,
    /// The peer's log time at `at`, if the peer has followed the log's pace.
    log_time: Option<Nanos>,
}

/// This node's estimate of the log's time, and its comparisons with the members' clocks.
pub(super) struct Time {
    node_id: NodeId,
    state: Mutex<State>,
    /// The latest applied stamp, in milliseconds. Separate from `state`, so that applying takes no lock.
    latest_stamp_ms: AtomicU64,
    /// Held while a leader determines the log's time.
    settling: tokio::sync::Mutex<()>,
}

struct State {
    clock: LogClock,
    compared: BTreeMap<NodeId, Compared>,
    /// The sets of voters, as of the last comparison.
    voters: Vec<BTreeSet<NodeId>>,
    /// The majority's clock as an offset from this node's own, and the time of that result. Kept
    /// because every stamp needs it.
    majority: Option<(Duration, i128)>,
    /// The time of the last comparison for [`LogClock::settle`].
    settled_at: Option<Duration>,
    alarm: Option<Alarm>,
}

impl State {
    /// Determines again which clock a majority shares.
    fn refresh(&mut self, node_id: NodeId, now: Reading) {
        let fresh = self.fresh(now).map(|(id, compared)| (id, compared.offset));
        let mut offsets: BTreeMap<_, _> = fresh.collect();
        offsets.insert(node_id, Offset::OWN);
        self.majority = majority(&self.voters, &offsets).map(|offset| (now.boot, offset));
    }

    /// Returns whether further responses can change little: a majority shares a clock, and a
    /// peer knows the log's pace.
    fn is_decided(&mut self, node_id: NodeId, now: Reading) -> bool {
        self.refresh(node_id, now);
        self.majority.is_some() && self.fresh(now).any(|(_, one)| one.log_time.is_some())
    }

    /// Returns the majority's clock, as an offset from this node's own.
    fn majority(&self, now: Reading) -> Option<i128> {
        let (at, offset) = self.majority?;
        (now.boot.saturating_sub(at) < FRESH).then_some(offset)
    }

    fn fresh(&self, now: Reading) -> impl Iterator<Item = (NodeId, &Compared)> {
        let compared = self.compared.iter();
        let fresh = compared.filter(move |(_, one)| now.boot.saturating_sub(one.at) < FRESH);
        fresh.map(|(id, one)| (*id, one))
    }

    fn majority_wall(&self, now: Reading) -> Option<Nanos> {
        self.majority(now).map(|offset| now.wall.saturating_add_signed(offset))
    }
}

impl Time {
    pub(super) fn new(node_id: NodeId) -> Self {
        Self {
            node_id,
            state: Mutex::new(State {
                clock: LogClock::new(boot_time()),
                compared: BTreeMap::new(),
                voters: Vec::new(),
                majority: None,
                settled_at: None,
                alarm: None,
            }),
            latest_stamp_ms: AtomicU64::new(0),
            settling: tokio::sync::Mutex::default(),
        }
    }

    /// Locks the state, with the stamps of the entries that were applied until now.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.latest_stamp_ms.load(Ordering::Relaxed);
        state.clock.observe(nanos_of_ms(stamp));
        state
    }

    /// Records the stamp of an applied entry.
    pub(super) fn observe(&self, stamp_ms: u64) {
        self.latest_stamp_ms.fetch_max(stamp_ms, Ordering::Relaxed);
    }

    /// Returns this node's estimate of the log's time, in milliseconds since the Unix epoch.
    pub(super) fn now_ms(&self) -> u64 {
        ms_of_nanos(self.state().clock.advance(boot_time(), None))
    }

    /// Returns whether this node's estimate follows the log's pace.
    fn follows(&self) -> bool {
        self.state().clock.is_known()
    }

    /// Returns the stamp for an entry that this node proposes as the leader. `None`: it does
    /// not know the log's pace.
    fn stamp_ms(&self) -> Option<u64> {
        let now = Reading::now();
        let mut state = self.state();
        if !state.clock.is_known() {
            return None;
        }
        let target = state.majority_wall(now);
        Some(ms_of_nanos(state.clock.advance(now.boot, target)))
    }

    /// Returns whether an entry with this stamp was proposed at most `most` ago.
    pub(super) fn is_within(&self, stamp_ms: u64, most: Duration) -> bool {
        let now = Reading::now();
        let mut state = self.state();
        let log_time = match state.clock.is_known() {
            true => state.clock.advance(now.boot, None),
            // This node has just started and applies its own log again.
            false => now.wall,
        };
        ms_of_nanos(log_time).abs_diff(stamp_ms) < most.as_millis() as u64
    }

    /// Returns this node's clock, for status and metrics.
    pub(super) fn status(&self) -> ClockStatus {
        let now = Reading::now();
        let mut state = self.state();
        let log_time = state.clock.advance(now.boot, None);
        let ms = |nanos: i128| i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX);
        let wall = state.majority_wall(now);
        ClockStatus {
            offset_ms: state.majority(now).map(|offset| ms(-offset)),
            log_time_ms: ms_of_nanos(log_time),
            log_offset_ms: wall.map(|wall| ms(difference(log_time, wall))),
            alarm: state.alarm.map(|alarm| alarm.to_string()).unwrap_or_default(),
        }
    }

    /// Checks the clocks, and logs when the result changes. Until this node has compared its clock
    /// with those of a majority, there is no alarm. Returns the fault of this node's own clock, if
    /// any: the node must not lead with it.
    fn check(&self) -> Option<String> {
        let now = Reading::now();
        let mut state = self.state();
        state.refresh(self.node_id, now);
        let log_time = state.clock.advance(now.boot, None);
        let heard = state.fresh(now).count() + 1;
        let voters = state.voters.iter().map(BTreeSet::len).max();
        let alarm = match state.majority(now) {
            Some(offset) if offset.unsigned_abs() > OFFSET_MAX.as_nanos() => {
                Some(Alarm::OwnClock(offset))
            }
            Some(offset) if state.clock.is_known() => {
                let ahead = difference(log_time, now.wall.saturating_add_signed(offset));
                let differs = ahead.unsigned_abs() > LOG_OFFSET_MAX.as_nanos();
                differs.then_some(Alarm::LogTime(ahead))
            }
            None if voters.is_some_and(|voters| heard * 2 > voters) => Some(Alarm::NoMajority),
            _ => None,
        };
        match (alarm, state.alarm) {
            (None, Some(_)) => tracing::info!("the clocks agree again"),
            (Some(alarm), before) if before.is_none_or(|before| !alarm.is_like(before)) => {
                tracing::warn!("{alarm}");
            }
            _ => {}
        }
        state.alarm = alarm;
        let own = alarm.filter(|alarm| matches!(alarm, Alarm::OwnClock(_)));
        own.map(|alarm| alarm.to_string())
    }
}

fn difference(time: Nanos, other: Nanos) -> i128 {
    let ahead = i128::try_from(time.abs_diff(other)).unwrap_or(i128::MAX);
    if time >= other { ahead } else { -ahead }
}
