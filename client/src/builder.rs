//! The configuration of a client.

use std::{sync::Arc, time::Duration};

use crate::{
    catalog::Catalog,
    client::{Client, Shared},
    error::Error,
    nodes::Nodes,
    options::Consistency,
};

/// Configures a [`Client`]. Nothing is connected before the first call.
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    deadline: Duration,
    long_deadline: Option<Duration>,
    attempt_timeout: Option<Duration>,
    connect_timeout: Duration,
    connections: usize,
    consistency: Consistency,
    follow_leader: bool,
    response_bytes_max: usize,
}

impl Client {
    /// Returns a builder for a client.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            deadline: Duration::from_secs(10),
            long_deadline: None,
            attempt_timeout: None,
            connect_timeout: Duration::from_secs(1),
            connections: 1,
            consistency: Consistency::default(),
            follow_leader: true,
            response_bytes_max: 64 << 20,
        }
    }
}

impl Builder {
    /// Sets the client addresses of nodes, `host:port`. One is enough; give all that are known.
    pub fn endpoints<S: Into<String>>(mut self, endpoints: impl IntoIterator<Item = S>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the deadline of a call with all its attempts. Default: 10 seconds.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the deadline of long operations: pushing, rehearsing and activating a component,
    /// verifying the nodes' states, and taking a snapshot. Default: the usual time of each
    /// operation, one to five minutes.
    pub fn long_deadline(mut self, deadline: Duration) -> Self {
        self.long_deadline = Some(deadline);
        self
    }

    /// Sets the time limit of one attempt of a repeatable call; after it the next node is tried.
    /// Default: a quarter of the call's deadline. Long operations may use their whole deadline.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Sets the time limit for connecting, from the name lookup to the node's first bytes.
    /// Default: 1 second.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the number of connections to each node. One carries tens of thousands of calls per
    /// second. More help if one thread's work on a connection is the limit. Default: 1, at most 64.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.clamp(1, 64);
        self
    }

    /// Sets the consistency of reads. Default: linearizable.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Sets whether the leader that responses name is tried first. Without it only the endpoints
    /// are called, for example to check one certain node. Default: yes.
    pub fn follow_leader(mut self, yes: bool) -> Self {
        self.follow_leader = yes;
        self
    }

    /// Sets the maximum size of a response. Default: 64 MiB.
    pub fn response_bytes_max(mut self, bytes: usize) -> Self {
        self.response_bytes_max = bytes;
        self
    }

    /// Builds the client. Fails if there is no endpoint, or one is not `host:port`.
    pub fn build(self) -> Result<Client, Error> {
        if self.deadline.is_zero() || self.long_deadline.is_some_and(|deadline| deadline.is_zero())
        {
            return Err(Error::invalid("a deadline of zero leaves no time for a call"));
        }
        let nodes = Nodes::new(
            &self.endpoints,
            self.connections,
            self.connect_timeout,
            self.follow_leader,
        )?;
        Ok(Client {
            shared: Arc::new(Shared {
                nodes,
                deadline: self.deadline,
                long_deadline: self.long_deadline,
                attempt_timeout: self.attempt_timeout,
                consistency: self.consistency,
                response_bytes_max: self.response_bytes_max,
                catalog: Catalog::default(),
            }),
        })
    }
}
