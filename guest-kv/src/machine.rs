//! The machine: the store behind the contract.

use std::sync::LazyLock;

use conclave_sdk::{
    Call, Context, Failure, Machine, Reply, Router,
    prost::Message,
    snapshot::{self, RestoreWriter, SnapshotReader},
};

use crate::{
    limits::{SWEPT_PER_COMMAND, SWEPT_PER_TICK},
    pb::{
        BatchRequest, BatchResponse, DESCRIPTOR_SET, DeleteRequest, GetRequest, GetResponse,
        PutRequest, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
    },
    range::range,
    restore::Restore,
    snapshot::{FORMAT_VERSION, Snapshot},
    state::State,
    step::{Step, get},
    transaction,
};

static ROUTER: LazyLock<Router<Kv>> = LazyLock::new(|| {
    Router::new()
        .command("kv.v1.KV/Put", Kv::put)
        .query("kv.v1.KV/Get", Kv::get)
        .command("kv.v1.KV/Delete", Kv::delete)
        .query("kv.v1.KV/Range", Kv::range)
        .command("kv.v1.KV/Batch", Kv::batch)
        .command("kv.v1.KV/Txn", Kv::txn)
});

/// A key-value store.
#[derive(Default)]
pub struct Kv {
    pub(crate) state: State,
}

impl Kv {
    /// What the records count towards [`STORE_BYTES_MAX`](crate::limits::STORE_BYTES_MAX).
    pub fn bytes(&self) -> u64 {
        self.state.bytes()
    }

    fn put(&mut self, context: &Context, request: PutRequest) -> Result<Reply, Failure> {
        let response = self.step(context).put(request)?;
        Ok(self.reply(&response))
    }

    fn delete(&mut self, context: &Context, request: DeleteRequest) -> Result<Reply, Failure> {
        let response = self.step(context).delete(&request)?;
        Ok(self.reply(&response))
    }

    fn batch(&mut self, context: &Context, request: BatchRequest) -> Result<Reply, Failure> {
        transaction::check_operations("the batch", &request.operations)?;
        let results =
            self.all_or_none(context, |step| transaction::run(step, request.operations))?;
        Ok(self.reply(&BatchResponse { revision: self.state.revision(), results }))
    }

    fn txn(&mut self, context: &Context, request: TxnRequest) -> Result<Reply, Failure> {
        transaction::check_txn(&request)?;
        let (succeeded, results) = self.all_or_none(context, |step| {
            let mut compares = request.compares.iter();
            let succeeded =
                compares.all(|compare| transaction::holds(step.state(), step.time_ms(), compare));
            let operations = if succeeded { request.then } else { request.r#else };
            Ok((succeeded, transaction::run(step, operations)?))
        })?;
        Ok(self.reply(&TxnResponse { succeeded, revision: self.state.revision(), results }))
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

    /// Begins the work of an entry. It also deletes some keys that expired: a state whose host never
    /// ticks would grow otherwise.
    fn step(&mut self, context: &Context) -> Step<'_> {
        self.state.sweep(context.time_ms, SWEPT_PER_COMMAND);
        Step::new(&mut self.state, context.time_ms)
    }

    /// Runs `body` on a copy, which shares its structure with the state, and keeps it on success.
    fn all_or_none<T>(
        &mut self,
        context: &Context,
        body: impl FnOnce(&mut Step<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut next = self.step(context).state().clone();
        let given = body(&mut Step::new(&mut next, context.time_ms))?;
        self.state = next;
        Ok(given)
    }

    fn reply(&self, response: &impl Message) -> Reply {
        Reply::of(response).wake_at(self.state.next_expiry_ms())
    }
}

impl Machine for Kv {
    const NAME: &'static str = "kv";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = FORMAT_VERSION;

    fn descriptor_set() -> &'static [u8] {
        DESCRIPTOR_SET
    }

    fn apply(&mut self, context: &Context, call: &Call) -> Result<Reply, Failure> {
        ROUTER.apply(self, context, call)
    }

    fn tick(&mut self, context: &Context) -> Reply {
        self.state.sweep(context.time_ms, SWEPT_PER_TICK);
        Reply::default().wake_at(self.state.next_expiry_ms())
    }

    fn query(&self, context: &Context, call: &Call) -> Result<Vec<u8>, Failure> {
        ROUTER.answer(self, context, call)
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
