//! Goal: each message has one receiver at a time, comes back if it is not acknowledged, and becomes
//! a dead letter after too many deliveries; a key makes retries safe; the state machine satisfies
//! the contract.
//! Method: logs of calls, applied natively by the SDK's conformance tests, and their replies.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

use conclave_sdk::{
    Call, Code, Context, Failure, Machine as _,
    prost::Message,
    testing::{Log, Operation, check, check_derived},
};
use queue::{
    Queue, limits,
    pb::{
        AckRequest, AckResponse, ConfigureRequest, ConfigureResponse, DeadLettersRequest,
        DeadLettersResponse, DeleteRequest, DeleteResponse, EnqueueRequest, EnqueueResponse,
        ListRequest, ListResponse, NackRequest, NackResponse, ReceiveRequest, ReceiveResponse,
        RedriveRequest, RedriveResponse, StatsRequest, StatsResponse,
    },
};

const START_MS: u64 = 1_750_000_000_000;

fn method(name: &str, request: &impl Message) -> Call {
    Call::of(format!("queue.v1.Queue/{name}"), request)
}

fn enqueue(payload: &str, key: &str) -> Call {
    let request = EnqueueRequest {
        queue: "mail".into(),
        payload: payload.into(),
        idempotency_key: key.into(),
    };
    method("Enqueue", &request)
}

fn receive(count: u32, lease_ms: u64) -> Call {
    method("Receive", &ReceiveRequest { queue: "mail".into(), count, lease_ms })
}

fn ack(id: u64, receipt: u64) -> Call {
    method("Ack", &AckRequest { queue: "mail".into(), id, receipt })
}

fn nack(id: u64, receipt: u64) -> Call {
    method("Nack", &NackRequest { queue: "mail".into(), id, receipt })
}

fn stats() -> Call {
    method("Stats", &StatsRequest { queue: "mail".into() })
}

/// A state machine, and the time of its next entry.
#[derive(Default)]
struct Story {
    queue: Queue,
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
        let reply = self.queue.apply(&context, call)?;
        Ok(R::decode(&*reply.response).unwrap())
    }

    fn call<R: Message + Default>(&mut self, call: &Call) -> R {
        self.try_call(call).unwrap()
    }

    fn enqueue(&mut self, payload: &str) -> u64 {
        self.call::<EnqueueResponse>(&enqueue(payload, "")).id
    }

    /// Receives messages. Returns their ids, payloads and receipts.
    fn receive(&mut self, count: u32) -> Vec<(u64, String, u64)> {
        let response: ReceiveResponse = self.call(&receive(count, 1000));
        let text = |payload| String::from_utf8(payload).unwrap();
        response.messages.into_iter().map(|m| (m.id, text(m.payload), m.receipt)).collect()
    }

    fn query<R: Message + Default>(&self, call: &Call) -> R {
        R::decode(&*self.queue.query(&self.context(), call).unwrap()).unwrap()
    }

    /// Returns the numbers of ready, leased and dead messages.
    fn counts(&self) -> (u64, u64, u64) {
        let stats: StatsResponse = self.query(&stats());
        (stats.ready, stats.leased, stats.dead)
    }

    fn tick(&mut self) {
        self.index += 1;
        self.queue.tick(&self.context());
    }
}

#[test]
fn messages_come_in_order_to_one_receiver_each_and_go_when_acknowledged() {
    let mut story = Story::default();
    for payload in ["one", "two", "three"] {
        story.enqueue(payload);
    }
    let first = story.receive(2);
    assert_eq!(first.iter().map(|m| m.1.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    let second = story.receive(2);
    assert_eq!(second.iter().map(|m| m.1.as_str()).collect::<Vec<_>>(), ["three"]);
    assert_eq!(story.receive(2), []);
    assert_eq!(story.counts(), (0, 3, 0));
    assert!(story.call::<AckResponse>(&ack(first[0].0, first[0].2)).acked);
    let again: AckResponse = story.call(&ack(first[0].0, first[0].2));
    assert!(!again.acked, "a second ack succeeds");
    assert_eq!(story.counts(), (0, 2, 0));
}

#[test]
fn a_key_adds_one_message_for_ten_minutes() {
    let mut story = Story::default();
    let first: EnqueueResponse = story.call(&enqueue("one", "k"));
    let again: EnqueueResponse = story.call(&enqueue("one", "k"));
    assert_eq!((again.id, again.duplicate), (first.id, true));
    let (id, _, receipt) = story.receive(1)[0].clone();
    story.call::<AckResponse>(&ack(id, receipt));
    story.after_ms = limits::KEY_KEPT_MS - 1;
    assert!(
        story.call::<EnqueueResponse>(&enqueue("one", "k")).duplicate,
        "the key outlives its message"
    );
    assert_eq!(story.queue.wake_at(), Some(START_MS + limits::KEY_KEPT_MS));
    story.after_ms = limits::KEY_KEPT_MS;
    assert!(!story.call::<EnqueueResponse>(&enqueue("one", "k")).duplicate);
}

#[test]
fn what_is_not_acknowledged_in_time_comes_back_to_its_place() {
    let mut story = Story::default();
    story.enqueue("one");
    story.enqueue("two");
    let (id, _, stale) = story.receive(1)[0].clone();
    assert_eq!(story.queue.wake_at(), Some(START_MS + 1000));
    story.after_ms = 1000;
    story.tick();
    assert_eq!(story.counts(), (2, 0, 0));
    let failure = story.try_call::<AckResponse>(&ack(id, stale)).unwrap_err();
    assert_eq!(failure.code, Code::FailedPrecondition);
    let (same, payload, receipt) = story.receive(1)[0].clone();
    assert_eq!((same, payload.as_str()), (id, "one"), "before newer messages");
    assert!(receipt != stale);
    let failure = story.try_call::<AckResponse>(&ack(id, stale)).unwrap_err();
    assert!(failure.message.contains("another receiver"), "{}", failure.message);
    assert!(story.call::<AckResponse>(&ack(id, receipt)).acked);
}

#[test]
fn a_lease_that_was_given_back_does_not_end_the_next_one() {
    let mut story = Story::default();
    story.enqueue("one");
    let (id, _, receipt) = story.receive(1)[0].clone();
    story.after_ms = 900;
    story.call::<NackResponse>(&nack(id, receipt));
    let (_, _, receipt) = story.receive(1)[0].clone();
    story.after_ms = 1000;
    story.tick();
    assert_eq!(story.counts(), (0, 1, 0));
    assert_eq!(story.queue.wake_at(), Some(START_MS + 1900));
    assert!(story.call::<AckResponse>(&ack(id, receipt)).acked);
    assert_eq!(story.queue.wake_at(), None);
}

#[test]
fn a_message_that_comes_back_too_often_is_put_aside_until_it_is_redriven() {
    let mut story = Story::default();
    let request = ConfigureRequest { queue: "mail".into(), receives_max: 2 };
    story.call::<ConfigureResponse>(&method("Configure", &request));
    let poison = story.enqueue("poison");
    story.enqueue("fine");

    let (id, _, receipt) = story.receive(1)[0].clone();
    assert!(!story.call::<NackResponse>(&nack(id, receipt)).dead);
    // The second receiver dies while it processes the message.
    assert_eq!(story.receive(1)[0].0, poison);
    story.after_ms = 1000;
    story.tick();
    assert_eq!(story.counts(), (1, 0, 1));
    assert_eq!(story.receive(5).len(), 1, "a dead letter is not delivered");

    let request = DeadLettersRequest { queue: "mail".into(), after: 0, limit: 0 };
    let dead: DeadLettersResponse = story.query(&method("DeadLetters", &request));
    assert_eq!((dead.messages[0].id, dead.messages[0].receives, dead.more), (poison, 2, false));
    let redrive = method("Redrive", &RedriveRequest { queue: "mail".into(), count: 10 });
    assert_eq!(story.call::<RedriveResponse>(&redrive).redriven, 1);
    assert_eq!(story.receive(1)[0].0, poison);
}

/// A sweep removes a bounded number of keys, so a key may be used again after its end and before
/// its removal.
#[test]
fn a_key_that_is_used_again_before_its_removal_counts_from_then_on() {
    let mut log = Log::new();
    let keys = limits::ENDED_PER_ENTRY + 1;
    for number in 0..keys {
        log.apply(enqueue("work", &format!("{number:05}")));
    }
    let again = enqueue("work", &format!("{:05}", keys - 1));
    log.wait_ms(limits::KEY_KEPT_MS + 1).apply(again.clone());
    log.tick();
    log.apply(again);
    let mut queue = Queue::default();
    let answers: Vec<_> =
        log.entries().iter().map(|entry| entry.apply_to(&mut queue).unwrap()).collect();
    let duplicate = |at: usize| EnqueueResponse::decode(&*answers[at].response).unwrap().duplicate;
    assert!(!duplicate(keys), "its old key has ended");
    assert!(duplicate(keys + 2), "its new key has not");
    check_derived::<Queue>(&log);
}

#[test]
fn deleting_a_queue_leaves_nothing_of_it() {
    let mut story = Story::default();
    story.call::<EnqueueResponse>(&enqueue("one", "k"));
    story.enqueue("two");
    story.receive(1);
    let delete = method("Delete", &DeleteRequest { queue: "mail".into() });
    assert_eq!(story.call::<DeleteResponse>(&delete).messages, 2);
    assert_eq!(story.queue.wake_at(), None);
    assert_eq!(story.query::<ListResponse>(&method("List", &ListRequest {})).queues, [""; 0]);
    assert!(!story.call::<EnqueueResponse>(&enqueue("one", "k")).duplicate);
    assert_eq!(story.query::<StatsResponse>(&stats()).receives_max, limits::RECEIVES_DEFAULT);
}

#[test]
fn what_is_too_much_is_refused_and_changes_nothing() {
    let mut story = Story::default();
    let long = "x".repeat(limits::PAYLOAD_BYTES_MAX + 1);
    for call in [
        enqueue(&long, ""),
        enqueue("", &"k".repeat(limits::NAME_BYTES_MAX + 1)),
        method("Enqueue", &EnqueueRequest::default()),
        receive(limits::RECEIVE_MAX as u32 + 1, 1000),
        receive(1, limits::LEASE_MS_MIN - 1),
        receive(1, limits::LEASE_MS_MAX + 1),
        method("Configure", &ConfigureRequest { queue: "mail".into(), receives_max: 0 }),
    ] {
        let failure = story.try_call::<ReceiveResponse>(&call).unwrap_err();
        assert_eq!(failure.code, Code::InvalidArgument, "{}", failure.message);
    }
    assert_eq!(story.queue.save(), Queue::default().save());
    let failure = story.queue.query(&story.context(), &stats()).unwrap_err();
    assert_eq!(failure.code, Code::NotFound);
}

#[test]
fn full_is_full_and_acknowledging_makes_room() {
    let mut story = Story::default();
    let payload = "x".repeat(limits::PAYLOAD_BYTES_MAX);
    let each = limits::PAYLOAD_BYTES_MAX + limits::MESSAGE_OVERHEAD_BYTES;
    for _ in 0..limits::BYTES_MAX / each {
        story.enqueue(&payload);
    }
    let failure = story.try_call::<EnqueueResponse>(&enqueue(&payload, "")).unwrap_err();
    assert_eq!(failure.code, Code::ResourceExhausted);
    let received = story.receive(32);
    let most = limits::ANSWER_BYTES_MAX / limits::PAYLOAD_BYTES_MAX;
    assert_eq!(received.len(), most, "a response is bounded");
    story.call::<AckResponse>(&ack(received[0].0, received[0].2));
    story.enqueue(&payload);
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let mut story = Story::default();
    story.enqueue("one");
    let good = story.queue.save();
    assert!(Queue::load(1, &good).is_ok());
    let short = Queue::load(1, &good[..good.len() - 1]).err().unwrap();
    assert!(short.message.contains("not a valid snapshot of queues"), "{}", short.message);
    // The last id, which is the first field, is set to 0: there was no message.
    let forged: Vec<u8> = [&[0x08, 0x00], &good[2..]].concat();
    let forged = Queue::load(1, &forged).err().unwrap();
    assert!(forged.message.contains("id is 1"), "{}", forged.message);
}

/// Runs the conformance tests on random logs. Also checks that no message is lost that was
/// not acknowledged.
#[test]
fn whatever_happens_it_keeps_the_contract_and_loses_nothing() {
    for seed in 1..=20 {
        let mut random = Random(seed);
        let mut log = Log::new();
        log.ask(stats()).ask(method(
            "DeadLetters",
            &DeadLettersRequest { queue: "mail".into(), ..DeadLettersRequest::default() },
        ));
        // A second state machine runs beside the log, so that calls can use valid receipts.
        let (mut queue, mut given) = (Queue::default(), vec![(1, 3)]);
        let (mut enqueued, mut acked) = (0, 0);
        for _ in 0..80 {
            log.wait_ms(random.below(200));
            // Mostly one of the last receipts, which may still be valid.
            let back = random.below(given.len().min(5) as u64) as usize;
            let (id, receipt) = given[given.len() - 1 - back];
            match random.below(9) {
                0..=2 => log.apply(enqueue("work", ["", "k", "l"][random.below(3) as usize])),
                3..=4 => log.apply(receive(1 + random.below(3) as u32, 100 + random.below(2000))),
                5..=6 => log.apply(ack(id, receipt)),
                7 => log.apply(nack(id, receipt)),
                _ => log.tick(),
            };
            let entry = log.entries().last().unwrap();
            let outcome = entry.apply_to(&mut queue);
            let (Operation::Apply(call), Ok(reply)) = (&entry.operation, outcome) else { continue };
            let response = &*reply.response;
            match call.method.rsplit('/').next().unwrap() {
                "Enqueue" => {
                    let response = EnqueueResponse::decode(response).unwrap();
                    enqueued += u64::from(!response.duplicate);
                }
                "Ack" => acked += u64::from(AckResponse::decode(response).unwrap().acked),
                "Receive" => {
                    let messages = ReceiveResponse::decode(response).unwrap().messages;
                    given.extend(messages.into_iter().map(|m| (m.id, m.receipt)));
                }
                _ => {}
            }
            if let Ok(answer) = queue.query(&entry.context, &stats()) {
                let stats = StatsResponse::decode(&*answer).unwrap();
                let there = stats.ready + stats.leased + stats.dead;
                assert_eq!(there, enqueued - acked, "seed {seed}, index {}", entry.context.index);
            }
        }
        check::<Queue>(&log);
        check_derived::<Queue>(&log);
        assert!(enqueued > 3 && acked > 0, "seed {seed}: too little happened");
    }
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
}
