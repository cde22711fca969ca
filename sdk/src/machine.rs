//! What a machine is.

use crate::{
    Call, Context, Failure, Reply, Router, Subscription, router,
    snapshot::{Bytes, Collect, RestoreWriter, SnapshotReader},
};

/// A replicated state machine.
///
/// `Default` is the state before the first entry. What applies entries is either a [`Self::router`], for
/// protobuf messages, or [`Self::apply`] and [`Self::query`] themselves, for bytes of any kind.
///
/// # The contract
///
/// 1. **A pure function of the log.** The state after an entry, and the answer to it, follow from the
///    state before it, the [`Context`] and the [`Call`]. No clock, no randomness, no iteration over
///    a `HashMap`, no `static` that lives beside `self`.
/// 2. **Validate, then change.** A [`Failure`] is an ordinary answer: changes made before it stay. A
///    panic is rolled back.
/// 3. **The same state gives the same snapshot bytes**, however it was reached.
/// 4. **Snapshot then restore is the identity**: the restored machine answers as this one would.
///
/// The kit in `conclave_sdk::testing` checks all four.
pub trait Machine: Default + 'static {
    /// For people: `kv`, `lock`. At most 64 bytes.
    const NAME: &'static str;

    /// The machine's own version, for people. `env!("CARGO_PKG_VERSION")` is a good one.
    const VERSION: &'static str;

    /// The version of the format that snapshots are written in. Raise it when the format changes.
    const STATE_VERSION: u32;

    /// The formats that can be restored; must hold [`Self::STATE_VERSION`]. Keep the old ones here for
    /// as long as a cluster may still carry them: they are what an upgrade starts from.
    const RESTORES: &'static [u32] = &[Self::STATE_VERSION];

    /// The machine's methods with protobuf messages. Called once; the defaults below go by it. A machine
    /// without a router has its own [`Self::apply`] and [`Self::query`].
    fn router() -> Router<Self> {
        Router::new()
    }

    /// The serialized `FileDescriptorSet` of the machine's services, from which the host serves them
    /// as gRPC: the router's. Empty for a machine that is called with raw bytes only.
    fn descriptor_set() -> &'static [u8] {
        router::of::<Self>().described()
    }

    /// Applies one committed entry: the router's command that it names.
    fn apply(&mut self, context: &Context, call: &Call) -> Result<Reply, Failure> {
        router::of::<Self>().apply(self, context, call)
    }

    /// Runs what is due. Called through the log once the time of [`Self::wake_at`] has come, and once after each
    /// restore.
    fn tick(&mut self, _context: &Context) -> Reply {
        Reply::default()
    }

    /// The time at which the state next needs [`Self::tick`], in the clock of [`Context::time_ms`]. A time that has
    /// passed means as soon as possible.
    ///
    /// A function of the state: the SDK calls it after each tick and each command that did not fail, and puts the
    /// result into the reply. It runs under every write, so keep the earliest time at hand, as
    /// [`Timers`](crate::Timers) does. After a failure the time of the reply before stays.
    fn wake_at(&self) -> Option<u64> {
        None
    }

    /// Answers a question about the state as it is, with the bytes of a response message: the router's
    /// query that it names.
    fn query(&self, context: &Context, call: &Call) -> Result<Vec<u8>, Failure> {
        router::of::<Self>().answer(self, context, call)
    }

    /// Begins a subscription: the router's that it names.
    fn subscribe(&self, context: &Context, call: &Call) -> Result<Subscription, Failure> {
        router::of::<Self>().subscribe(self, context, call)
    }

    /// The whole state as bytes, in the format [`Self::STATE_VERSION`]. A machine that streams gives
    /// `snapshot::read_all(self.snapshot())`.
    fn save(&self) -> Vec<u8>;

    /// The state that was saved as `bytes` in the format `state_version`, one of [`Self::RESTORES`]. A
    /// machine that streams gives `snapshot::write_all(Self::restore(state_version)?, bytes)`.
    fn load(state_version: u32, bytes: &[u8]) -> Result<Self, Failure>;

    /// Captures the state as it is now, to be read while other entries are applied. Override it when
    /// saving at once takes too long or too much memory, along with [`Self::restore`].
    fn snapshot(&self) -> Box<dyn SnapshotReader> {
        Box::new(Bytes::new(self.save()))
    }

    /// Begins to restore a snapshot in the format `state_version`, one of [`Self::RESTORES`].
    fn restore(state_version: u32) -> Result<Box<dyn RestoreWriter<Self>>, Failure> {
        Ok(Box::new(Collect::new(state_version)))
    }
}
