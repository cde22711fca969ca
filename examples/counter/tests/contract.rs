//! Goal: the counter counts correctly and satisfies the contract.

use conclave_sdk::{
    Call, Code,
    prost::Message as _,
    testing::{Log, check, run},
};
use counter::{AddRequest, Count, Counter, GetRequest};

fn add(amount: i64) -> Call {
    Call::of("counter.v1.Counter/Add", &AddRequest { amount })
}

fn log() -> Log {
    let mut log = Log::new();
    log.ask(Call::of("counter.v1.Counter/Get", &GetRequest {}));
    log.apply(add(3)).apply(add(-1)).apply(add(i64::MAX)).apply(add(5));
    log
}

#[test]
fn it_keeps_the_contract() {
    check::<Counter>(&log());
}

#[test]
fn it_counts_and_refuses_what_does_not_fit() {
    let (_, outcomes) = run::<Counter>(&log());
    let counts = outcomes.into_iter().map(|outcome| match outcome {
        Ok(reply) => Ok(Count::decode(&*reply.response).unwrap().count),
        Err(failure) => Err(failure.code),
    });
    assert_eq!(counts.collect::<Vec<_>>(), [Ok(3), Ok(2), Err(Code::OutOfRange), Ok(7)]);
}
