//! Invariants of a run other than linearizability.
//!
//! - Indexes and time: an answer is never older than an answer that was received before its request was
//!   sent. This detects stale reads without a search, even of keys that no client has written meanwhile.
//! - Each index has at most one command.
//! - The indexes of a node's stale reads never decrease until it is restarted.
//! - The state at an index is the same on all nodes.
//! - Watches receive changes in order, each once and without gaps. They receive every acknowledged
//!   write, and no change that was not written.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    time::Duration,
};

use crate::{
    history::{Gave, Kind, Operation, Outcome, Seen, Step, Value},
    workload::{Change, Watched},
};

/// Maximum number of messages per kind in a report.
const SHOWN_MAX: usize = 5;

/// Violations by kind, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(BTreeMap<&'static str, Vec<String>>);

impl Violations {
    /// Returns true if there are no violations.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a violation.
    pub fn add(&mut self, kind: &'static str, text: String) {
        self.0.entry(kind).or_default().push(text);
    }

    /// Adds the violations of another check.
    pub fn extend(&mut self, other: Self) {
        for (kind, texts) in other.0 {
            self.0.entry(kind).or_default().extend(texts);
        }
    }

    /// The number of violations of each kind.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.0.iter().map(|(kind, texts)| (*kind, texts.len()))
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, texts) in &self.0 {
            writeln!(f, "{kind} ({}):", texts.len())?;
            for text in texts.iter().take(SHOWN_MAX) {
                writeln!(f, "  {text}")?;
            }
        }
        Ok(())
    }
}

/// An answer is older than an earlier one.
pub const STALE: &str = "an answer is older than one received before its request";
/// Two commands at one index.
pub const TWICE: &str = "two commands have the same index";
/// The index of a node's stale reads decreases.
pub const BACKWARDS: &str = "the index of a node's stale reads decreases";
/// Two states at one index.
pub const TWO_STATES: &str = "two answers show different states at one index";
/// A watch missed, repeated or invented a change, or changed its order.
pub const WATCH: &str = "a watch is incorrect";

/// Checks the answers of all operations.
pub fn check_answers(history: &[Operation]) -> Violations {
    let mut violations = Violations::default();
    indexes_follow_time(history, &mut violations);
    one_command_per_index(history, &mut violations);
    stale_reads_go_forward(history, &mut violations);
    one_state_per_index(history, &mut violations);
    violations
}

/// The answers that have an index, with the index.
fn indexed(history: &[Operation]) -> impl Iterator<Item = (&Operation, u64)> {
    let answers = history.iter().filter_map(|operation| Some((operation, operation.answer()?)));
    // "No such key" is answered without an index.
    answers.map(|(operation, answer)| (operation, answer.index)).filter(|(_, index)| *index > 0)
}

fn indexes_follow_time(history: &[Operation], violations: &mut Violations) {
    let linearizable = indexed(history).filter(|(operation, _)| operation.is_linearizable());
    let mut by_end: Vec<_> = linearizable.collect();
    let mut by_begin = by_end.clone();
    by_end.sort_by_key(|(operation, _)| operation.ended);
    by_begin.sort_by_key(|(operation, _)| operation.begun);
    let mut ended = by_end.into_iter().peekable();
    let mut newest: Option<(&Operation, u64)> = None;
    for (operation, index) in by_begin {
        while let Some((before, its)) = ended.next_if(|(before, _)| before.ended < operation.begun)
        {
            if newest.is_none_or(|(_, newest)| its > newest) {
                newest = Some((before, its));
            }
        }
        let Some((before, newest)) = newest else { continue };
        // Each command has a different index.
        let allowed = if operation.kind == Kind::Write { newest + 1 } else { newest };
        if index < allowed {
            violations.add(STALE, format!("{operation}\n    after {before}"));
        }
    }
}

fn one_command_per_index(history: &[Operation], violations: &mut Violations) {
    let mut commands = BTreeMap::new();
    for (operation, index) in
        indexed(history).filter(|(operation, _)| operation.kind == Kind::Write)
    {
        match commands.entry(index) {
            Entry::Vacant(entry) => _ = entry.insert(operation),
            Entry::Occupied(entry) => {
                violations.add(TWICE, format!("{operation}\n    and {}", entry.get()));
            }
        }
    }
}

fn stale_reads_go_forward(history: &[Operation], violations: &mut Violations) {
    let mut nodes: BTreeMap<(u64, u64), Vec<(&Operation, u64)>> = BTreeMap::new();
    for (operation, index) in indexed(history) {
        if let (Kind::StaleRead, Some(node)) = (operation.kind, operation.node) {
            nodes.entry(node).or_default().push((operation, index));
        }
    }
    for mut reads in nodes.into_values() {
        reads.sort_by_key(|(operation, _)| operation.begun);
        let mut ended = reads.clone();
        ended.sort_by_key(|(operation, _)| operation.ended);
        let mut ended = ended.into_iter().peekable();
        let mut newest: Option<(&Operation, u64)> = None;
        for (operation, index) in reads {
            while let Some((before, its)) =
                ended.next_if(|(before, _)| before.ended < operation.begun)
            {
                if newest.is_none_or(|(_, newest)| its > newest) {
                    newest = Some((before, its));
                }
            }
            if let Some((before, newest)) = newest
                && index < newest
            {
                violations.add(BACKWARDS, format!("{operation}\n    after {before}"));
            }
        }
    }
}

fn one_state_per_index(history: &[Operation], violations: &mut Violations) {
    let mut states: BTreeMap<(u64, &str), (Seen, &Operation)> = BTreeMap::new();
    for (operation, index) in indexed(history) {
        let Some(answer) = operation.answer() else { continue };
        let steps = match answer.succeeded {
            true => &operation.request.then,
            false => &operation.request.otherwise,
        };
        // Within one command, only the last step on a key shows the state at its index.
        let mut last = BTreeMap::new();
        for (step, gave) in steps.iter().zip(&answer.results) {
            last.insert(step.key(), seen(step, gave));
        }
        for (key, seen) in last {
            let Some(seen) = seen else { continue };
            match states.entry((index, key)) {
                Entry::Vacant(entry) => _ = entry.insert((seen, operation)),
                Entry::Occupied(entry) => {
                    let (before, by) = entry.get();
                    if *before != seen {
                        violations.add(TWO_STATES, format!("{operation}\n    and {by}"));
                    }
                }
            }
        }
    }
}

fn seen(step: &Step, gave: &Gave) -> Option<Seen> {
    match (step, gave) {
        (Step::Put(_, value), Gave::Put(version)) => {
            Some(Seen { value: *value, version: *version })
        }
        (_, Gave::Get(seen)) => *seen,
        _ => None,
    }
}

/// Checks the events of watches. Each watch must have reached the index of the last write.
pub fn check_watches(history: &[Operation], watches: &[Watched]) -> Violations {
    let mut violations = Violations::default();
    let expected = acknowledged(history);
    let possible = possible(history);
    let mut all: BTreeMap<(u64, &str), (&Change, u64)> = BTreeMap::new();
    for watched in watches {
        for segment in &watched.segments {
            let wrong = |text: String| format!("node {}: {text}", watched.node);
            in_order(&segment.changes, segment.after, |text| violations.add(WATCH, wrong(text)));
            versions_follow(&segment.changes, |text| violations.add(WATCH, wrong(text)));
            let last = segment.changes.last().map_or(segment.after, |change| change.index);
            let changes: BTreeMap<_, _> = segment
                .changes
                .iter()
                .map(|change| ((change.index, &*change.key), change))
                .collect();
            // Further changes at the last index may be in transit, except at the end of the run.
            // A segment without changes cannot lack one.
            let end = last.max(segment.after + 1);
            for ((index, key), change) in expected.range((segment.after + 1, "")..(end, "")) {
                if changes.get(&(*index, *key)).is_none_or(|seen| *seen != change) {
                    let seen = changes.get(&(*index, *key));
                    let text = format!("acknowledged: {change:?}, seen: {seen:?}");
                    violations.add(WATCH, wrong(text));
                }
            }
            for change in &segment.changes {
                let known =
                    change.put.is_none_or(|seen| possible.contains(&(&*change.key, seen.value)));
                if !known && change.key != "mark" {
                    violations.add(WATCH, wrong(format!("no client has written {change:?}")));
                }
                let key = (change.index, &*change.key);
                let (before, node) = *all.entry(key).or_insert((change, watched.node));
                if before != change {
                    let text = format!("{change:?}, but node {node}: {before:?}");
                    violations.add(WATCH, wrong(text));
                }
            }
        }
    }
    violations
}

fn in_order(changes: &[Change], after: u64, mut wrong: impl FnMut(String)) {
    let (mut last, mut keys) = (after, BTreeSet::new());
    for change in changes {
        if change.index < last || change.index == after {
            wrong(format!("{change:?} comes after index {last}"));
        }
        if change.index != last {
            keys.clear();
        }
        last = change.index;
        // No request of the workload changes a key twice.
        if !keys.insert(&change.key) {
            wrong(format!("{change:?} comes twice"));
        }
    }
}

/// Checks by the versions that no change of a key is missing between two received ones.
fn versions_follow(changes: &[Change], mut wrong: impl FnMut(String)) {
    let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
    for change in changes {
        let version = change.put.map_or(0, |seen| seen.version);
        if let Some(before) = versions.insert(&change.key, version) {
            let follows = match change.put {
                Some(seen) => seen.version == before + 1,
                None => before > 0,
            };
            if !follows {
                wrong(format!("{change:?} follows version {before} of its key"));
            }
        }
    }
}

/// The changes of all acknowledged writes.
fn acknowledged(history: &[Operation]) -> BTreeMap<(u64, &str), Change> {
    let mut changes = BTreeMap::new();
    for (operation, index) in
        indexed(history).filter(|(operation, _)| operation.kind == Kind::Write)
    {
        let Some(answer) = operation.answer() else { continue };
        let steps = match answer.succeeded {
            true => &operation.request.then,
            false => &operation.request.otherwise,
        };
        for (step, gave) in steps.iter().zip(&answer.results) {
            let put = match (step, gave) {
                (Step::Put(..), Gave::Put(_)) => seen(step, gave),
                (Step::Delete(_), Gave::Delete(true)) => None,
                _ => continue,
            };
            let change = Change { index, key: step.key().to_owned(), put };
            changes.insert((index, step.key()), change);
        }
    }
    changes
}

/// The values that may have been put.
fn possible(history: &[Operation]) -> BTreeSet<(&str, Value)> {
    let effective =
        history.iter().filter(|operation| !matches!(operation.outcome, Outcome::Failed(_)));
    let steps = effective
        .flat_map(|operation| operation.request.then.iter().chain(&operation.request.otherwise));
    let puts = steps.filter_map(|step| match step {
        Step::Put(key, value) => Some((&**key, *value)),
        _ => None,
    });
    puts.collect()
}

/// The longest time in which no write was acknowledged, and its beginning.
pub fn longest_gap(history: &[Operation]) -> (Duration, Duration) {
    let writes = history.iter().filter(|operation| operation.kind == Kind::Write);
    let mut ends: Vec<Duration> =
        writes.filter(|write| write.answer().is_some()).map(|write| write.ended).collect();
    ends.sort();
    let gaps = ends.windows(2).map(|pair| (pair[1].saturating_sub(pair[0]), pair[0]));
    gaps.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        history::{Answer, Request},
        workload::Segment,
    };

    fn operation(times: (u64, u64), kind: Kind, step: Step, gave: Gave, index: u64) -> Operation {
        Operation {
            client: 0,
            node: Some((1, 1)),
            kind,
            request: Request::of(step),
            begun: Duration::from_millis(times.0),
            ended: Duration::from_millis(times.1),
            outcome: Outcome::Done(Answer { succeeded: true, results: vec![gave], index }),
        }
    }

    fn put(times: (u64, u64), value: u64, version: u64, index: u64) -> Operation {
        operation(times, Kind::Write, Step::Put("a".into(), value), Gave::Put(version), index)
    }

    fn get(times: (u64, u64), kind: Kind, value: u64, version: u64, index: u64) -> Operation {
        let seen = Some(Seen { value, version });
        operation(times, kind, Step::Get("a".into()), Gave::Get(seen), index)
    }

    fn kinds(violations: &Violations) -> Vec<&'static str> {
        violations.counts().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn an_answer_older_than_one_before_it_is_found() {
        let first = put((0, 1), 1, 1, 7);
        for kind in [Kind::Read, Kind::LeaseRead] {
            let sound = [first.clone(), get((2, 3), kind, 1, 1, 7)];
            assert!(check_answers(&sound).is_empty());
            let stale = [first.clone(), get((2, 3), kind, 1, 1, 6)];
            assert_eq!(kinds(&check_answers(&stale)), [STALE]);
            let beside = [first.clone(), get((1, 3), kind, 1, 1, 6)];
            assert!(check_answers(&beside).is_empty());
        }
        let stale = [first.clone(), get((2, 3), Kind::StaleRead, 1, 1, 6)];
        assert!(check_answers(&stale).is_empty());
        assert_eq!(kinds(&check_answers(&[first.clone(), put((2, 3), 2, 2, 6)])), [STALE]);
        let twice = check_answers(&[first, put((2, 3), 1, 1, 7)]);
        assert_eq!(kinds(&twice), [STALE, TWICE]);
    }

    #[test]
    fn stale_reads_of_a_node_go_forward_until_it_is_restarted() {
        let (before, mut after) =
            (get((0, 1), Kind::StaleRead, 1, 1, 7), get((2, 3), Kind::StaleRead, 1, 1, 6));
        assert_eq!(kinds(&check_answers(&[before.clone(), after.clone()])), [BACKWARDS]);
        after.node = Some((1, 2));
        assert!(check_answers(&[before, after]).is_empty());
    }

    #[test]
    fn two_states_at_one_index_are_found() {
        let sound = [put((0, 1), 1, 1, 7), get((0, 3), Kind::StaleRead, 1, 1, 7)];
        assert!(check_answers(&sound).is_empty());
        let torn = [put((0, 1), 1, 1, 7), get((0, 3), Kind::StaleRead, 2, 1, 7)];
        assert_eq!(kinds(&check_answers(&torn)), [TWO_STATES]);
    }

    fn change(index: u64, put: Option<(u64, u64)>) -> Change {
        let put = put.map(|(value, version)| Seen { value, version });
        Change { index, key: "a".into(), put }
    }

    fn watched(changes: Vec<Change>) -> Vec<Watched> {
        let segments = vec![Segment { after: 4, changes }];
        vec![Watched { node: 1, segments, resumed: 0 }]
    }

    #[test]
    fn watches_are_held_to_order_completeness_and_the_writes() {
        let history = [
            put((0, 1), 1, 1, 5),
            put((2, 3), 2, 2, 7),
            put((4, 5), 3, 3, 8),
            put((6, 7), 4, 4, 9),
        ];
        let right = [
            change(5, Some((1, 1))),
            change(7, Some((2, 2))),
            change(8, Some((3, 3))),
            change(9, Some((4, 4))),
        ];
        assert!(check_watches(&history, &watched(right.to_vec())).is_empty());
        assert!(check_watches(&history, &watched(Vec::new())).is_empty(), "nothing was seen yet");
        let wrong = |edit: fn(&mut Vec<Change>)| {
            let mut changes = right.to_vec();
            edit(&mut changes);
            let found = check_watches(&history, &watched(changes));
            assert_eq!(kinds(&found), [WATCH], "{found}");
        };
        // A change is missing, repeated, reordered, invented, has another value, or precedes the beginning.
        wrong(|changes| _ = changes.remove(1));
        wrong(|changes| changes.insert(1, changes[1].clone()));
        wrong(|changes| changes.swap(1, 2));
        wrong(|changes| changes.insert(4, change(10, Some((9, 5)))));
        wrong(|changes| changes[1].put = Some(Seen { value: 1, version: 2 }));
        wrong(|changes| changes.insert(0, change(4, Some((1, 1)))));
        // An unacknowledged delete may be a write with unknown outcome, but a missing version is a violation.
        wrong(|changes| changes[2] = change(8, None));
        let two = [watched(right.to_vec()), watched(vec![change(5, Some((2, 1)))])].concat();
        assert!(!check_watches(&history, &two).is_empty());
    }

    #[test]
    fn the_longest_time_without_a_write_is_found() {
        let history = [put((0, 1), 1, 1, 5), put((2, 30), 2, 2, 7), put((31, 35), 3, 3, 8)];
        let (length, begun) = longest_gap(&history);
        assert_eq!((length, begun), (Duration::from_millis(29), Duration::from_millis(1)));
    }
}
