//! Correct state machines pass.

use std::time::Instant;

use conclave_check::Verdict;

use super::{build, checked, failed, generated, run, said, verdict, wrong};

#[test]
fn the_key_value_store() {
    for seed in 1..=3 {
        let begun = Instant::now();
        let kv = build("guest-kv");
        let report = run(kv, &generated(500, seed)).unwrap();
        assert_eq!(failed(&report), [""; 0], "seed {seed}\n{}", said(&report));
        for name in ["features", "failures", "wake-ups", "traps", "fuel", "memory", "answers"] {
            assert_eq!(verdict(&report, name), Verdict::Ok, "{}", said(&report));
        }
        // Large values reached responses and events.
        let answers = &checked(&report, "answers").said;
        assert_eq!(answers.matches("MiB at most").count(), 2, "{answers}");
        assert!(answers.contains("events of 3.9 MiB at most"), "{answers}");
        // There are ticks and page tokens only if calls use the same keys.
        let (commands, queries, ticks) = report.calls;
        assert!(commands > 200 && queries > 50 && ticks > 0, "{:?}", report.calls);
        assert!(begun.elapsed().as_secs() < 120, "{:?}", begun.elapsed());
    }
}

#[test]
fn the_counter() {
    let report = run(build("examples/counter"), &generated(500, 1)).unwrap();
    assert_eq!(failed(&report), [""; 0], "{}", said(&report));
    assert_eq!(verdict(&report, "traps"), Verdict::Ok, "{}", said(&report));
}

/// `machines/wrong` passes if no breach is chosen. So only the chosen breach makes the other variants fail.
#[test]
fn what_is_wrong_in_no_way() {
    for seed in 1..=3 {
        let report = run(wrong(0), &generated(300, seed)).unwrap();
        assert_eq!(failed(&report), [""; 0], "seed {seed}\n{}", said(&report));
    }
}

/// Words expire, also before a call that fails.
#[test]
fn what_has_timers_and_is_wrong_in_no_way() {
    for seed in 1..=3 {
        let report = run(wrong(20), &generated(300, seed)).unwrap();
        assert_eq!(failed(&report), [""; 0], "seed {seed}\n{}", said(&report));
        for name in ["failures", "wake-ups"] {
            assert_eq!(verdict(&report, name), Verdict::Ok, "seed {seed}\n{}", said(&report));
        }
        assert!(report.calls.2 > 0, "{}", said(&report));
        assert!(checked(&report, "failures").said.starts_with("8 calls"), "{}", said(&report));
    }
}

#[test]
fn the_examples_with_timers() {
    for example in ["examples/lock", "examples/queue"] {
        let report = run(build(example), &generated(500, 1)).unwrap();
        assert_eq!(failed(&report), [""; 0], "{}", said(&report));
        for name in ["failures", "wake-ups"] {
            assert_eq!(verdict(&report, name), Verdict::Ok, "{}", said(&report));
        }
    }
}

/// A check that compares nothing also passes, so this test verifies that each check compared something.
#[test]
fn a_pass_says_what_was_looked_at() {
    let report = run(wrong(0), &generated(300, 1)).unwrap();
    let number = |name: &str| {
        let said = &checked(&report, name).said;
        let digits: String = said
            .chars()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse::<usize>().unwrap_or_else(|_| panic!("{name}: {said}"))
    };
    assert_eq!(number("replay"), 300);
    assert_eq!(number("interpreter"), 300);
    assert_eq!(number("layout"), 300);
    assert!(number("queries") > 30, "{}", said(&report));
    assert!(number("restore") > 20, "{}", said(&report));
    assert!(number("canonical") > 0, "{}", said(&report));
}

/// Goal: intentional traps of every kind are distinguished, and no other check fails.
#[test]
fn a_machine_that_traps_in_every_way() {
    let mut options = generated(60, 1);
    // Using up the fuel takes a second, and so does filling the memory.
    options.shrink_for = std::time::Duration::from_secs(1);
    let report = run(build("host/testing/machines/hostile"), &options).unwrap();
    assert_eq!(failed(&report), [""; 0], "{}", said(&report));
    let traps = checked(&report, "traps");
    assert_eq!(traps.verdict, Verdict::Warned);
    assert!(traps.said.contains("hostile.v1.Hostile/"), "{}", traps.said);
}
