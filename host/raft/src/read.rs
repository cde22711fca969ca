//! Linearizable reads on any node: queries and subscriptions.
//!
//! A read obtains the commit index of the time at which it arrived ([`super::read_index`]), waits
//! until its own node has applied that index, and runs there.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::{node::Node, read_index::ReadIndex, trap_limiter::TrapLimiter};
use conclave_machine::{QueryError, Subscribed, WatchError};
use conclave_types::{
    Call, Caller,
    error::Error,
    status::{Answered, Consistency},
};

/// Serves queries and subscriptions on this node's state machine.
#[derive(Clone)]
pub(super) struct Reads {
    node: Arc<Node>,
    index: Arc<ReadIndex>,
    limiter: Arc<TrapLimiter>,
}

impl Reads {
    pub(super) fn new(node: Arc<Node>, index: Arc<ReadIndex>) -> Self {
        Self { node, index, limiter: Arc::default() }
    }

    /// Runs a query. Only the leader uses its lease. On another node a lease read is a linearizable read.
    pub(super) async fn query(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Answered, Error> {
        let answer = async {
            let turn = self.limiter.admit(&call, caller, &self.node.worker, deadline).await?;
            let index = self.index_to_wait_for(consistency, deadline).await?;
            let (reads, method, caller) = (self.clone(), call.method.clone(), caller.clone());
            let answer = async move {
                let _turn = turn;
                let method = call.method.clone();
                let answer = timeout_at(deadline, reads.node.worker.query(call, index)).await;
                let answer = answer.map_err(|_| Error::deadline())?;
                answer.map_err(|error| reads.query_failed(error, &method, &caller))
            };
            self.to_its_end(&method, answer).await
        };
        let answer = timeout_at(deadline, answer).await.map_err(|_| Error::deadline())??;
        // The state machine that ran the query may have turned out to have diverged.
        if let Some(why) = self.node.divergence.why() {
            return Err(Error::stopped(why));
        }
        Ok(Answered { index: answer.index, result: answer.result })
    }

    /// Starts a subscription on this node's state machine, or resumes one that has received
    /// everything up to `resume`.
    pub(super) async fn subscribe(
        &self,
        call: Call,
        caller: &Caller,
        consistency: Consistency,
        resume: Option<u64>,
        deadline: Instant,
    ) -> Result<Subscribed, Error> {
        let begun = async {
            let turn = self.limiter.admit(&call, caller, &self.node.worker, deadline).await?;
            let index = self.index_to_wait_for(consistency, deadline).await?;
            if let Some(resume) = resume {
                self.has_reached(resume, index, deadline).await?;
            }
            let (reads, method, caller) = (self.clone(), call.method.clone(), caller.clone());
            let begun = async move {
                let _turn = turn;
                let method = call.method.clone();
                let begun = reads.node.worker.subscribe(call, index, resume);
                let begun = timeout_at(deadline, begun).await.map_err(|_| Error::deadline())?;
                begun.map_err(|error| reads.query_failed(error, &method, &caller))
            };
            self.to_its_end(&method, begun).await
        };
        let begun = timeout_at(deadline, begun).await.map_err(|_| Error::deadline())??;
        // As for a query. The quarantine ends subscriptions that started before it.
        if let Some(why) = self.node.divergence.why() {
            return Err(Error::stopped(why));
        }
        Ok(begun)
    }

    /// Rejects a resume index that the cluster has not reached. `read_index` is an
    /// index that it has reached.
    async fn has_reached(
        &self,
        resume: u64,
        read_index: u64,
        deadline: Instant,
    ) -> Result<(), Error> {
        if resume <= read_index {
            return Ok(());
        }
        // The index is low if the caller requested a stale read.
        let read_index = self.index.get(deadline).await?;
        if resume <= read_index {
            return Ok(());
        }
        Err(Error::gone(format!(
            "the cluster has reached index {read_index}, but not {resume}: the index is from another cluster, or \
             from before the data was replaced. Subscribe again, without an index to resume from"
        )))
    }

    /// Waits for a query. If the method has trapped recently, the query runs to its end even if its
    /// caller gives up. Otherwise a caller that cancels its calls would not be limited.
    async fn to_its_end<T: Send + 'static>(
        &self,
        method: &str,
        query: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match self.node.worker.has_trapped(method) {
            true => self.node.supervisor.finish("query", query).await,
            false => query.await,
        }
    }

    fn query_failed(&self, error: QueryError, method: &Arc<str>, caller: &Caller) -> Error {
        if let QueryError::Trap(_) = error {
            self.limiter.trapped(method, caller);
        }
        failed(error)
    }

    /// Returns the index that this node must have applied before it runs the query.
    async fn index_to_wait_for(
        &self,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<u64, Error> {
        if let Some(why) = self.node.fatal_error() {
            return Err(Error::stopped(why));
        }
        match consistency {
            Consistency::Stale => Ok(0),
            Consistency::Lease if self.node.is_leader() => match self.index.leased().await {
                Some(index) => Ok(index),
                None => self.index.get(deadline).await,
            },
            Consistency::Lease | Consistency::Linearizable => self.index.get(deadline).await,
        }
    }
}

/// Returns the reason why a subscription has ended.
pub fn watch_ended(error: WatchError) -> Error {
    match error {
        WatchError::Gone { .. } | WatchError::Replaced { .. } => {
            Error::caused_by(Error::gone, error)
        }
        WatchError::Fatal(fatal_error) => Error::caused_by(Error::stopped, fatal_error),
        WatchError::Stopped => Error::shutting_down(),
    }
}

fn failed(error: QueryError) -> Error {
    match error {
        QueryError::Trap(trap) => Error::trap(trap),
        QueryError::Fatal(fatal_error) => Error::caused_by(Error::stopped, fatal_error),
        QueryError::Stopped => Error::shutting_down(),
        error @ QueryError::NoStandby(_) => Error::caused_by(Error::busy, error),
        QueryError::Busy => Error::busy(
            "too many queries or subscriptions are waiting on this node: try again, or another node",
        ),
        QueryError::Watch(error) => watch_ended(error),
    }
}
