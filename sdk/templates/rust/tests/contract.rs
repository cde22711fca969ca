//! Goal: the state machine counts correctly and satisfies the contract. Method: logs of calls,
//! applied natively by the SDK's conformance tests, without a node or WebAssembly.

use std::collections::BTreeMap;

use conclave_sdk::{
    Call, Code,
    testing::{Log, Outcome, check, check_same_state, run},
};
use my_machine::{AddRequest, AddResponse, GetRequest, MyMachine, NAME_BYTES_MAX};
use prost::Message as _;

const NAMES: [&str; 4] = ["pear", "apple", "fig", "quince"];

fn add(name: &str, amount: i64) -> Call {
    Call::of("my_machine.v1.MyMachine/Add", &AddRequest { name: name.to_owned(), amount })
}

fn get(name: &str) -> Call {
    Call::of("my_machine.v1.MyMachine/Get", &GetRequest { name: name.to_owned() })
}

/// A log that adds these amounts and queries all names after each entry.
fn log<'a>(amounts: impl IntoIterator<Item = (&'a str, i64)>) -> Log {
    let mut log = Log::new();
    for name in NAMES {
        log.ask(get(name));
    }
    for (name, amount) in amounts {
        log.apply(add(name, amount));
    }
    log
}

fn count(outcome: &Outcome) -> Result<i64, Code> {
    match outcome {
        Ok(reply) => Ok(AddResponse::decode(&*reply.response).unwrap().count),
        Err(failure) => Err(failure.code),
    }
}

#[test]
fn it_counts_and_refuses_what_it_cannot_keep() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let log = log([
        ("pear", 3),
        ("fig", i64::MAX),
        ("pear", -1),
        ("fig", 1),
        ("", 1),
        (&long, 1),
        ("fig", 0),
    ]);
    // Among other things, this checks that a refused call changes nothing.
    check::<MyMachine>(&log);
    let (_, outcomes) = run::<MyMachine>(&log);
    assert_eq!(
        outcomes.iter().map(count).collect::<Vec<_>>(),
        [
            Ok(3),
            Ok(i64::MAX),
            Ok(2),
            Err(Code::OutOfRange),
            Err(Code::InvalidArgument),
            Err(Code::InvalidArgument),
            Ok(i64::MAX),
        ]
    );
}

/// Fails if the snapshot depends on which name came first, as with a list, or has no defined order,
/// as with a hash table.
#[test]
fn the_order_in_which_names_came_does_not_show() {
    let amounts = NAMES.map(|name| (name, name.len() as i64));
    check_same_state::<MyMachine>(&log(amounts), &log(amounts.into_iter().rev()));
}

/// Runs the conformance tests on random logs and compares the sums with a simple model. Fails if
/// the snapshot omits a field, if replies differ after a restore, or if a sum is wrong.
#[test]
fn whatever_is_added_it_keeps_the_contract_and_the_sums_are_right() {
    for seed in 1..=20 {
        let amounts = random_amounts(seed);
        let log = log(amounts.iter().copied());
        check::<MyMachine>(&log);

        let mut sums = BTreeMap::new();
        let expected = amounts.iter().map(|(name, amount)| {
            let sum = sums.entry(name).or_insert(0);
            *sum += amount;
            Ok(*sum)
        });
        let expected: Vec<_> = expected.collect();
        let (_, outcomes) = run::<MyMachine>(&log);
        assert_eq!(outcomes.iter().map(count).collect::<Vec<_>>(), expected, "seed {seed}");
    }
}

/// Returns pseudo-random amounts that are the same in every run, so that a failure can be reproduced.
fn random_amounts(seed: u64) -> Vec<(&'static str, i64)> {
    let mut state = seed;
    let mut next = || {
        // Xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let amount = |_| (NAMES[next() as usize % NAMES.len()], next() as i64 % 1000);
    (0..30).map(amount).collect()
}
