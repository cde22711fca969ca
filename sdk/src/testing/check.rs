//! The conformance tests for replay, snapshots, queries and restores. Each reaches the same state
//! in two ways and compares the results.

use std::fmt::Debug;

use super::{Entry, Log, Operation, Outcome, check_failures, check_methods, check_wake_ups};
use crate::{Machine, Subscription, snapshot::SnapshotReader};

/// Maximum number of positions at which a log is cut: all of a short log, evenly spread ones of a
/// long log.
const CUTS_MAX: usize = 48;
/// Number of positions for the expensive checks. Each replays the log up to the position, and some
/// hundred entries more.
const FEW_CUTS: usize = 6;
/// Snapshots longer than this are not read in chunks of one byte, which would take too long.
const SINGLE_BYTES_MAX: usize = 16 << 10;
/// The chunk size of a snapshot where the size does not matter.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_BYTES: [usize; 4] = [CHUNK_BYTES, 4096, 61, 1];

/// An outcome and the wake-up time of the state after it.
#[derive(Debug, PartialEq)]
struct Seen {
    outcome: Outcome,
    wake_at: Option<u64>,
}

impl Seen {
    fn of<M: Machine>(entry: &Entry, machine: &mut M) -> Self {
        let outcome = entry.apply_to(machine);
        Self { outcome, wake_at: machine.wake_at() }
    }
}

/// Runs all conformance tests on one log.
pub fn check<M: Machine>(log: &Log) {
    check_description::<M>();
    check_methods::<M>();
    check_replay::<M>(log);
    check_snapshots::<M>(log);
    check_queries::<M>(log);
    check_afterwards::<M>(log);
    check_failures::<M>(log);
    check_wake_ups::<M>(log);
}

/// Applies a log to a new state machine. Returns the state machine and the outcomes.
pub fn run<M: Machine>(log: &Log) -> (M, Vec<Outcome>) {
    let (machine, seen) = play(log);
    (machine, seen.into_iter().map(|seen| seen.outcome).collect())
}

fn play<M: Machine>(log: &Log) -> (M, Vec<Seen>) {
    let mut machine = M::default();
    let seen = log.entries().iter().map(|entry| Seen::of(entry, &mut machine)).collect();
    (machine, seen)
}

/// Checks that the description of the state machine is within the contract's bounds.
pub fn check_description<M: Machine>() {
    for (what, text) in [("NAME", M::NAME), ("VERSION", M::VERSION)] {
        let bytes = text.len();
        assert!((1..=64).contains(&bytes), "{what} has {bytes} bytes; it may have 1 to 64");
    }
    assert!(
        M::RESTORES.contains(&M::STATE_VERSION),
        "RESTORES {:?} does not contain STATE_VERSION {}, so its own snapshots could not be restored",
        M::RESTORES,
        M::STATE_VERSION
    );
}

/// Checks that applying a log twice gives the same outcomes and the same snapshot. Detects a hidden
/// `static`, a clock or a random number.
pub fn check_replay<M: Machine>(log: &Log) {
    let (first, expected) = play::<M>(log);
    let first = save(&first, CHUNK_BYTES);
    let (second, outcomes) = play::<M>(log);
    compare_outcomes(log, 0, &expected, &outcomes, "the same log, applied twice");
    compare_bytes(
        &first,
        &save(&second, CHUNK_BYTES),
        "snapshots after the same log, applied twice",
    );
}

/// Checks that two logs that lead to the same state also lead to the same snapshot. The caller
/// guarantees that the states are equal. Detects a snapshot in order of insertion.
pub fn check_same_state<M: Machine>(left: &Log, right: &Log) {
    let (left, right) = (run::<M>(left).0, run::<M>(right).0);
    compare_bytes(
        &save(&left, CHUNK_BYTES),
        &save(&right, CHUNK_BYTES),
        "snapshots of the same state, reached in two ways",
    );
}

/// Checks snapshots taken at positions along the log. Each snapshot
///
/// - has the same bytes in chunks of any size, also if it is read while later entries are applied;
/// - restores to a state machine that has the same snapshot, gives the same outcomes for the rest
///   of the log, and reaches the same final state.
///
/// Detects a field that is not saved, and a snapshot that depends on how the state was reached.
pub fn check_snapshots<M: Machine>(log: &Log) {
    let (whole, expected) = play::<M>(log);
    let end = save(&whole, CHUNK_BYTES);

    let mut machine = M::default();
    let mut open = Vec::new();
    for cut in 0..=log.entries().len() {
        if is_cut(cut, log.entries().len()) {
            let bytes = save_in_every_way(&machine, cut);
            let mut reader = machine.snapshot();
            let begun = reader.read(61);
            check_restored::<M>(log, cut, &bytes, &expected, &end);
            open.push((cut, bytes, reader, begun));
        }
        if let Some(entry) = log.entries().get(cut) {
            // If the restored state machines changed a `static`, this outcome shows it.
            let seen = Seen::of(entry, &mut machine);
            compare_outcome(
                log,
                cut,
                expected.get(cut),
                &seen,
                "the log applied with snapshots in between",
            );
        }
    }
    for (cut, bytes, mut reader, mut read) in open {
        read.extend(read_chunks(&mut *reader, 61));
        let what = format!("the snapshot after {cut} entries, read before and after later ones");
        compare_bytes(&bytes, &read, &what);
    }
}

/// Checks that queries and subscriptions do not change the state, and that a restored state machine
/// gives the same replies as the original.
pub fn check_queries<M: Machine>(log: &Log) {
    let mut machine = M::default();
    for applied in 0..=log.entries().len() {
        if is_cut(applied, log.entries().len()) {
            let context = log.query_context(applied);
            let before = save(&machine, CHUNK_BYTES);
            let restored = restore::<M>(&before, CHUNK_BYTES, applied);
            for call in log.subscriptions() {
                let method = &call.method;
                let answer = machine.subscribe(&context, call);
                assert_eq!(
                    answer,
                    restored.subscribe(&context, call),
                    "after {applied} entries, {method} began differently once restored"
                );
                if let Ok(Subscription { from_topic, to_topic, .. }) = &answer {
                    assert!(
                        to_topic.is_empty() || from_topic <= to_topic,
                        "after {applied} entries, the range of {method} ends before it begins"
                    );
                }
                let what = format!("snapshots before and after the subscription {method}");
                compare_bytes(&before, &save(&machine, CHUNK_BYTES), &what);
            }
            for query in log.queries() {
                let method = &query.method;
                let answer = machine.query(&context, query);
                assert_eq!(
                    answer,
                    machine.query(&context, query),
                    "after {applied} entries, {method} answered differently when asked again"
                );
                assert_eq!(
                    answer,
                    restored.query(&context, query),
                    "after {applied} entries, {method} answered differently once restored"
                );
                let what = format!("snapshots before and after the query {method}");
                compare_bytes(&before, &save(&machine, CHUNK_BYTES), &what);
            }
        }
        if let Some(entry) = log.entries().get(applied) {
            // Outcomes are compared by the other checks.
            let _ = entry.apply_to(&mut machine);
        }
    }
}

/// Checks that a restored state machine behaves like the original afterwards. Both get the same
/// entries: ticks, at once and after growing pauses, and the log's own commands once more.
/// Outcomes, query replies and snapshots must be equal.
///
/// Detects wrong fields that are derived from the state and maintained along the log (counters,
/// indexes, queues of times): a restore computes them again and gets other values.
pub fn check_afterwards<M: Machine>(log: &Log) {
    for cut in few_cuts(log.entries().len()) {
        let mut lived = M::default();
        for entry in log.entries().get(..cut).unwrap_or_default() {
            let _ = entry.apply_to(&mut lived);
        }
        let mut restored = restore::<M>(&save(&lived, CHUNK_BYTES), CHUNK_BYTES, cut);
        let more = log.afterwards(cut);
        let what = format!("after {cut} entries, a restored state machine and the original");
        for (number, entry) in more.entries().iter().enumerate() {
            let seen = Seen::of(entry, &mut lived);
            let what = format!("{what}, given the same entries");
            compare_outcome(&more, number, Some(&seen), &Seen::of(entry, &mut restored), &what);
            if matches!(entry.operation, Operation::Tick) {
                let what = format!("{what}: snapshots after {entry}");
                compare_bytes(&save(&lived, CHUNK_BYTES), &save(&restored, CHUNK_BYTES), &what);
            }
        }
        let context = more.query_context(more.entries().len());
        for query in log.queries() {
            let method = &query.method;
            assert_eq!(
                lived.query(&context, query),
                restored.query(&context, query),
                "{what} answer {method} differently after later entries"
            );
        }
    }
}

/// Checks that a restored state machine equals the original, including fields that are not part of
/// the snapshot. Requires `PartialEq` and `Debug`. No other check finds a wrong derived field
/// before a reply depends on it.
pub fn check_derived<M: Machine + PartialEq + Debug>(log: &Log) {
    let mut machine = M::default();
    for cut in 0..=log.entries().len() {
        if is_cut(cut, log.entries().len()) {
            let bytes = save(&machine, CHUNK_BYTES);
            let restored = restore::<M>(&bytes, CHUNK_BYTES, cut);
            assert!(
                restored == machine,
                "after {cut} entries, a restored state machine has other fields than the original:\n  \
                 {machine:?}\n  {restored:?}"
            );
        }
        if let Some(entry) = log.entries().get(cut) {
            let _ = entry.apply_to(&mut machine);
        }
    }
}

/// Returns a few positions along a log, including its end.
pub(super) fn few_cuts(entries: usize) -> impl Iterator<Item = usize> {
    let step = (entries / FEW_CUTS).max(1);
    (0..entries).step_by(step).skip(1).take(FEW_CUTS - 1).chain([entries])
}

fn is_cut(cut: usize, entries: usize) -> bool {
    let step = entries / CUTS_MAX + 1;
    cut.is_multiple_of(step) || cut == entries
}

/// Checks that the state machine restored after `cut` entries equals the original, now and for the
/// rest of the log.
fn check_restored<M: Machine>(log: &Log, cut: usize, bytes: &[u8], expected: &[Seen], end: &[u8]) {
    for (number, chunk_bytes) in chunks(bytes).enumerate() {
        let mut restored = restore::<M>(bytes, chunk_bytes, cut);
        let what = format!("snapshots after {cut} entries, before and after a restore");
        compare_bytes(bytes, &save(&restored, CHUNK_BYTES), &what);
        if let Some(before) = cut.checked_sub(1).and_then(|last| expected.get(last)) {
            assert_eq!(
                before.wake_at,
                restored.wake_at(),
                "the wake-up time after {cut} entries, before and after a restore"
            );
        }
        // The chunk size can have no other effect, so one run to the end is enough.
        if number > 0 {
            continue;
        }
        let rest = log.entries().get(cut..).unwrap_or_default();
        let outcomes: Vec<_> = rest.iter().map(|entry| Seen::of(entry, &mut restored)).collect();
        let what = format!("the log applied whole, and restored after {cut} entries");
        compare_outcomes(log, cut, expected, &outcomes, &what);
        let what = format!("snapshots at the end of {what}");
        compare_bytes(end, &save(&restored, CHUNK_BYTES), &what);
    }
}

fn save_in_every_way<M: Machine>(machine: &M, cut: usize) -> Vec<u8> {
    let bytes = save(machine, CHUNK_BYTES);
    for chunk_bytes in chunks(&bytes) {
        let what =
            format!("snapshots after {cut} entries, read in chunks of 1 MiB and {chunk_bytes}");
        compare_bytes(&bytes, &save(machine, chunk_bytes), &what);
    }
    compare_bytes(&bytes, &machine.save(), "the bytes of snapshot() and save()");
    bytes
}

fn chunks(snapshot: &[u8]) -> impl Iterator<Item = usize> {
    let single = snapshot.len() <= SINGLE_BYTES_MAX;
    CHUNKS_BYTES.into_iter().filter(move |bytes| single || *bytes > 1)
}

pub(super) fn save<M: Machine>(machine: &M, chunk_bytes: usize) -> Vec<u8> {
    read_chunks(&mut *machine.snapshot(), chunk_bytes)
}

fn read_chunks(reader: &mut dyn SnapshotReader, chunk_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let chunk = reader.read(chunk_bytes);
        assert!(
            chunk.len() <= chunk_bytes,
            "the snapshot reader returned {} bytes, more than the requested {chunk_bytes}",
            chunk.len()
        );
        if chunk.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&chunk);
    }
}

pub(super) fn restore<M: Machine>(bytes: &[u8], chunk_bytes: usize, cut: usize) -> M {
    let restored = M::restore(M::STATE_VERSION).and_then(|mut writer| {
        for chunk in bytes.chunks(chunk_bytes) {
            writer.write(chunk)?;
        }
        writer.finish()
    });
    restored.unwrap_or_else(|failure| {
        panic!("cannot restore the snapshot after {cut} entries in chunks of {chunk_bytes} bytes: {failure}")
    })
}

/// Compares the outcomes of the entries from `first` on with those of the whole log.
fn compare_outcomes(log: &Log, first: usize, expected: &[Seen], outcomes: &[Seen], what: &str) {
    for (number, outcome) in (first..).zip(outcomes) {
        compare_outcome(log, number, expected.get(number), outcome, what);
    }
}

fn compare_outcome(log: &Log, number: usize, expected: Option<&Seen>, outcome: &Seen, what: &str) {
    if expected != Some(outcome) {
        let entry = log.entries().get(number).map(ToString::to_string).unwrap_or_default();
        panic!(
            "{what}: entry {number} ({entry}) is the first to differ:\n  {expected:?}\n  {:?}",
            Some(outcome)
        );
    }
}

fn compare_bytes(left: &[u8], right: &[u8], what: &str) {
    if left == right {
        return;
    }
    let same = left.iter().zip(right).take_while(|(left, right)| left == right).count();
    let around = |bytes: &[u8]| {
        let window = bytes.get(same..).unwrap_or_default();
        window.get(..16).unwrap_or(window).escape_ascii().to_string()
    };
    panic!(
        "{what} differ from byte {same} on (lengths {} and {}):\n  {}\n  {}",
        left.len(),
        right.len(),
        around(left),
        around(right)
    );
}
