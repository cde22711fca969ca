//! Checks for mistakes that all replicas make in the same way, so that no comparison of replicas
//! finds them.

use std::collections::BTreeMap;

use super::{
    Log, Operation,
    check::{CHUNK_BYTES, few_cuts, restore, save},
};
use crate::{Context, Machine};

/// Maximum number of failures per method that are checked. Each needs a snapshot before the call.
const FAILURES_PER_METHOD: usize = 8;
/// Maximum number of dropped wake-up times that are checked.
const DROPS_MAX: usize = 64;
/// One second, one minute, one hour, one day, one year.
const PAUSES_MS: [u64; 5] = [1_000, 60_000, 3_600_000, 86_400_000, 31_536_000_000];

/// Checks that a command that fails changes nothing except for effects of time: after a tick in the
/// same entry context, the state is the same with and without the command.
///
/// A failure is an ordinary reply, so hosts keep the changes that were made before it. The caller
/// would get a refusal although the state changed. [`check`](super::check) includes this check. A
/// state machine that intends to change something when it refuses, such as a count of refused
/// attempts, should return a reply instead.
pub fn check_failures<M: Machine>(log: &Log) {
    let mut machine = M::default();
    let failed: Vec<_> = log
        .entries()
        .iter()
        .map(|entry| match (&entry.operation, entry.apply_to(&mut machine)) {
            (Operation::Apply(call), Err(failure)) => Some((call.method.as_str(), failure)),
            _ => None,
        })
        .collect();

    let mut seen = BTreeMap::new();
    let mut machine = M::default();
    for (number, (entry, failed)) in log.entries().iter().zip(&failed).enumerate() {
        let wanted = failed.as_ref().filter(|(method, _)| {
            let seen: &mut usize = seen.entry(*method).or_default();
            *seen += 1;
            *seen <= FAILURES_PER_METHOD
        });
        let before = wanted.map(|(_, failure)| (failure, save(&machine, CHUNK_BYTES)));
        let _ = entry.apply_to(&mut machine);
        if let Some((failure, before)) = before {
            let after = save(&machine, CHUNK_BYTES);
            let by_time = || {
                let expected = ticked::<M>(&before, number, &entry.context);
                after == expected || expected == ticked::<M>(&after, number + 1, &entry.context)
            };
            assert!(
                after == before || by_time(),
                "entry {number} ({entry}) failed and changed the state ({}). Changes before a failure \
                 are kept: check everything first, then change. The failure: {failure}",
                difference(&before, &after)
            );
        }
    }
}

/// Checks that no wake-up is lost: if a tick at a later time would change the state because of the
/// time, the state must request a wake-up by then.
///
/// Examines each entry after which a pending wake-up time is gone or later. Also examines a few
/// positions along the log, with pauses of one second to one year. [`check`](super::check) includes
/// this check.
pub fn check_wake_ups<M: Machine>(log: &Log) {
    let places: Vec<_> = few_cuts(log.entries().len()).collect();
    let mut machine = M::default();
    let mut pending: Option<u64> = None;
    let mut drops = 0;
    for (number, entry) in log.entries().iter().enumerate() {
        let outcome = entry.apply_to(&mut machine);
        let before = pending;
        if outcome.is_ok() {
            pending = machine.wake_at();
        }
        let now_ms = entry.context.time_ms;
        let mut candidates = Vec::new();
        // A time in the past proves nothing: a tick now may change the state regardless of the time.
        if let Some(before) = before.filter(|before| *before > now_ms)
            && is_after(pending, before)
            && drops < DROPS_MAX
        {
            drops += 1;
            candidates.push(before);
        }
        if places.contains(&(number + 1)) {
            candidates.extend(PAUSES_MS.map(|pause_ms| now_ms.saturating_add(pause_ms)));
        }
        candidates.retain(|at_ms| is_after(pending, *at_ms));
        if candidates.is_empty() {
            continue;
        }
        let state = save(&machine, CHUNK_BYTES);
        let now = ticked::<M>(&state, number + 1, &entry.context);
        for at_ms in candidates {
            let then = Context { time_ms: at_ms, ..entry.context.clone() };
            let ticked = ticked::<M>(&state, number + 1, &then);
            assert!(
                ticked == state || ticked == now,
                "after entry {number} ({entry}) at {now_ms} ms the wake-up time is {pending:?}{}, and a tick at \
                 {at_ms} ms would change the state ({}). No tick comes before the wake-up time: `Machine::wake_at` must \
                 return the earliest time at which something is due",
                match before {
                    Some(before) => format!(", before it was {before}"),
                    None => String::new(),
                },
                difference(&state, &ticked)
            );
        }
    }
}

/// Returns whether the wake-up time is later than `at_ms` or absent.
fn is_after(wake_at: Option<u64>, at_ms: u64) -> bool {
    wake_at.is_none_or(|wake_at| wake_at > at_ms)
}

/// Returns the snapshot of the state after a tick in this context.
fn ticked<M: Machine>(state: &[u8], cut: usize, context: &Context) -> Vec<u8> {
    let mut machine = restore::<M>(state, CHUNK_BYTES, cut);
    machine.tick(context);
    save(&machine, CHUNK_BYTES)
}

fn difference(left: &[u8], right: &[u8]) -> String {
    let same = left.iter().zip(right).take_while(|(left, right)| left == right).count();
    format!(
        "the snapshots have {} and {} bytes, and differ from byte {same} on",
        left.len(),
        right.len()
    )
}
