//! Implementation of the contract for the store.

use conclave_sdk::{
    Context, Event, Failure, Machine, Reply, Router, Subscription,
    prost::Message,
    snapshot::{self, RestoreWriter, SnapshotReader},
};

use crate::{
    limits::{SWEPT_BYTES_PER_COMMAND, SWEPT_BYTES_PER_TICK, SWEPT_PER_COMMAND, SWEPT_PER_TICK},
    pb::{
        BatchRequest, BatchResponse, DESCRIPTOR_SET, DeleteRequest, GetRequest, GetResponse,
        PutRequest, RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchRequest,
    },
    range::range,
    restore::{FORMAT_WITH_CHECKSUM, Restore},
    snapshot::{FORMAT_VERSION, Snapshot},
    state::State,
    step::{Step, get},
    transaction,
    watch::watch,
};

/// A key-value store.
#[derive(Default)]
pub struct Kv {
    pub(crate) state: State,
}

impl Kv {
    /// Returns the bytes that the records count towards
    /// [`STORE_BYTES_MAX`](crate::limits::STORE_BYTES_MAX).
    pub fn bytes(&self) -> u64 {
        self.state.bytes()
    }

    fn put(&mut self, context: &Context, request: PutRequest) -> Result<Reply, Failure> {
        let (response, events) = self.change(context, |step| step.put(request))?;
        Ok(reply(&response, events))
    }

    fn delete(&mut self, context: &Context, request: DeleteRequest) -> Result<Reply, Failure> {
        let (response, events) = self.change(context, |step| step.delete(&request))?;
        Ok(reply(&response, events))
    }

    fn batch(&mut self, context: &Context, request: BatchRequest) -> Result<Reply, Failure> {
        transaction::check_operations("the batch", &request.operations)?;
        let (results, events) =
            self.all_or_none(context, |step| transaction::run(step, request.operations))?;
        Ok(reply(&BatchResponse { revision: self.state.revision(), results }, events))
    }

    fn txn(&mut self, context: &Context, request: TxnRequest) -> Result<Reply, Failure> {
        transaction::check_txn(&request)?;
        let ((succeeded, results), events) = self.all_or_none(context, |step| {
            let mut compares = request.compares.iter();
            let succeeded =
                compares.all(|compare| transaction::holds(step.state(), step.time_ms(), compare));
            let operations = if succeeded { request.then } else { request.r#else };
            Ok((succeeded, transaction::run(step, operations)?))
        })?;
        let response = TxnResponse { succeeded, revision: self.state.revision(), results };
        Ok(reply(&response, events))
    }

    fn get(&self, context: &Context, request: GetRequest) -> Result<GetResponse, Failure> {
        let response = get(&self.state, context.time_ms, &request)?;
        if response.kv.is_none() {
            return Err(Failure::not_found(format!("there is no key {:?}", request.key)));
        }
        Ok(response)
    }

    fn range(&self, context: &Context, request: RangeRequest) -> Result<RangeResponse, Failure> {
        range(&self.state, context.time_ms, &request)
    }

    fn watch(&self, context: &Context, request: WatchRequest) -> Result<Subscription, Failure> {
        watch(&self.state, context, &request)
    }

    /// Runs one operation. The operation checks everything before it changes anything.
    fn change<T>(
        &mut self,
        context: &Context,
        body: impl FnOnce(&mut Step<'_>) -> Result<T, Failure>,
    ) -> Result<(T, Vec<Event>), Failure> {
        if self.state.has_expired(context.time_ms) {
            return self.all_or_none(context, body);
        }
        let mut step = Step::new(&mut self.state, context);
        let given = body(&mut step)?;
        Ok((given, step.into_events()))
    }

    /// Runs `body` on a copy that shares its structure with the state, and keeps the copy on
    /// success. Also deletes some expired keys: otherwise a state without ticks would only grow. A
    /// failure has no events that could report the deletions, so it deletes nothing.
    fn all_or_none<T>(
        &mut self,
        context: &Context,
        body: impl FnOnce(&mut Step<'_>) -> Result<T, Failure>,
    ) -> Result<(T, Vec<Event>), Failure> {
        let mut next = self.state.clone();
        let mut step = Step::new(&mut next, context);
        step.sweep(SWEPT_PER_COMMAND, SWEPT_BYTES_PER_COMMAND);
        let given = body(&mut step)?;
        let events = step.into_events();
        self.state = next;
        Ok((given, events))
    }
}

fn reply(response: &impl Message, events: Vec<Event>) -> Reply {
    Reply { events, ..Reply::of(response) }
}

impl Machine for Kv {
    const NAME: &'static str = "kv";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = FORMAT_VERSION;
    const RESTORES: &'static [u32] = &[FORMAT_WITH_CHECKSUM, FORMAT_VERSION];

    fn router() -> Router<Self> {
        Router::new()
            .descriptor_set(DESCRIPTOR_SET)
            .command("kv.v1.KV/Put", Self::put)
            .query("kv.v1.KV/Get", Self::get)
            .command("kv.v1.KV/Delete", Self::delete)
            .query("kv.v1.KV/Range", Self::range)
            .command("kv.v1.KV/Batch", Self::batch)
            .command("kv.v1.KV/Txn", Self::txn)
            .subscription("kv.v1.KV/Watch", Self::watch)
    }

    fn tick(&mut self, context: &Context) -> Reply {
        let mut step = Step::new(&mut self.state, context);
        step.sweep(SWEPT_PER_TICK, SWEPT_BYTES_PER_TICK);
        Reply { events: step.into_events(), ..Reply::default() }
    }

    /// Returns the time at which the next key expires: the first entry of an ordered index.
    fn wake_at(&self) -> Option<u64> {
        self.state.next_expiry_ms()
    }

    fn save(&self) -> Vec<u8> {
        snapshot::read_all(self.snapshot())
    }

    fn load(state_version: u32, bytes: &[u8]) -> Result<Self, Failure> {
        snapshot::write_all(Self::restore(state_version)?, bytes)
    }

    fn snapshot(&self) -> Box<dyn SnapshotReader> {
        Box::new(Snapshot::new(self.state.clone()))
    }

    fn restore(_: u32) -> Result<Box<dyn RestoreWriter<Self>>, Failure> {
        Ok(Box::new(Restore::default()))
    }
}
