//! The beginning of a subscription: the standby answers, and the events that follow join its answer
//! without a gap.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Worker,
    events::Watcher,
    requests::{Ask, Begun, Question},
};
use crate::error::QueryError;
use conclave_types::{Call, Failure};

/// The answer to a call that subscribes.
#[derive(Debug)]
pub struct Subscribed {
    /// The log index of the state that `initial` describes. The events after it follow.
    pub index: u64,
    /// The state machine's answer, or its failure.
    pub result: Result<Subscribing, Failure>,
}

/// The content of a subscription.
#[derive(Debug)]
pub struct Subscribing {
    /// The initial response messages. Empty for a subscription that resumes after an index.
    pub initial: Vec<Bytes>,
    /// The events after them.
    pub events: Watcher,
}

impl Worker {
    /// Begins a subscription at the standby's state, once it has applied `index_min`. With
    /// `resume`, continues a subscription that has received everything up to that index, without
    /// initial messages, once the standby has applied it.
    ///
    /// # Errors
    /// See [`QueryError`]. The state machine's own failure is in [`Subscribed::result`].
    pub async fn subscribe(
        &self,
        call: Call,
        index_min: u64,
        resume: Option<u64>,
    ) -> Result<Subscribed, QueryError> {
        let shared = &self.0.shared;
        if shared.events.watchers() >= shared.engine.limits().subscriptions_max {
            return Err(QueryError::Busy);
        }
        let (reply, begun) = oneshot::channel();
        let index_min = index_min.max(resume.unwrap_or(0));
        let ask = Ask::Subscribe { resume, reply };
        self.ask(Question { call, index_min, ask })?;
        let Begun { index, result } = begun
            .await
            .unwrap_or_else(|_| Err(QueryError::stopped(shared.status.fatal_error())))?;
        let result = result.map(|(subscription, events)| {
            let initial = if resume.is_some() { Vec::new() } else { subscription.initial };
            Subscribing { initial, events }
        });
        Ok(Subscribed { index, result })
    }
}
