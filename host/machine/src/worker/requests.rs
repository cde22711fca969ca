//! The requests to the standby, with the channels of their answers.

use tokio::sync::oneshot;

use super::{Answered, digest::OutcomeHash, events::Watcher};
use crate::{
    clock::Clock,
    component::Component,
    entry_context::EntryContext,
    error::{QueryError, SnapshotError},
    instance::{Instance, Subscription},
};
use conclave_types::{Call, Failure, limits::ClusterLimits};

/// An entry that the primary has finished.
pub(super) struct Finished {
    /// The index at which the primary stood before.
    pub(super) after: u64,
    /// The index at which it stands now.
    pub(super) index: u64,
    /// The work with which the standby follows.
    pub(super) step: Step,
    /// The hash of the outcome, if the state machine applied the entry.
    pub(super) outcome: Option<OutcomeHash>,
}

/// The work with which the standby follows the primary over an entry.
pub(super) enum Step {
    /// Applies a call or a tick, and expects the same outcome.
    Apply { context: EntryContext, call: Option<Call> },
    /// Changes to another component.
    Activate { context: EntryContext, component: Component },
    /// Sets other limits from here on.
    SetLimits { context: EntryContext, limits: ClusterLimits },
    /// Only advances: the state machine does not see the entry, it trapped, or its component was
    /// not activated.
    Skip { time_ms: u64 },
}

/// The approximate overhead of an entry in bytes, beside its request.
pub(super) const ENTRY_BYTES: usize = 192;

impl Finished {
    pub(super) fn bytes(&self) -> usize {
        match &self.step {
            Step::Apply { call, .. } => ENTRY_BYTES + call.as_ref().map_or(0, Call::bytes),
            Step::Activate { .. } | Step::SetLimits { .. } | Step::Skip { .. } => ENTRY_BYTES,
        }
    }
}

/// A query or subscription that waits for the standby.
pub(super) struct Question {
    pub(super) call: Call,
    pub(super) index_min: u64,
    pub(super) ask: Ask,
}

/// The kind of question, with the channel of its answer.
pub(super) enum Ask {
    /// A query.
    Query(oneshot::Sender<Result<Answered, QueryError>>),
    /// A subscription. With `resume`, it continues after that index.
    Subscribe { resume: Option<u64>, reply: oneshot::Sender<Result<Begun, QueryError>> },
}

/// The standby's answer to a subscription, created on its thread.
pub(super) struct Begun {
    pub(super) index: u64,
    pub(super) result: Result<(Subscription, Watcher), Failure>,
}

impl Ask {
    pub(super) fn is_subscription(&self) -> bool {
        matches!(self, Self::Subscribe { .. })
    }

    /// Returns whether the caller has given up.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Query(reply) => reply.is_closed(),
            Self::Subscribe { reply, .. } => reply.is_closed(),
        }
    }

    /// Answers with an error.
    pub(super) fn fail(self, error: QueryError) {
        // The caller may have given up.
        match self {
            Self::Query(reply) => _ = reply.send(Err(error)),
            Self::Subscribe { reply, .. } => _ = reply.send(Err(error)),
        }
    }
}

/// A request for a snapshot of the state at an index.
pub(super) struct SnapshotRequest {
    pub(super) index: u64,
    pub(super) reply: oneshot::Sender<Result<Captured, SnapshotError>>,
}

/// A state that the standby, which runs this component, has captured. It holds the state under this
/// number until the snapshot has been read or closed.
pub(super) struct Captured {
    pub(super) stream: u64,
    pub(super) component: Component,
    pub(super) context: EntryContext,
}

/// A piece of a snapshot; `None` at its end.
pub(super) type Chunk = Result<Option<bytes::Bytes>, SnapshotError>;

/// A request for the next piece of a snapshot.
pub(super) struct ReadRequest {
    pub(super) stream: u64,
    pub(super) reply: oneshot::Sender<Chunk>,
}

/// The primary's request for the standby's instance, in its state after `index`.
pub(super) struct Promotion<I = Instance> {
    pub(super) index: u64,
    pub(super) reply: std::sync::mpsc::SyncSender<I>,
    /// The instance that trapped. Releasing a large memory takes long, so the standby drops it
    /// after its answer.
    pub(super) broken: Option<I>,
}

/// An instance that is ready for use, with its component and its position in the log.
pub(super) struct Prepared {
    pub(super) instance: Instance,
    pub(super) component: Component,
    pub(super) clock: Clock,
}
