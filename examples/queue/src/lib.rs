//! The state machine `queue.v1.Queue`: work queues with leases, retries and dead letters.
//!
//! An example of exactly-once and at-least-once semantics. An idempotency key makes retries safe. A
//! receipt is the log index of the entry that delivered a message. It distinguishes the current
//! receiver of a message from earlier ones.
//!
//! - `limits`: the limits;
//! - `line`: one queue;
//! - `state`: all queues, and the timers of leases and keys;
//! - `snapshot`: serialization of the state.

pub mod limits;
mod line;
mod snapshot;
mod state;

/// The messages of `queue.v1`.
pub mod pb {
    #![allow(missing_docs, reason = "generated from the proto file, which has the documentation")]
    conclave_sdk::include_protobuf!("queue.v1");
}

use conclave_sdk::{Context, Failure, Machine, Reply, Router};

use crate::{
    limits::{
        ANSWER_BYTES_MAX, BYTES_MAX, ENDED_PER_ENTRY, KEY_KEPT_MS, KEYS_MAX, LEASE_MS_MAX,
        LEASE_MS_MIN, MESSAGE_OVERHEAD_BYTES, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, QUEUES_MAX,
        RECEIVE_MAX, RECEIVES_MAX, REDRIVE_MAX, check,
    },
    line::{Key, Line, Message, Place},
    pb::{
        AckRequest, AckResponse, ConfigureRequest, ConfigureResponse, DeadLetter,
        DeadLettersRequest, DeadLettersResponse, DeleteRequest, DeleteResponse, EnqueueRequest,
        EnqueueResponse, ListRequest, ListResponse, NackRequest, NackResponse, ReceiveRequest,
        ReceiveResponse, RedriveRequest, RedriveResponse, StatsRequest, StatsResponse,
    },
    state::State,
};

/// The state machine.
#[derive(Debug, Default, PartialEq)]
pub struct Queue {
    state: State,
}

impl Queue {
    fn enqueue(
        &mut self,
        context: &Context,
        request: EnqueueRequest,
    ) -> Result<EnqueueResponse, Failure> {
        let EnqueueRequest { queue, payload, idempotency_key } = request;
        check("the length of the queue's name", queue.len(), (1, NAME_BYTES_MAX))?;
        check("the length of the key", idempotency_key.len(), (0, NAME_BYTES_MAX))?;
        check("the length of the payload", payload.len(), (0, PAYLOAD_BYTES_MAX))?;
        self.catch_up(context);
        if let Some(id) = self.made_by(&queue, &idempotency_key, context.time_ms) {
            return Ok(EnqueueResponse { id, duplicate: true });
        }
        self.check_room(&queue, payload.len(), !idempotency_key.is_empty())?;

        self.state.last_id += 1;
        let id = self.state.last_id;
        let enqueued_at_ms = context.time_ms;
        let message = Message { payload, enqueued_at_ms, receives: 0, place: Place::Ready };
        self.state.insert(&queue, id, message);
        if !idempotency_key.is_empty() {
            let key = Key { id, kept_until_ms: context.time_ms.saturating_add(KEY_KEPT_MS) };
            self.state.insert_key(&queue, idempotency_key, key);
        }
        Ok(EnqueueResponse { id, duplicate: false })
    }

    fn receive(
        &mut self,
        context: &Context,
        request: ReceiveRequest,
    ) -> Result<ReceiveResponse, Failure> {
        let ReceiveRequest { queue, count, lease_ms } = request;
        check("count", count as usize, (0, RECEIVE_MAX))?;
        check("lease_ms", lease_ms, (LEASE_MS_MIN, LEASE_MS_MAX))?;
        self.catch_up(context);

        let leased_until_ms = context.time_ms.saturating_add(lease_ms);
        // An entry delivers a message at most once, so its index identifies the delivery.
        let receipt = context.index;
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while messages.len() < count.max(1) as usize {
            let next = self.state.line(&queue).and_then(Line::next_ready);
            let Some((id, message)) = next else { break };
            bytes += message.payload.len();
            if bytes > ANSWER_BYTES_MAX && !messages.is_empty() {
                break;
            }
            let Some(message) = self.state.lease(&queue, id, receipt, leased_until_ms) else {
                break;
            };
            messages.push(pb::Message {
                id,
                payload: message.payload.clone(),
                receipt,
                receives: message.receives,
                enqueued_at_ms: message.enqueued_at_ms,
                leased_until_ms,
            });
        }
        Ok(ReceiveResponse { messages })
    }

    fn ack(&mut self, context: &Context, request: AckRequest) -> Result<AckResponse, Failure> {
        let AckRequest { queue, id, receipt } = request;
        self.catch_up(context);
        let acked = self.check_receipt(&queue, id, receipt)?;
        self.state.remove(&queue, id);
        Ok(AckResponse { acked })
    }

    fn nack(&mut self, context: &Context, request: NackRequest) -> Result<NackResponse, Failure> {
        let NackRequest { queue, id, receipt } = request;
        self.catch_up(context);
        let there = self.check_receipt(&queue, id, receipt)?;
        let dead = there && self.state.give_back(&queue, id);
        Ok(NackResponse { dead })
    }

    fn configure(
        &mut self,
        context: &Context,
        request: ConfigureRequest,
    ) -> Result<ConfigureResponse, Failure> {
        let ConfigureRequest { queue, receives_max } = request;
        check("the length of the queue's name", queue.len(), (1, NAME_BYTES_MAX))?;
        check("receives_max", receives_max, (1, RECEIVES_MAX))?;
        self.catch_up(context);
        self.check_room(&queue, 0, false)?;
        self.state.line_mut(&queue).receives_max = receives_max;
        Ok(ConfigureResponse {})
    }

    fn redrive(
        &mut self,
        context: &Context,
        request: RedriveRequest,
    ) -> Result<RedriveResponse, Failure> {
        let RedriveRequest { queue, count } = request;
        check("count", count, (1, REDRIVE_MAX))?;
        self.catch_up(context);
        self.find(&queue)?;
        let line = self.state.line_mut(&queue);
        let redriven = (0..count).take_while(|_| line.redrive()).count() as u32;
        Ok(RedriveResponse { redriven })
    }

    fn delete(
        &mut self,
        context: &Context,
        request: DeleteRequest,
    ) -> Result<DeleteResponse, Failure> {
        self.catch_up(context);
        let messages = self.state.delete(&request.queue) as u64;
        Ok(DeleteResponse { messages })
    }

    fn stats(&self, _: &Context, request: StatsRequest) -> Result<StatsResponse, Failure> {
        let line = self.find(&request.queue)?;
        let (all, ready, dead) = (line.messages.len(), line.ready(), line.dead());
        Ok(StatsResponse {
            ready: ready as u64,
            leased: (all - ready - dead) as u64,
            dead: dead as u64,
            oldest_enqueued_at_ms: line.oldest().map_or(0, |message| message.enqueued_at_ms),
            receives_max: line.receives_max,
        })
    }

    fn dead_letters(
        &self,
        _: &Context,
        request: DeadLettersRequest,
    ) -> Result<DeadLettersResponse, Failure> {
        let DeadLettersRequest { queue, after, limit } = request;
        check("limit", limit as usize, (0, RECEIVE_MAX))?;
        let limit = if limit == 0 { RECEIVE_MAX } else { limit as usize };
        let mut response = DeadLettersResponse::default();
        let mut bytes = 0;
        for (id, message) in self.find(&queue)?.dead_after(after) {
            bytes += message.payload.len();
            let full = response.messages.len() == limit || bytes > ANSWER_BYTES_MAX;
            if full && !response.messages.is_empty() {
                response.more = true;
                break;
            }
            response.messages.push(DeadLetter {
                id,
                payload: message.payload.clone(),
                receives: message.receives,
                enqueued_at_ms: message.enqueued_at_ms,
            });
        }
        Ok(response)
    }

    fn list(&self, _: &Context, _: ListRequest) -> Result<ListResponse, Failure> {
        Ok(ListResponse { queues: self.state.lines().map(|(name, _)| name.clone()).collect() })
    }

    /// Ends leases and keys whose time has come. These changes are kept even if the call then
    /// fails: time alone would have made them.
    fn catch_up(&mut self, context: &Context) {
        self.state.sweep(context.time_ms, ENDED_PER_ENTRY);
    }

    fn find(&self, queue: &str) -> Result<&Line, Failure> {
        self.state.line(queue).ok_or_else(|| {
            Failure::not_found(format!("there is no queue {queue:?}; its first message creates it"))
        })
    }

    /// Returns the message that was enqueued with this key, unless the key has expired.
    fn made_by(&self, queue: &str, key: &str, time_ms: u64) -> Option<u64> {
        let made = self.state.line(queue)?.keys.get(key)?;
        (made.kept_until_ms > time_ms).then_some(made.id)
    }

    fn check_room(&self, queue: &str, payload_bytes: usize, with_key: bool) -> Result<(), Failure> {
        let full = |what: String| Err(Failure::resource_exhausted(what));
        if self.state.line(queue).is_none() && self.state.len() >= QUEUES_MAX {
            return full(format!("there are {QUEUES_MAX} queues; delete one"));
        }
        if self.state.bytes() + payload_bytes + MESSAGE_OVERHEAD_BYTES > BYTES_MAX {
            return full(format!(
                "the queues have reached {BYTES_MAX} bytes; receive and ack some messages"
            ));
        }
        if with_key && self.state.keys_total() >= KEYS_MAX {
            return full(format!(
                "{KEYS_MAX} idempotency keys are in use; they expire by themselves"
            ));
        }
        Ok(())
    }

    /// Returns whether the message exists. Fails if it exists but is not leased with this receipt.
    fn check_receipt(&self, queue: &str, id: u64, receipt: u64) -> Result<bool, Failure> {
        let message = self.state.line(queue).and_then(|line| line.messages.get(&id));
        match message.map(|message| message.place) {
            None => Ok(false),
            Some(Place::Leased { receipt: current, .. }) if current == receipt => Ok(true),
            Some(_) => Err(Failure::failed_precondition(format!(
                "the lease of message {id} with receipt {receipt} has ended, and the message came \
                 back: another receiver will do the work, or does it now"
            ))),
        }
    }
}

impl Machine for Queue {
    const NAME: &'static str = "queue";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = 1;

    fn router() -> Router<Self> {
        Router::new()
            .descriptor_set(pb::DESCRIPTOR_SET)
            .command("queue.v1.Queue/Enqueue", Self::enqueue)
            .command("queue.v1.Queue/Receive", Self::receive)
            .command("queue.v1.Queue/Ack", Self::ack)
            .command("queue.v1.Queue/Nack", Self::nack)
            .command("queue.v1.Queue/Configure", Self::configure)
            .command("queue.v1.Queue/Redrive", Self::redrive)
            .command("queue.v1.Queue/Delete", Self::delete)
            .query("queue.v1.Queue/Stats", Self::stats)
            .query("queue.v1.Queue/DeadLetters", Self::dead_letters)
            .query("queue.v1.Queue/List", Self::list)
    }

    fn tick(&mut self, context: &Context) -> Reply {
        self.state.sweep(context.time_ms, ENDED_PER_ENTRY);
        Reply::default()
    }

    fn wake_at(&self) -> Option<u64> {
        self.state.next_end_ms()
    }

    fn save(&self) -> Vec<u8> {
        snapshot::save(&self.state)
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        Ok(Self { state: snapshot::load(bytes)? })
    }
}

conclave_sdk::export!(Queue);
