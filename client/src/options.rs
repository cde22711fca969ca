//! What a caller may ask of one call.

use std::time::Duration;

/// How fresh a read must be. Commands are always linearizable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began. Any node answers, after it asked the
    /// leader for the index to wait for.
    #[default]
    Linearizable,
    /// The leader answers at once while its lease lasts. As fresh as linearizable as long as clocks
    /// run at about the same rate.
    Lease,
    /// Any node answers at once from what it has applied. [`Answer::index`](crate::Answer::index)
    /// says how far that is.
    Stale,
}

impl Consistency {
    /// The value of the metadata `conclave-consistency`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Stale => "stale",
        }
    }
}

/// Options of one call. [`CallOptions::read`] and [`CallOptions::write`] begin.
#[derive(Clone, Debug)]
pub struct CallOptions {
    pub(crate) read: bool,
    pub(crate) retry_unknown: bool,
    pub(crate) deadline: Option<Duration>,
    pub(crate) consistency: Option<Consistency>,
    /// Ask the nodes in turn, not the leader first.
    pub(crate) spread: bool,
    /// For a call that takes long by nature: how long it usually may.
    pub(crate) long: Option<Duration>,
}

impl CallOptions {
    /// The call changes nothing: it is retried after any failure that may pass.
    pub fn read() -> Self {
        Self { read: true, ..Self::write() }
    }

    /// The call may change something: it is retried only after a failure that says that it was not
    /// applied.
    pub fn write() -> Self {
        Self {
            read: false,
            retry_unknown: false,
            deadline: None,
            consistency: None,
            spread: false,
            long: None,
        }
    }

    /// Declares that applying the write twice is as good as once, so that it is retried also when
    /// the outcome of the first attempt is unknown: the connection was lost or the answer did not
    /// come in time. A put of a value is such a write; adding one to a counter is not.
    ///
    /// A retry may then undo what another client wrote in between.
    pub fn retry_unknown(mut self, yes: bool) -> Self {
        self.retry_unknown = yes;
        self
    }

    /// How long the call may take with all its attempts. The client's deadline if not set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// How fresh a read must be. The client's consistency if not set.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = Some(consistency);
        self
    }

    /// Declares that the call takes long by nature. One attempt may then use all of its time, and the time is
    /// [`Builder::long_deadline`](crate::Builder::long_deadline) or else `usually`, unless [`CallOptions::deadline`] is set.
    pub fn long(mut self, usually: Duration) -> Self {
        self.long = Some(usually);
        self
    }

    /// Whether a failure of unknown outcome may be tried again.
    pub(crate) fn repeatable(&self) -> bool {
        self.read || self.retry_unknown
    }
}
