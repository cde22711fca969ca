//! Goal: at most one owner at a time, a fair order, increasing tokens, and leases that end by
//! themselves, in accordance with the contract.
//! Method: logs of calls, applied natively by the SDK's conformance tests, and their replies.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use conclave_sdk::{
    Call, Code, Context, Failure, Machine as _,
    prost::Message,
    testing::{Log, check, check_same_state},
};
use lock::{
    Lock, limits,
    pb::{
        AcquireRequest, AcquireResponse, GetRequest, Lease, LeaveRequest, LeaveResponse,
        ListRequest, ListResponse, LockState, ReleaseRequest, ReleaseResponse, RenewRequest,
    },
};

const START_MS: u64 = 1_750_000_000_000;

fn acquire(name: &str, owner: &str, ttl_ms: u64, wait: bool) -> Call {
    let request = AcquireRequest { name: name.into(), owner: owner.into(), ttl_ms, wait };
    Call::of("lock.v1.Lock/Acquire", &request)
}

fn renew(name: &str, owner: &str, token: u64, ttl_ms: u64) -> Call {
    let request = RenewRequest { name: name.into(), owner: owner.into(), token, ttl_ms };
    Call::of("lock.v1.Lock/Renew", &request)
}

fn release(name: &str, owner: &str, token: u64) -> Call {
    let request = ReleaseRequest { name: name.into(), owner: owner.into(), token };
    Call::of("lock.v1.Lock/Release", &request)
}

fn get(name: &str) -> Call {
    Call::of("lock.v1.Lock/Get", &GetRequest { name: name.into() })
}

/// A state machine, and the time of its next entry.
#[derive(Default)]
struct Story {
    lock: Lock,
    after_ms: u64,
    index: u64,
}

impl Story {
    fn context(&self) -> Context {
        let time_ms = START_MS + self.after_ms;
        Context { index: self.index, time_ms, seed: 0, principal: String::new() }
    }

    fn try_call<R: Message + Default>(&mut self, call: &Call) -> Result<R, Failure> {
        self.index += 1;
        let context = self.context();
        let reply = self.lock.apply(&context, call)?;
        Ok(R::decode(&*reply.response).unwrap())
    }

    fn call<R: Message + Default>(&mut self, call: &Call) -> R {
        self.try_call(call).unwrap()
    }

    fn acquire(&mut self, owner: &str, ttl_ms: u64, wait: bool) -> AcquireResponse {
        self.call(&acquire("db", owner, ttl_ms, wait))
    }

    fn state(&self, name: &str) -> LockState {
        let answer = self.lock.query(&self.context(), &get(name)).unwrap();
        LockState::decode(&*answer).unwrap()
    }

    fn owner(&self) -> Option<String> {
        self.state("db").lease.map(|lease| lease.owner)
    }

    /// Runs a tick. Returns the wake-up time after it.
    fn tick(&mut self) -> Option<u64> {
        self.index += 1;
        self.lock.tick(&self.context());
        self.lock.wake_at()
    }
}

#[test]
fn one_holds_it_and_the_others_hear_who() {
    let mut story = Story::default();
    let mine = story.acquire("a", 1000, false);
    assert!(mine.acquired);
    let theirs = story.acquire("b", 1000, false);
    assert!(!theirs.acquired);
    assert_eq!((theirs.lease, theirs.place), (mine.lease, 0));
    let other: AcquireResponse = story.call(&acquire("another", "b", 1000, false));
    assert!(other.acquired, "locks are independent");
}

#[test]
fn acquiring_again_keeps_the_token_and_begins_the_ttl_anew() {
    let mut story = Story::default();
    let first = story.acquire("a", 1000, false).lease.unwrap();
    story.after_ms = 900;
    let again = story.acquire("a", 1000, false).lease.unwrap();
    assert_eq!(again.token, first.token);
    assert_eq!(again.expires_at_ms, first.expires_at_ms + 900);
}

#[test]
fn a_lease_that_is_not_renewed_ends_and_its_token_is_worth_nothing() {
    let mut story = Story::default();
    let token = story.acquire("a", 1000, false).lease.unwrap().token;
    story.after_ms = 999;
    let renewed: Lease = story.call(&renew("db", "a", token, 500));
    assert_eq!(renewed.expires_at_ms, START_MS + 999 + 500);
    story.after_ms = 999 + 500;
    let failure = story.try_call::<Lease>(&renew("db", "a", token, 500)).unwrap_err();
    assert_eq!(failure.code, Code::FailedPrecondition);
    assert!(failure.message.contains("stop the work"), "{}", failure.message);

    let next = story.acquire("b", 1000, false).lease.unwrap();
    assert!(next.token > token);
    let released: ReleaseResponse = story.call(&release("db", "a", token));
    assert!(!released.released, "a stale release takes nothing from the new owner");
    assert_eq!(story.owner().as_deref(), Some("b"));
}

#[test]
fn tokens_grow_over_all_locks_and_are_not_given_again_once_a_lock_is_free() {
    let mut story = Story::default();
    let mut last = 0;
    for round in 0..10 {
        let name = ["x", "y"][round % 2];
        let lease = story.call::<AcquireResponse>(&acquire(name, "a", 1000, false)).lease.unwrap();
        assert!(lease.token > last);
        last = lease.token;
        assert!(story.call::<ReleaseResponse>(&release(name, "a", last)).released);
        assert_eq!(story.state(name).lease, None);
    }
}

#[test]
fn those_who_wait_get_it_in_their_order_and_for_their_own_ttl() {
    let mut story = Story::default();
    let first = story.acquire("a", 1000, true).lease.unwrap();
    assert_eq!(story.acquire("b", 2000, true).place, 1);
    assert_eq!(story.acquire("c", 3000, true).place, 2);
    assert_eq!(story.acquire("d", 4000, true).place, 3);
    assert_eq!(story.acquire("c", 3000, true).place, 2, "a second call keeps the place");
    assert_eq!(story.acquire("d", 4000, false).place, 3, "a call without waiting keeps the place");
    assert_eq!(story.state("db").waiting, ["b", "c", "d"]);

    let request = LeaveRequest { name: "db".into(), owner: "c".into() };
    let leave = Call::of("lock.v1.Lock/Leave", &request);
    assert!(story.call::<LeaveResponse>(&leave).left);
    assert!(!story.call::<LeaveResponse>(&leave).left);

    story.after_ms = 100;
    assert!(story.call::<ReleaseResponse>(&release("db", "a", first.token)).released);
    let second = story.state("db").lease.unwrap();
    assert_eq!((second.owner.as_str(), second.expires_at_ms), ("b", START_MS + 100 + 2000));
    assert!(second.token > first.token);

    // b has died: no call comes, but a tick comes at the wake-up time.
    assert_eq!(story.lock.wake_at(), Some(START_MS + 2100));
    story.after_ms = 2100;
    let wake_at = story.tick();
    assert_eq!(story.owner().as_deref(), Some("d"));
    assert_eq!(wake_at, Some(START_MS + 2100 + 4000));
    story.after_ms = 6100;
    assert_eq!(story.tick(), None, "no lease is left");
    assert_eq!(story.state("db"), LockState { name: "db".into(), ..LockState::default() });
}

#[test]
fn a_lease_has_ended_at_its_time_even_if_no_tick_came() {
    let mut story = Story::default();
    story.acquire("a", 1000, false);
    story.after_ms = 1000;
    assert_eq!(story.owner(), None);
    assert!(story.acquire("b", 1000, false).acquired);
}

#[test]
fn a_tick_is_bounded_and_asks_for_another() {
    let mut story = Story::default();
    let locks = limits::ENDED_PER_ENTRY + 1;
    for number in 0..locks {
        story.call::<AcquireResponse>(&acquire(&format!("lock-{number}"), "a", 1000, false));
    }
    story.after_ms = 5000;
    assert_eq!(story.tick(), Some(START_MS + 1000), "as soon as possible");
    assert_eq!(story.tick(), None);
}

#[test]
fn lists_come_in_pages_by_prefix() {
    let mut story = Story::default();
    for name in ["a", "job/", "job/1", "job/2", "job/3", "k"] {
        story.call::<AcquireResponse>(&acquire(name, "me", 1000, false));
    }
    let page = |after: &str| {
        let request = ListRequest { prefix: "job/".into(), after: after.into(), limit: 3 };
        let call = Call::of("lock.v1.Lock/List", &request);
        let answer = story.lock.query(&story.context(), &call).unwrap();
        let page = ListResponse::decode(&*answer).unwrap();
        (page.locks.into_iter().map(|lock| lock.name).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(page(""), (vec!["job/".into(), "job/1".into(), "job/2".into()], true));
    assert_eq!(page("job/2"), (vec!["job/3".into()], false));
}

#[test]
fn what_is_too_much_is_refused_and_changes_nothing() {
    let mut story = Story::default();
    let long = "x".repeat(limits::NAME_BYTES_MAX + 1);
    for call in [
        acquire("", "a", 1000, false),
        acquire(&long, "a", 1000, false),
        acquire("db", "", 1000, false),
        acquire("db", "a", limits::TTL_MS_MIN - 1, false),
        acquire("db", "a", limits::TTL_MS_MAX + 1, false),
    ] {
        let failure = story.try_call::<AcquireResponse>(&call).unwrap_err();
        assert_eq!(failure.code, Code::InvalidArgument, "{}", failure.message);
    }
    assert_eq!(story.lock.save(), Lock::default().save());

    story.acquire("a", 1000, false);
    for number in 0..limits::WAITING_MAX {
        story.acquire(&format!("waiter-{number}"), 1000, true);
    }
    let failure = story.try_call::<AcquireResponse>(&acquire("db", "late", 1000, true));
    assert_eq!(failure.unwrap_err().code, Code::ResourceExhausted);
    assert_eq!(
        story.acquire("waiter-3", 1000, true).place,
        4,
        "an owner that waits already may call again"
    );
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let mut story = Story::default();
    story.acquire("a", 1000, false);
    let good = story.lock.save();
    assert!(Lock::load(1, &good).is_ok());
    let short = Lock::load(1, &good[..good.len() - 1]).err().unwrap();
    assert!(short.message.contains("not a valid snapshot of locks"), "{}", short.message);
    // The last token, which is the first field, is set to 0: no token was given.
    let forged: Vec<u8> = [&[0x08, 0x00], &good[2..]].concat();
    let forged = Lock::load(1, &forged).err().unwrap();
    assert!(forged.message.contains("never given"), "{}", forged.message);
}

/// Runs the conformance tests on random logs. Also checks that no token is given twice or to two owners.
#[test]
fn whatever_happens_it_keeps_the_contract_and_no_token_is_given_twice() {
    for seed in 1..=20 {
        let mut random = Random(seed);
        let mut log = Log::new();
        for name in ["x", "y"] {
            log.ask(get(name));
        }
        log.ask(Call::of("lock.v1.Lock/List", &ListRequest::default()));
        for _ in 0..60 {
            let (name, owner) = (random.of(&["x", "y"]), random.of(&["a", "b", "c"]));
            log.wait_ms(random.below(300));
            match random.below(6) {
                0..=2 => log.apply(acquire(name, owner, 100 + random.below(900), true)),
                3 => log.apply(release(name, owner, random.below(20))),
                4 => log.apply(renew(name, owner, random.below(20), 500)),
                _ => log.tick(),
            };
        }
        check::<Lock>(&log);

        let mut owners = std::collections::BTreeMap::new();
        let mut lock = Lock::default();
        let mut last = 0;
        for entry in log.entries() {
            let _ = entry.apply_to(&mut lock);
            for name in ["x", "y"] {
                let answer = lock.query(&entry.context, &get(name)).unwrap();
                let Some(lease) = LockState::decode(&*answer).unwrap().lease else { continue };
                let holder = (lease.name, lease.owner);
                let known = owners.entry(lease.token).or_insert_with(|| {
                    // One entry may grant both locks, so the greater token may be read first.
                    assert!(lease.token + 1 >= last, "seed {seed}: {} after {last}", lease.token);
                    last = last.max(lease.token);
                    holder.clone()
                });
                assert_eq!(*known, holder, "seed {seed}: one token, two holders");
            }
        }
        assert!(owners.len() > 5, "seed {seed}: too little happened");
    }
}

/// Fails if the snapshot depends on the order in which the locks were taken.
#[test]
fn the_way_to_a_state_does_not_show_in_it() {
    let log = |names: [&str; 2]| {
        let mut log = Log::new();
        log.apply(acquire("first", "a", 1000, false)).apply(release("first", "a", 1));
        for name in names {
            log.apply(acquire(name, "a", 1000, false));
        }
        // Both locks are released and taken again in the same order, so the tokens are the same.
        let (x, y) = if names == ["x", "y"] { (2, 3) } else { (3, 2) };
        log.apply(release("x", "a", x)).apply(release("y", "a", y));
        log.apply(acquire("x", "a", 1000, false)).apply(acquire("y", "a", 1000, false));
        log
    };
    check_same_state::<Lock>(&log(["x", "y"]), &log(["y", "x"]));
}

/// Xorshift (Marsaglia 2003): pseudo-random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len() as u64) as usize]
    }
}
