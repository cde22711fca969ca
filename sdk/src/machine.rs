//! The trait of a state machine.

use crate::{
    Call, Context, Failure, Reply, Router, Subscription, router,
    snapshot::{Bytes, Collect, RestoreWriter, SnapshotReader},
};

/// A replicated state machine.
///
/// `Default` is the state before the first entry. Entries are applied either by a [`Self::router`],
/// for protobuf messages, or by [`Self::apply`] and [`Self::query`] directly, for raw bytes.
///
/// # The contract
///
/// 1. **A pure function of the log.** The state after an entry, and the reply to it, depend only on
///    the state before it, the [`Context`] and the [`Call`]: no clock, no randomness, no iteration
///    over a `HashMap`, no `static` that holds state beside `self`.
/// 2. **Validate, then change.** A [`Failure`] is an ordinary reply: changes made before it stay. A
///    panic is rolled back.
/// 3. **The same state gives the same snapshot bytes**, however it was reached.
/// 4. **Snapshot then restore is the identity**: the restored state machine gives the same replies
///    as the original.
///
/// The conformance tests in `conclave_sdk::testing` check all four.
pub trait Machine: Default + 'static {
    /// The name of the state machine, for people: `kv`, `lock`. At most 64 bytes.
    const NAME: &'static str;

    /// The version of the state machine, for people, such as `env!("CARGO_PKG_VERSION")`. At most
    /// 64 bytes.
    const VERSION: &'static str;

    /// The version of the snapshot format that this state machine writes. Raise it when the format changes.
    const STATE_VERSION: u32;

    /// The snapshot formats that can be restored. Must contain [`Self::STATE_VERSION`]. Keep an old
    /// format as long as any cluster may still use it, because an upgrade restores the old
    /// version's snapshot.
    const RESTORES: &'static [u32] = &[Self::STATE_VERSION];

    /// Returns the methods that take protobuf messages. Called once. The default implementations
    /// below use it. A state machine without a router implements [`Self::apply`] and
    /// [`Self::query`].
    fn router() -> Router<Self> {
        Router::new()
    }

    /// Returns the serialized `FileDescriptorSet` of the services, from which the host serves them
    /// as gRPC. Defaults to the router's. Empty if the state machine takes raw bytes only.
    fn descriptor_set() -> &'static [u8] {
        router::of::<Self>().described()
    }

    /// Applies one committed entry. Defaults to the router's command with the call's method name.
    fn apply(&mut self, context: &Context, call: &Call) -> Result<Reply, Failure> {
        router::of::<Self>().apply(self, context, call)
    }

    /// Runs all work that is due. Called through the log once the time of [`Self::wake_at`] has
    /// come, and once after each restore.
    fn tick(&mut self, _context: &Context) -> Reply {
        Reply::default()
    }

    /// Returns the time at which the state next needs [`Self::tick`], in the clock of
    /// [`Context::time_ms`]. A time in the past means as soon as possible.
    ///
    /// The result must depend on the state only. The SDK calls this method after each tick and each
    /// successful command, and puts the result into the reply. It therefore runs on every write:
    /// keep the earliest time at hand, as [`Timers`](crate::Timers) does. A failure leaves the
    /// pending wake-up time unchanged.
    fn wake_at(&self) -> Option<u64> {
        None
    }

    /// Answers a query about the current state with the bytes of a response message. Defaults to
    /// the router's query with the call's method name.
    fn query(&self, context: &Context, call: &Call) -> Result<Vec<u8>, Failure> {
        router::of::<Self>().answer(self, context, call)
    }

    /// Starts a subscription. Defaults to the router's subscription with the call's method name.
    fn subscribe(&self, context: &Context, call: &Call) -> Result<Subscription, Failure> {
        router::of::<Self>().subscribe(self, context, call)
    }

    /// Returns the whole state as bytes, in the format [`Self::STATE_VERSION`]. A state machine
    /// that streams its snapshots returns `snapshot::read_all(self.snapshot())`.
    fn save(&self) -> Vec<u8>;

    /// Restores the state from `bytes` in the format `state_version`, one of [`Self::RESTORES`]. A
    /// state machine that streams its snapshots returns
    /// `snapshot::write_all(Self::restore(state_version)?, bytes)`.
    fn load(state_version: u32, bytes: &[u8]) -> Result<Self, Failure>;

    /// Captures the current state, to be read while later entries are applied. Override it, along
    /// with [`Self::restore`], if [`Self::save`] takes too much time or memory.
    fn snapshot(&self) -> Box<dyn SnapshotReader> {
        Box::new(Bytes::new(self.save()))
    }

    /// Starts restoring a snapshot in the format `state_version`, one of [`Self::RESTORES`].
    fn restore(state_version: u32) -> Result<Box<dyn RestoreWriter<Self>>, Failure> {
        Ok(Box::new(Collect::new(state_version)))
    }
}
