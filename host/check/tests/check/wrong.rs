//! Every wrong state machine is detected.

use std::ops::RangeInclusive;

use conclave_check::Verdict;

use super::{checked, failed, generated, given, run, said, verdict, wrong};

/// Checks that the state machine of this number fails the check `name` before any other, with at
/// most `calls_max` calls. Then checks that it fails again with only those calls.
fn caught(number: u8, name: &str, calls_max: usize) {
    caught_with(1..=1, number, name, calls_max);
}

/// The same, with the calls of the first of these seeds that shows the breach.
fn caught_with(mut seeds: RangeInclusive<u64>, number: u8, name: &str, calls_max: usize) {
    let mut report = run(wrong(number), &generated(300, seeds.next().unwrap())).unwrap();
    for seed in seeds {
        if failed(&report).is_empty() {
            report = run(wrong(number), &generated(300, seed)).unwrap();
        }
    }
    assert_eq!(failed(&report).first(), Some(&name), "{}", said(&report));
    let first = checked(&report, name);
    assert!((1..=calls_max).contains(&first.log.len()), "{}", said(&report));
    assert!(!first.advice.is_empty());

    let lines = report.lines(&first.log);
    let again = run(wrong(number), &given(&lines)).unwrap();
    assert_eq!(failed(&again).first(), Some(&name), "{lines:?}\n{}", said(&again));
}

#[test]
fn a_hidden_global() {
    caught(1, "restore", 2);
}

#[test]
fn a_query_that_changes_the_state() {
    caught(2, "queries", 2);
}

#[test]
fn an_order_by_addresses() {
    caught(3, "layout", 4);
}

/// An infinity among the amounts makes all sums equal, so one seed may show nothing.
#[test]
fn a_sum_of_floats_that_is_added_up_anew() {
    caught_with(1..=4, 4, "restore", 5);
}

#[test]
fn a_leak_across_a_restore() {
    caught(5, "restore-over", 3);
}

#[test]
fn a_snapshot_in_order_of_insertion() {
    caught(6, "canonical", 2);
}

#[test]
fn a_snapshot_that_depends_on_how_it_is_read() {
    caught(7, "chunks", 2);
}

#[test]
fn a_restore_that_depends_on_how_it_is_written() {
    caught(8, "chunks", 2);
}

#[test]
fn a_snapshot_that_shows_what_came_later() {
    caught(9, "layout", 2);
}

#[test]
fn a_snapshot_that_changes_the_machine() {
    caught(13, "layout", 2);
}

/// The log has no tick, because the state machine requests none.
#[test]
fn a_derived_field_that_no_step_of_the_log_shows() {
    caught(15, "restore", 2);
}

#[test]
fn a_restore_that_leaks_memory() {
    let report = run(wrong(10), &generated(300, 1)).unwrap();
    assert_eq!(failed(&report), ["leaks"], "{}", said(&report));
    let said = &checked(&report, "leaks").said;
    assert!(said.contains("restore of the same snapshot leaves about"), "{said}");
}

/// A node is restarted long before it has taken a hundred thousand snapshots, so this is a warning.
#[test]
fn a_small_leak_is_pointed_out() {
    let line = r#"{"method": "wrong.v1.Wrong/Add", "request": {"word": "a"}}"#.to_owned();
    let report = run(wrong(14), &given(std::slice::from_ref(&line))).unwrap();
    assert_eq!(failed(&report), [""; 0], "{}", said(&report));
    assert_eq!(verdict(&report, "leaks"), Verdict::Warned, "{}", said(&report));
    let right = run(wrong(0), &given(&[line])).unwrap();
    assert_eq!(verdict(&right, "leaks"), Verdict::Ok, "{}", said(&right));
}

/// A trap harms nothing, so it is a warning. It includes the state machine's message and the one
/// call that causes it.
#[test]
fn a_panic_is_shown_with_what_it_says() {
    let report = run(wrong(11), &generated(300, 1)).unwrap();
    assert_eq!(failed(&report), [""; 0], "{}", said(&report));
    let traps = checked(&report, "traps");
    assert_eq!(traps.verdict, Verdict::Warned);
    assert!(traps.said.contains("v1.Wrong/Add: the state machine panicked"), "{}", traps.said);
    assert!(traps.said.contains("there is no empty word"), "{}", traps.said);
    assert_eq!(report.lines(&traps.log).len(), 1, "{}", said(&report));
}

#[test]
fn a_call_that_comes_near_its_fuel_is_named() {
    let line = r#"{"method": "wrong.v1.Wrong/Add", "request": {"word": "slow"}}"#.to_owned();
    let mut options = given(&[line]);
    let all = conclave_check::names().filter(|name| *name != "fuel");
    options.skip = all.map(str::to_owned).collect();
    let report = run(wrong(12), &options).unwrap();
    assert_eq!(verdict(&report, "fuel"), Verdict::Warned, "{}", said(&report));
    assert!(checked(&report, "fuel").said.contains("wrong.v1.Wrong/Add"));
    let report = run(wrong(0), &options).unwrap();
    assert_eq!(verdict(&report, "fuel"), Verdict::Ok, "{}", said(&report));
}

#[test]
fn events_that_grow_with_the_request_are_pointed_out() {
    let line = r#"{"method": "wrong.v1.Wrong/Add", "request": {"word": "a"}}"#.to_owned();
    let mut options = given(&[line]);
    let all = conclave_check::names().filter(|name| *name != "answers");
    options.skip = all.map(str::to_owned).collect();
    let report = run(wrong(16), &options).unwrap();
    let answers = checked(&report, "answers");
    assert_eq!(answers.verdict, Verdict::Warned, "{}", said(&report));
    assert!(answers.said.contains("events of 11.8 MiB at most"), "{}", answers.said);
    assert!(answers.said.contains("at most 8388608 are allowed"), "{}", answers.said);
    assert!(answers.advice.contains("RESOURCE_EXHAUSTED"), "{}", answers.advice);
    let report = run(wrong(0), &options).unwrap();
    assert_eq!(verdict(&report, "answers"), Verdict::Ok, "{}", said(&report));
}

/// Checks that the state machine of this number gets a warning from one of the two checks of
/// mistakes and not from the other, with at most `calls_max` calls. Then checks that it gets the
/// warning again with only those calls.
fn pointed_out(number: u8, name: &str, calls_max: usize) -> String {
    let report = run(wrong(number), &generated(300, 1)).unwrap();
    assert_eq!(failed(&report), [""; 0], "{}", said(&report));
    for mistake in ["failures", "wake-ups"] {
        let expected = if mistake == name { Verdict::Warned } else { Verdict::Ok };
        assert_eq!(verdict(&report, mistake), expected, "{}", said(&report));
    }
    let checked = checked(&report, name);
    assert!((1..=calls_max).contains(&checked.log.len()), "{}", said(&report));
    assert!(!checked.advice.is_empty());
    let again = run(wrong(number), &given(&report.lines(&checked.log))).unwrap();
    assert_eq!(verdict(&again, name), Verdict::Warned, "{}", said(&again));
    checked.said.clone()
}

#[test]
fn a_call_that_fails_and_changes_the_state_is_pointed_out() {
    let said = pointed_out(17, "failures", 2);
    assert_eq!(said, "step 2 (wrong.v1.Wrong/Add) fails, but changes the state");
}

#[test]
fn a_dropped_wake_up_is_pointed_out() {
    let said = pointed_out(18, "wake-ups", 2);
    assert!(
        said.contains("after step 2 (wrong.v1.Wrong/Add) there is no wake-up time (it was "),
        "{said}"
    );
}

#[test]
fn a_wake_up_that_is_never_asked_for_is_pointed_out() {
    let said = pointed_out(19, "wake-ups", 1);
    assert!(
        said.contains("after step 1 (wrong.v1.Wrong/Add) there is no wake-up time, and a tick at"),
        "{said}"
    );
}

#[test]
fn floats_are_pointed_out() {
    let report = run(wrong(0), &generated(10, 1)).unwrap();
    let features = checked(&report, "features");
    assert_eq!(features.verdict, Verdict::Warned, "{}", features.said);
    assert!(features.said.contains("instructions compute with floats"), "{}", features.said);
    assert!(features.advice.contains("order"), "{}", features.advice);
}
