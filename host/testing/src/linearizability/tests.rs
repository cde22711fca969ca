//! Tests with known valid and invalid histories, and with small random ones compared against a
//! checker that tries every order.

use std::time::Duration;

use proptest::prelude::*;

use super::{check, groups, model::Compiled};
use crate::history::{Answer, Compare, Gave, Kind, Operation, Outcome, Request, Seen, Step};

fn operation(times: (u64, u64), request: Request, outcome: Outcome) -> Operation {
    let kind = if request.only_reads() { Kind::Read } else { Kind::Write };
    let (begun, ended) = (Duration::from_millis(times.0), Duration::from_millis(times.1));
    Operation { client: 0, node: None, kind, request, begun, ended, outcome }
}

fn done(times: (u64, u64), request: Request, results: &[Gave]) -> Operation {
    answered(times, request, true, results)
}

fn answered(times: (u64, u64), request: Request, succeeded: bool, results: &[Gave]) -> Operation {
    let answer = Answer { succeeded, results: results.to_vec(), index: 0 };
    operation(times, request, Outcome::Done(answer))
}

fn put(times: (u64, u64), key: &str, value: u64, version: u64) -> Operation {
    done(times, Request::of(Step::Put(key.into(), value)), &[Gave::Put(version)])
}

fn lost(times: (u64, u64), key: &str, value: u64) -> Operation {
    let outcome = Outcome::Unknown("no answer".into());
    operation(times, Request::of(Step::Put(key.into(), value)), outcome)
}

fn failed(times: (u64, u64), key: &str, value: u64) -> Operation {
    let outcome = Outcome::Failed("no leader".into());
    operation(times, Request::of(Step::Put(key.into(), value)), outcome)
}

fn delete(times: (u64, u64), key: &str, deleted: bool) -> Operation {
    done(times, Request::of(Step::Delete(key.into())), &[Gave::Delete(deleted)])
}

/// A read that returned a value and a version.
fn get(times: (u64, u64), key: &str, value: u64, version: u64) -> Operation {
    let seen = Seen { value, version };
    done(times, Request::of(Step::Get(key.into())), &[Gave::Get(Some(seen))])
}

fn absent(times: (u64, u64), key: &str) -> Operation {
    done(times, Request::of(Step::Get(key.into())), &[Gave::Get(None)])
}

fn both(key: &str, other: &str, values: (u64, u64)) -> Vec<Step> {
    vec![Step::Put(key.into(), values.0), Step::Put(other.into(), values.1)]
}

fn batch(times: (u64, u64), steps: Vec<Step>, results: &[Gave]) -> Operation {
    done(times, Request { then: steps, ..Request::default() }, results)
}

fn read_both(times: (u64, u64), one: (u64, u64), other: (u64, u64)) -> Operation {
    let seen = |(value, version)| Gave::Get(Some(Seen { value, version }));
    let steps = vec![Step::Get("a".into()), Step::Get("b".into())];
    batch(times, steps, &[seen(one), seen(other)])
}

#[track_caller]
fn right(mut history: Vec<Operation>) {
    history.sort_by_key(|operation| operation.begun);
    let report = check(&history);
    assert!(report.violations.is_empty() && report.undecided.is_empty(), "{report:#?}");
}

#[track_caller]
fn wrong(mut history: Vec<Operation>) {
    history.sort_by_key(|operation| operation.begun);
    let report = check(&history);
    assert_eq!(report.violations.len(), 1, "{report:#?}");
}

#[test]
fn operations_one_after_another_are_linearizable() {
    right(vec![
        absent((0, 1), "a"),
        put((2, 3), "a", 1, 1),
        get((4, 5), "a", 1, 1),
        put((6, 7), "a", 2, 2),
        get((8, 9), "a", 2, 2),
        delete((10, 11), "a", true),
        absent((12, 13), "a"),
        put((14, 15), "a", 3, 1),
    ]);
}

#[test]
fn a_stale_read_is_found() {
    wrong(vec![put((0, 1), "a", 1, 1), put((2, 3), "a", 2, 2), get((4, 5), "a", 1, 1)]);
    // During the second put, both values are valid.
    right(vec![put((0, 1), "a", 1, 1), put((2, 5), "a", 2, 2), get((3, 4), "a", 1, 1)]);
    right(vec![put((0, 1), "a", 1, 1), put((2, 5), "a", 2, 2), get((3, 4), "a", 2, 2)]);
}

#[test]
fn reads_that_go_back_are_found() {
    wrong(vec![
        put((0, 1), "a", 1, 1),
        put((2, 9), "a", 2, 2),
        get((3, 4), "a", 2, 2),
        get((5, 6), "a", 1, 1),
    ]);
}

#[test]
fn a_stale_read_by_request_is_left_alone() {
    let mut stale = get((4, 5), "a", 1, 1);
    stale.kind = Kind::StaleRead;
    right(vec![put((0, 1), "a", 1, 1), put((2, 3), "a", 2, 2), stale]);
}

#[test]
fn a_stale_lease_read_is_found() {
    let mut lease = get((4, 5), "a", 1, 1);
    lease.kind = Kind::LeaseRead;
    wrong(vec![put((0, 1), "a", 1, 1), put((2, 3), "a", 2, 2), lease]);
}

#[test]
fn a_lost_write_is_found() {
    wrong(vec![put((0, 1), "a", 1, 1), absent((2, 3), "a")]);
    // The loss may show only in the next version.
    wrong(vec![put((0, 1), "a", 1, 1), put((2, 3), "a", 2, 1)]);
}

#[test]
fn a_write_of_unknown_outcome_may_take_effect_at_any_time_or_never() {
    let first = || vec![put((0, 1), "a", 1, 1), lost((2, 3), "a", 2)];
    let with = |more: Vec<Operation>| [first(), more].concat();
    right(with(vec![get((4, 5), "a", 1, 1)]));
    right(with(vec![get((4, 5), "a", 2, 2)]));
    right(with(vec![get((4, 5), "a", 1, 1), get((6, 7), "a", 2, 2)]));
    right(with(vec![put((4, 5), "a", 3, 2), get((6, 7), "a", 2, 3)]));
    right(with(vec![put((4, 5), "a", 3, 3)]));
    // The write must not take effect twice, or before it began, and must not be undone.
    wrong(with(vec![put((4, 5), "a", 3, 4)]));
    wrong(with(vec![get((4, 5), "a", 2, 2), get((6, 7), "a", 1, 1)]));
    wrong(vec![get((0, 1), "a", 1, 1), lost((2, 3), "a", 1)]);
}

#[test]
fn a_write_that_failed_never_takes_effect() {
    right(vec![failed((0, 1), "a", 1), absent((2, 3), "a")]);
    wrong(vec![failed((0, 1), "a", 1), get((2, 3), "a", 1, 1)]);
}

#[test]
fn a_write_that_was_applied_twice_is_found() {
    wrong(vec![put((0, 1), "a", 1, 1), get((2, 3), "a", 1, 2)]);
    wrong(vec![put((0, 1), "a", 1, 1), put((2, 3), "a", 2, 3)]);
    // The second write lies between the two effects of the first.
    wrong(vec![put((0, 1), "a", 1, 1), put((2, 3), "a", 2, 2), get((4, 5), "a", 1, 3)]);
}

#[test]
fn reordered_writes_are_found() {
    wrong(vec![put((0, 1), "a", 1, 2), put((2, 3), "a", 2, 1), get((4, 5), "a", 1, 2)]);
}

#[test]
fn a_deleted_key_that_returns_is_found() {
    wrong(vec![put((0, 1), "a", 1, 1), delete((2, 3), "a", true), get((4, 5), "a", 1, 1)]);
    wrong(vec![put((0, 1), "a", 1, 1), delete((2, 3), "a", true), delete((4, 5), "a", true)]);
}

#[test]
fn a_torn_batch_is_found() {
    let first = || {
        vec![
            batch((0, 1), both("a", "b", (1, 2)), &[Gave::Put(1), Gave::Put(1)]),
            batch((2, 6), both("a", "b", (3, 4)), &[Gave::Put(2), Gave::Put(2)]),
        ]
    };
    let with = |more: Vec<Operation>| [first(), more].concat();
    right(with(vec![read_both((3, 4), (1, 1), (2, 1))]));
    right(with(vec![read_both((3, 4), (3, 2), (4, 2))]));
    wrong(with(vec![read_both((3, 4), (3, 2), (2, 1))]));
    wrong(with(vec![read_both((3, 4), (1, 1), (4, 2))]));
    // Two consecutive reads show it too.
    wrong(with(vec![get((3, 4), "a", 3, 2), get((5, 6), "b", 2, 1)]));
    right(with(vec![get((3, 4), "a", 1, 1), get((5, 5), "b", 4, 2)]));
}

#[test]
fn a_batch_of_unknown_outcome_takes_effect_whole() {
    let steps = Request { then: both("a", "b", (3, 4)), ..Request::default() };
    let first = || {
        vec![
            batch((0, 1), both("a", "b", (1, 2)), &[Gave::Put(1), Gave::Put(1)]),
            operation((2, 3), steps.clone(), Outcome::Unknown("no answer".into())),
        ]
    };
    let with = |more: Vec<Operation>| [first(), more].concat();
    right(with(vec![read_both((4, 5), (1, 1), (2, 1)), read_both((6, 7), (3, 2), (4, 2))]));
    wrong(with(vec![read_both((4, 5), (3, 2), (2, 1))]));
}

#[test]
fn a_txn_compares_with_the_state_at_its_place() {
    let swap = |value: u64, next: u64| Request {
        compares: vec![Compare::Holds("a".into(), value)],
        then: vec![Step::Put("a".into(), next)],
        otherwise: vec![Step::Get("b".into())],
    };
    right(vec![
        put((0, 1), "a", 1, 1),
        answered((2, 5), swap(1, 2), true, &[Gave::Put(2)]),
        answered((2, 5), swap(1, 3), false, &[Gave::Get(None)]),
    ]);
    // Only one of the two can have found the value.
    wrong(vec![
        put((0, 1), "a", 1, 1),
        answered((2, 5), swap(1, 2), true, &[Gave::Put(2)]),
        answered((2, 5), swap(1, 3), true, &[Gave::Put(3)]),
    ]);
    // The transaction did not find the existing value.
    wrong(vec![put((0, 1), "a", 1, 1), answered((2, 3), swap(1, 2), false, &[Gave::Get(None)])]);
    let create = Request {
        compares: vec![Compare::Exists("a".into(), false)],
        then: vec![Step::Put("a".into(), 9)],
        otherwise: vec![],
    };
    right(vec![answered((0, 1), create.clone(), true, &[Gave::Put(1)])]);
    wrong(vec![put((0, 1), "a", 1, 1), answered((2, 3), create, true, &[Gave::Put(1)])]);
}

#[test]
fn keys_that_are_named_together_are_one_group() {
    let history = [
        batch((0, 1), both("a", "b", (1, 2)), &[]),
        batch((0, 1), both("c", "b", (3, 4)), &[]),
        put((0, 1), "d", 5, 1),
    ];
    let mut found: Vec<_> = groups(&history).into_iter().map(|(keys, _)| keys).collect();
    found.sort();
    assert_eq!(found, [vec!["a", "b", "c"], vec!["d"]]);
}

#[test]
fn many_writes_of_unknown_outcome_are_decided_quickly() {
    let lost_ones = (0..40).map(|at| lost((10 * at, 10 * at + 1), "a", 1000 + at));
    let known = (0..200).map(|at| put((2 * at, 2 * at + 1), "a", at, at + 1));
    let mut history: Vec<_> = lost_ones.chain(known).collect();
    right(history.clone());
    history.push(get((500, 501), "a", 199, 199));
    wrong(history);
}

#[test]
fn the_longest_order_is_reported() {
    let history = vec![put((0, 1), "a", 1, 1), put((2, 3), "a", 2, 2), get((4, 5), "a", 1, 1)];
    let report = check(&history);
    let stuck = &report.violations[0].stuck;
    assert_eq!((&stuck.order[..], &stuck.next[..]), (&[0, 1][..], &[2][..]));
    assert!(stuck.state.contains("a=2 (version 2)"), "{}", stuck.state);
}

/// Tries every order of every subset that contains all operations with an answer.
fn brute_force(history: &[Operation]) -> bool {
    let mut groups = groups(history);
    groups.iter_mut().all(|(keys, operations)| {
        let compiled: Vec<_> =
            operations.iter().map(|operation| Compiled::new(keys, operation)).collect();
        tries(operations, &compiled, &vec![None; keys.len()], &mut vec![false; operations.len()])
    })
}

fn tries(
    operations: &[&Operation],
    compiled: &[Compiled<'_>],
    state: &super::model::State,
    placed: &mut Vec<bool>,
) -> bool {
    let waits = |at: usize, placed: &[bool]| !placed[at] && operations[at].answer().is_some();
    if !(0..operations.len()).any(|at| waits(at, placed)) {
        return true;
    }
    for at in 0..operations.len() {
        let too_early = (0..operations.len())
            .any(|other| waits(other, placed) && operations[other].ended < operations[at].begun);
        if placed[at] || too_early {
            continue;
        }
        if let Some(next) = compiled[at].apply(state) {
            placed[at] = true;
            if tries(operations, compiled, &next, placed) {
                return true;
            }
            placed[at] = false;
        }
    }
    false
}

/// An operation that often fits a history, because there are few keys, values and versions.
fn any_operation(number: u64) -> impl Strategy<Value = Operation> {
    let key = prop_oneof![Just("a"), Just("b")];
    let seen = prop_oneof![
        Just(None),
        (0..5u64, 1..4u64).prop_map(|(value, version)| Some(Seen { value, version })),
    ];
    (0..6u8, key, seen, 1..4u64, (0..20u64, 0..12u64), any::<bool>()).prop_map(
        move |(form, key, seen, version, (begun, length), flag)| {
            let times = (begun, begun + length);
            let value = number;
            match form {
                0 => put(times, key, value, version),
                1 => lost(times, key, value),
                2 => delete(times, key, flag),
                3 => done(times, Request::of(Step::Get(key.into())), &[Gave::Get(seen)]),
                4 => batch(
                    times,
                    both("a", "b", (value, value)),
                    &[Gave::Put(version), Gave::Put(1 + u64::from(flag))],
                ),
                _ => answered(
                    times,
                    Request {
                        compares: vec![Compare::Exists(key.into(), flag)],
                        then: vec![Step::Put("a".into(), value)],
                        otherwise: vec![Step::Get("b".into())],
                    },
                    version == 1,
                    &[if version == 1 { Gave::Put(1) } else { Gave::Get(seen) }],
                ),
            }
        },
    )
}

/// A valid history: each operation takes effect at a time between its beginning and its end.
fn right_history() -> impl Strategy<Value = Vec<Operation>> {
    let shape = (0..5u8, any::<bool>(), 0..12u64, 0..12u64, 0..8u8);
    proptest::collection::vec(shape, 1..9).prop_map(|shapes| {
        let keys = ["a".to_owned(), "b".to_owned()];
        let mut state = vec![None; 2];
        let mut history = Vec::new();
        for (at, (form, other, before, after, fate)) in shapes.into_iter().enumerate() {
            let key = if other { "b" } else { "a" };
            let value = at as u64;
            let request = match form {
                0 | 1 => Request::of(Step::Put(key.into(), value)),
                2 => Request::of(Step::Delete(key.into())),
                3 => Request::of(Step::Get(key.into())),
                _ => Request {
                    compares: vec![Compare::Exists(key.into(), true)],
                    then: both("a", "b", (value, value)),
                    otherwise: vec![Step::Get("a".into())],
                },
            };
            let effect = 10 * at as u64 + 100;
            let times = (effect.saturating_sub(before), effect + after);
            let unknown = operation(times, request.clone(), Outcome::Unknown(String::new()));
            if fate == 0 {
                // This operation never took effect.
                history.push(unknown);
                continue;
            }
            let next = Compiled::new(&keys, &unknown).apply(&state).unwrap();
            let answer = answer_of(&request, &state);
            state = next;
            history.push(if fate == 1 { unknown } else { operation(times, request, answer) });
        }
        history.sort_by_key(|operation| operation.begun);
        history
    })
}

/// The answer that fits the state, from a second implementation of the model.
fn answer_of(request: &Request, state: &[Option<Seen>]) -> Outcome {
    let at = |key: &str| usize::from(key == "b");
    let holds = |compare: &Compare| match compare {
        Compare::Exists(key, expected) => state[at(key)].is_some() == *expected,
        Compare::Holds(key, value) => state[at(key)].is_some_and(|seen| seen.value == *value),
    };
    let succeeded = request.compares.iter().all(holds);
    let steps = if succeeded { &request.then } else { &request.otherwise };
    let mut state = state.to_vec();
    let results = steps.iter().map(|step| match step {
        Step::Put(key, value) => {
            let version = state[at(key)].map_or(0, |seen| seen.version) + 1;
            state[at(key)] = Some(Seen { value: *value, version });
            Gave::Put(version)
        }
        Step::Delete(key) => Gave::Delete(state[at(key)].take().is_some()),
        Step::Get(key) => Gave::Get(state[at(key)]),
    });
    Outcome::Done(Answer { succeeded, results: results.collect(), index: 0 })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn small_histories_are_judged_as_by_trying_every_order(
        mut history in (1..7usize).prop_flat_map(|count| {
            (0..count as u64).map(any_operation).collect::<Vec<_>>()
        })
    ) {
        history.sort_by_key(|operation| operation.begun);
        let report = check(&history);
        prop_assert!(report.undecided.is_empty());
        prop_assert_eq!(report.violations.is_empty(), brute_force(&history), "{:#?}", history);
    }

    #[test]
    fn right_histories_pass(history in right_history()) {
        let report = check(&history);
        prop_assert!(report.violations.is_empty() && report.undecided.is_empty(), "{:#?}", report);
    }

    #[test]
    fn right_histories_with_one_changed_answer_are_judged_as_by_trying_every_order(
        history in right_history(),
        at in any::<prop::sample::Index>(),
        version in 1..4u64,
        value in 0..9u64,
    ) {
        let mut history = history;
        let at = at.index(history.len());
        if let Outcome::Done(answer) = &mut history[at].outcome {
            for result in &mut answer.results {
                *result = match *result {
                    Gave::Put(_) => Gave::Put(version),
                    Gave::Delete(deleted) => Gave::Delete(!deleted),
                    Gave::Get(_) => Gave::Get(Some(Seen { value, version })),
                };
            }
        }
        prop_assert_eq!(check(&history).violations.is_empty(), brute_force(&history));
    }
}
