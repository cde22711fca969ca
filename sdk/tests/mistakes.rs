//! Goal: the conformance tests find failed calls that change the state and lost wake-ups, and
//! report nothing for state machines without these mistakes.
//! Method: alarm clocks with one mistake each.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use conclave_sdk::{
    Call, Context, Failure, Machine, Reply,
    testing::{Log, check, check_failures, check_wake_ups},
};

const RIGHT: u8 = 0;
/// Counts a refused call before refusing it.
const FAILS_LATE: u8 = 1;
/// Requests a wake-up for the second alarm only if the first is not set.
const LATER: u8 = 2;
/// Requests no wake-up while both alarms are set.
const DROPS: u8 = 3;
/// Never requests a wake-up.
const NEVER: u8 = 4;
/// Is correct and counts ticks: each tick changes the state, whatever the time.
const COUNTS_TICKS: u8 = 5;

/// Two alarms, the number of times they rang, and a counter for some of the mistakes.
#[derive(Default)]
struct Alarms<const WRONG: u8> {
    at_ms: [u64; 2],
    rung: u64,
    counted: u64,
}

impl<const WRONG: u8> Alarms<WRONG> {
    fn ring(&mut self, time_ms: u64) {
        for at_ms in &mut self.at_ms {
            if (1..=time_ms).contains(at_ms) {
                *at_ms = 0;
                self.rung += 1;
            }
        }
    }
}

impl<const WRONG: u8> Machine for Alarms<WRONG> {
    const NAME: &'static str = "alarms";
    const VERSION: &'static str = "1.0.0";
    const STATE_VERSION: u32 = 1;

    fn apply(&mut self, context: &Context, call: &Call) -> Result<Reply, Failure> {
        self.ring(context.time_ms);
        match call.method.as_str() {
            "First" => self.at_ms[0] = context.time_ms + 90_000,
            "Second" => self.at_ms[1] = context.time_ms + 30_000,
            "Cancel" => self.at_ms = [0; 2],
            other => {
                self.counted += u64::from(WRONG == FAILS_LATE);
                return Err(Failure::unimplemented(format!("there is no method {other}")));
            }
        }
        Ok(Reply::default())
    }

    fn tick(&mut self, context: &Context) -> Reply {
        self.ring(context.time_ms);
        self.counted += u64::from(WRONG == COUNTS_TICKS);
        Reply::default()
    }

    fn wake_at(&self) -> Option<u64> {
        let mut set = self.at_ms.into_iter().filter(|at_ms| *at_ms > 0);
        match WRONG {
            LATER => set.next(),
            DROPS if self.at_ms.iter().all(|at_ms| *at_ms > 0) => None,
            NEVER => None,
            _ => set.min(),
        }
    }

    fn query(&self, _: &Context, _: &Call) -> Result<Vec<u8>, Failure> {
        Ok(self.save())
    }

    fn save(&self) -> Vec<u8> {
        [self.at_ms[0], self.at_ms[1], self.rung, self.counted].map(u64::to_be_bytes).concat()
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        let mut numbers = bytes.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes));
        let mut next = || numbers.next().ok_or_else(|| Failure::invalid_argument("too short"));
        Ok(Self { at_ms: [next()?, next()?], rung: next()?, counted: next()? })
    }
}

fn call(method: &str) -> Call {
    Call::new(method, [])
}

/// Alarms that ring, are set again and are cancelled, some of them late, and calls that fail, some
/// of them late.
fn log() -> Log {
    let mut log = Log::new();
    log.ask(call("Show"));
    log.apply(call("Unknown")).apply(call("Second"));
    log.wait_ms(10_000).apply(call("First")).apply(call("Unknown"));
    log.wait_ms(20_000).tick();
    log.wait_ms(100_000).apply(call("Unknown"));
    log.apply(call("First")).wait_ms(1_000).apply(call("Cancel"));
    log.apply(call("Second")).wait_ms(40_000).apply(call("Cancel"));
    log
}

/// Returns the message of a failed check, or `None` if the check passes.
fn complaint(check: impl FnOnce()) -> Option<String> {
    let failed = catch_unwind(AssertUnwindSafe(check)).err()?;
    Some(failed.downcast_ref::<String>().expect("the panic has a message").clone())
}

#[test]
fn machines_without_the_mistakes_pass() {
    check::<Alarms<RIGHT>>(&log());
    check::<Alarms<COUNTS_TICKS>>(&log());
}

#[test]
fn a_call_that_fails_after_a_change_is_found() {
    let said = complaint(|| check_failures::<Alarms<FAILS_LATE>>(&log())).unwrap();
    for part in [
        "entry 0 (Unknown at index 3) failed and changed the state",
        "from byte 31 on",
        "then change",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert_eq!(
        complaint(|| check::<Alarms<FAILS_LATE>>(&log())),
        Some(said),
        "`check` includes it"
    );
}

/// The alarm that rings before a late call fails would have rung without the call.
#[test]
fn a_change_that_time_makes_is_no_mistake() {
    let mut log = Log::new();
    log.apply(call("Second")).wait_ms(100_000).apply(call("Unknown"));
    check_failures::<Alarms<RIGHT>>(&log);
    assert!(complaint(|| check_failures::<Alarms<FAILS_LATE>>(&log)).is_some());
}

#[test]
fn a_wake_up_that_another_one_replaces_is_found() {
    let said = complaint(|| check_wake_ups::<Alarms<LATER>>(&log())).unwrap();
    for part in
        ["after entry 2 (First at index 5)", "before it was 1750000030000", "Machine::wake_at"]
    {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert_eq!(complaint(|| check::<Alarms<LATER>>(&log())), Some(said), "`check` includes it");
}

#[test]
fn a_wake_up_that_is_dropped_is_found() {
    let said = complaint(|| check_wake_ups::<Alarms<DROPS>>(&log())).unwrap();
    assert!(said.contains("the wake-up time is None, before it was 1750000030000"), "{said}");
}

#[test]
fn a_wake_up_that_was_never_asked_for_is_found() {
    let said = complaint(|| check_wake_ups::<Alarms<NEVER>>(&log())).unwrap();
    assert!(said.contains("the wake-up time is None, and a tick at"), "{said}");
}
