//! A call, from the first attempt to the response or the deadline.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tonic::{
    Code, Request, Response, Status,
    client::Grpc,
    metadata::{MetadataMap, MetadataValue},
    transport::Channel,
};

use crate::{
    catalog::Catalog,
    codec::BytesCodec,
    connection::Node,
    error::{Error, Tried, plain},
    method::MethodName,
    nodes::Nodes,
    options::{CallOptions, Consistency},
    retry::{self, Failure, LEADER},
};

/// Minimum time that is left for another attempt.
const ATTEMPT_TIME_MIN: Duration = Duration::from_millis(20);
/// The time between the deadline that a node gets and the end of the client's own wait, at most.
const RESPONSE_TIME: Duration = Duration::from_millis(50);

/// Returns a connection that is ready for a call.
pub(crate) async fn ready(channel: Channel, bytes_max: usize) -> Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(bytes_max);
    grpc.ready().await.map_err(|cause| Status::from_error(cause.into()))?;
    Ok(grpc)
}

/// A client of one cluster. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) nodes: Nodes,
    pub(crate) deadline: Duration,
    pub(crate) long_deadline: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) consistency: Consistency,
    pub(crate) response_bytes_max: usize,
    pub(crate) catalog: Catalog,
}

/// A response with its metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<T> {
    /// The response message.
    pub message: T,
    /// The log index at which the command was applied, or of the state that a query read.
    pub index: Option<u64>,
    /// The leader's client address, as the responding node knows it.
    pub leader: Option<String>,
}

impl<T> Answer<T> {
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { message: f(self.message), index: self.index, leader: self.leader }
    }

    pub(crate) fn read(response: Response<T>) -> Self {
        let (metadata, message, _) = response.into_parts();
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        let index = text("conclave-index").and_then(|index| index.parse().ok());
        let leader = text(LEADER).filter(|leader| !leader.is_empty()).map(str::to_owned);
        Self { message, index, leader }
    }
}

impl Client {
    /// Calls `method` with an encoded message, as a write that is not retried when its outcome is
    /// unknown. Use [`Client::call_raw_with`] for other options.
    pub async fn call_raw(
        &self,
        method: &str,
        request: impl Into<Bytes>,
    ) -> Result<Answer<Bytes>, Error> {
        self.call_raw_with(method, request, &CallOptions::write()).await
    }

    /// Calls `method` with an encoded message and the given options.
    pub async fn call_raw_with(
        &self,
        method: &str,
        request: impl Into<Bytes>,
        options: &CallOptions,
    ) -> Result<Answer<Bytes>, Error> {
        let method = MethodName::parse(method)?;
        self.unary(&method, request.into(), options).await
    }

    pub(crate) async fn unary(
        &self,
        method: &MethodName,
        request: Bytes,
        options: &CallOptions,
    ) -> Result<Answer<Bytes>, Error> {
        let path = method.path()?;
        let bytes_max = self.shared.response_bytes_max;
        let response = self
            .run(options, |channel, metadata| {
                let mut message = Request::new(request.clone());
                *message.metadata_mut() = metadata;
                let path = path.clone();
                async move {
                    let mut grpc = ready(channel, bytes_max).await?;
                    grpc.unary(message, path, BytesCodec).await
                }
            })
            .await?;
        Ok(Answer::read(response))
    }

    /// Makes attempts until one succeeds, one fails permanently, or the deadline passes.
    ///
    /// Nodes are called in rounds. A round calls each known node once, the leader first, without a
    /// pause. After a pause the next round begins. A resumed subscription fails with OUT_OF_RANGE
    /// after a round in which a node returned that and no node could serve it.
    pub(crate) async fn run<T, F, Fut>(
        &self,
        options: &CallOptions,
        attempt: F,
    ) -> Result<Response<T>, Error>
    where
        F: Fn(Channel, MetadataMap) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let shared = &self.shared;
        let usual = match options.long {
            Some(usually) => shared.long_deadline.unwrap_or(usually),
            None => shared.deadline,
        };
        let deadline = options.deadline.unwrap_or(usual);
        let consistency = options.consistency.unwrap_or(shared.consistency);
        let ends = Instant::now() + deadline;
        let spread = options.spread || options.read && consistency == Consistency::Stale;
        let mut history = History::default();
        let mut tried: Vec<Arc<Node>> = Vec::new();
        let mut round = 0;
        let mut out_of_range: Option<Error> = None;
        loop {
            let remaining = ends.saturating_duration_since(Instant::now());
            // A node could not respond any more, and a write that it received would be in doubt.
            if remaining.is_zero() || (round > 0 && remaining < ATTEMPT_TIME_MIN) {
                let exhausted = || history.exhausted(deadline, options);
                return Err(out_of_range.unwrap_or_else(exhausted));
            }
            let Some(node) = shared.nodes.pick(&tried, spread) else {
                if let Some(error) = out_of_range.take() {
                    return Err(error);
                }
                let pause = retry::pause(round);
                round += 1;
                tried.clear();
                tokio::time::sleep(pause.min(remaining)).await;
                continue;
            };
            tried.push(Arc::clone(&node));
            let limit = self.attempt_limit(deadline, remaining, options);
            let metadata = metadata(consistency, options, limit);
            match self.attempt(&node, limit, metadata, &attempt).await {
                Ok(response) => {
                    node.welcome();
                    self.learn(response.metadata());
                    return Ok(response);
                }
                Err(failure) => {
                    self.note(&node, &failure);
                    if options.resumes && failure.code == Code::OutOfRange {
                        out_of_range = Some(Error::new(failure.code, failure.message));
                        continue;
                    }
                    let again = failure.passing && (options.repeatable() || !failure.maybe_applied);
                    if !again {
                        return Err(history.refused(node.address(), failure, options));
                    }
                    history.add(node.address(), failure);
                }
            }
        }
    }

    async fn attempt<T, F, Fut>(
        &self,
        node: &Arc<Node>,
        limit: Duration,
        metadata: MetadataMap,
        attempt: &F,
    ) -> Result<Response<T>, Failure>
    where
        F: Fn(Channel, MetadataMap) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let began = Instant::now();
        let loan = match tokio::time::timeout(limit, node.connect()).await {
            Ok(loan) => loan.map_err(Failure::connect)?,
            Err(_) => {
                return Err(Failure::connect(format!("no connection within {}", plain(limit))));
            }
        };
        let left = limit.saturating_sub(began.elapsed());
        let failure =
            match tokio::time::timeout(left, attempt(loan.channel.clone(), metadata)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(status)) => Failure::read(&status),
                Err(_) => Failure::timeout(format!("no answer within {}", plain(limit))),
            };
        // A connection to a slow node is kept. Keep-alive detects whether it still works.
        if failure.silent && failure.code != Code::DeadlineExceeded {
            node.give_up(&loan);
        }
        Err(failure)
    }

    /// A hung node must not use up the deadline of a call that another node could serve. An early end
    /// does not help a write that may not be repeated, and a long operation would never complete.
    fn attempt_limit(
        &self,
        deadline: Duration,
        remaining: Duration,
        options: &CallOptions,
    ) -> Duration {
        if !options.repeatable() || options.long.is_some() {
            return remaining;
        }
        self.shared.attempt_timeout.unwrap_or(deadline / 4).min(remaining)
    }

    fn learn(&self, metadata: &MetadataMap) {
        if let Some(leader) = metadata.get(LEADER).and_then(|leader| leader.to_str().ok()) {
            self.shared.nodes.learn(leader);
        }
    }

    fn note(&self, node: &Arc<Node>, failure: &Failure) {
        match failure.silent {
            true => self.shared.nodes.lost(node),
            false => node.welcome(),
        }
        if let Some(leader) = &failure.leader {
            self.shared.nodes.learn(leader);
        }
    }
}

fn metadata(consistency: Consistency, options: &CallOptions, limit: Duration) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    if options.read && consistency != Consistency::Linearizable {
        metadata.insert("conclave-consistency", MetadataValue::from_static(consistency.name()));
    }
    // The node must respond before the client stops waiting: only the response tells whether a write
    // may still be applied.
    let limit = limit - (limit / 8).min(RESPONSE_TIME);
    // gRPC allows eight digits, which is about a day in milliseconds.
    let milliseconds = limit.as_millis().clamp(1, 99_999_999);
    if let Ok(timeout) = MetadataValue::try_from(format!("{milliseconds}m")) {
        metadata.insert("grpc-timeout", timeout);
    }
    metadata
}

/// The failed attempts of one call.
#[derive(Default)]
struct History {
    tried: Tried,
    last: Option<Failure>,
    maybe_applied: bool,
    /// True if a node responded.
    answered: bool,
}

impl History {
    fn add(&mut self, address: &str, failure: Failure) {
        self.tried.add(address, &failure.message);
        self.maybe_applied |= failure.maybe_applied;
        self.answered |= !failure.silent;
        self.last = Some(failure);
    }

    /// Returns the error for a passed deadline.
    fn exhausted(self, deadline: Duration, options: &CallOptions) -> Error {
        let code = match &self.last {
            Some(failure) if failure.code != Code::DeadlineExceeded => Code::Unavailable,
            _ => Code::DeadlineExceeded,
        };
        let what = if self.answered { "success" } else { "answer" };
        Error::new(code, format!("no {what} within {}", plain(deadline)))
            .with_silence(!self.answered)
            .with_unknown_outcome(!options.read && self.maybe_applied)
            .with_tried(self.tried)
    }

    /// Returns the error for an attempt whose failure ends the call.
    fn refused(mut self, address: &str, failure: Failure, options: &CallOptions) -> Error {
        let unknown = !options.read && (failure.maybe_applied || self.maybe_applied);
        let (code, message) = (failure.code, failure.message.clone());
        if failure.passing {
            self.tried.add(address, &message);
            return Error::new(code, "the write failed after it was sent and was not retried")
                .with_unknown_outcome(unknown)
                .with_tried(self.tried);
        }
        // The failure is a response of the cluster, so earlier attempts are omitted.
        Error::new(code, message).with_unknown_outcome(unknown).with_trap(failure.trap)
    }
}
