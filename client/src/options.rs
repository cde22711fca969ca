//! Options of a call.

use std::time::Duration;

/// The consistency of a read. Commands are always linearizable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began. Any node serves it after it has got the
    /// index to wait for from the leader.
    #[default]
    Linearizable,
    /// The leader responds immediately while its lease lasts. It is as fresh as linearizable if the
    /// clocks run at about the same rate.
    Lease,
    /// Any node responds immediately from its applied state.
    /// [`Answer::index`](crate::Answer::index) is the index of this state.
    Stale,
}

impl Consistency {
    /// Returns the value of the metadata `conclave-consistency`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Stale => "stale",
        }
    }
}

/// Options of one call. Create them with [`CallOptions::read`] or [`CallOptions::write`].
#[derive(Clone, Debug)]
pub struct CallOptions {
    pub(crate) read: bool,
    pub(crate) retry_unknown: bool,
    pub(crate) deadline: Option<Duration>,
    pub(crate) consistency: Option<Consistency>,
    /// True to call the nodes in turn instead of the leader first.
    pub(crate) spread: bool,
    /// The usual time of a long operation.
    pub(crate) long: Option<Duration>,
    /// True for a subscription that resumes. Each node keeps its own events, so another node may
    /// have those that one node lacks.
    pub(crate) resumes: bool,
}

impl CallOptions {
    /// Returns options for a call without effects. It is retried after any temporary failure.
    pub fn read() -> Self {
        Self { read: true, ..Self::write() }
    }

    /// Returns options for a call that may have effects. It is retried only after a failure that
    /// guarantees that it was not applied.
    pub fn write() -> Self {
        Self {
            read: false,
            retry_unknown: false,
            deadline: None,
            consistency: None,
            spread: false,
            long: None,
            resumes: false,
        }
    }

    /// Declares that applying the write twice has the same effect as once. It is then also retried
    /// if the outcome of an attempt is unknown: the connection was lost, or the response did not
    /// arrive in time. A put of a value is such a write; an increment of a counter is not.
    ///
    /// A retry may undo a write that another client made in between.
    pub fn retry_unknown(mut self, yes: bool) -> Self {
        self.retry_unknown = yes;
        self
    }

    /// Sets the deadline of the call with all its attempts. Default: the client's deadline.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the consistency of a read. Default: the client's consistency.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = Some(consistency);
        self
    }

    /// Declares a long operation. One attempt may use its whole deadline. The deadline is
    /// [`Builder::long_deadline`](crate::Builder::long_deadline), or else `usually`, unless
    /// [`CallOptions::deadline`] is set.
    pub fn long(mut self, usually: Duration) -> Self {
        self.long = Some(usually);
        self
    }

    /// Returns whether the call may be retried after a failure with an unknown outcome.
    pub(crate) fn repeatable(&self) -> bool {
        self.read || self.retry_unknown
    }
}
