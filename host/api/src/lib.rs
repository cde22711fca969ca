//! The network interface of a node for clients and operators: the client port and the admin port.
//!
//! The methods of the active state machine are methods of the node's gRPC server. Beside them stand
//! the generic service `conclave.machine.v1.Machine`, the cluster service, reflection and health.
//! Messages pass through as bytes. The layer does not interpret a state machine's messages; it only
//! checks that a request has the shape given by its descriptor.
//!
//! Contract:
//! * A call is answered by its deadline (`grpc-timeout`, else [`Deadlines::default`]), whatever the
//!   replica does. If a command may have been applied nonetheless, the response says so.
//! * A request never reaches the log if it is too large, is not protobuf of the method's type, or
//!   names an unknown method.
//! * Every error is mapped to a gRPC status by the table in `status.rs`.
//! * [`Api::set_machine`] takes effect immediately, and for methods, reflection and health together.
//!
//! Caveats:
//! * Callers are anonymous and the port has no TLS. Every client that can connect has full access.
//! * A subscription is served by one node. The stream ends with an error when this node stops, or when the
//!   subscriber is slower than the events. The subscriber then resumes at another node (`subscription.rs`).
//! * A state machine's service is hidden if the host has a service of the same name.
//!
//! The layer depends on [`Backend`] only. It uses nothing of Raft, storage or the engine.

mod admin;
mod answer;
mod backend;
mod backup;
mod budget;
mod call;
mod codec;
mod components;
mod connection;
#[doc(hidden)]
pub mod fuzz;
mod gather;
mod generic;
mod health;
mod invoke;
mod listeners;
mod message;
mod metadata;
mod metrics;
mod peers;
mod process;
mod reflection;
mod response;
mod shape;
mod startup;
mod status;
mod streams;
mod subscription;
mod table;
mod transfer;

use std::{future::Future, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use conclave_metrics::Registry;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tonic_health::pb::health_server::HealthServer;

pub use self::{
    admin::Admin,
    backend::{
        Backend, BackupFile, Events, MachineInfo, MethodKind, MethodSpec, Subscribed, Subscription,
        Upgrades,
    },
    listeners::bind,
    metadata::Deadlines,
    peers::serve_peers,
    process::LOG_LINES_DROPPED,
    startup::{Startup, refuse_calls},
};
use self::{
    budget::{Budget, Reserved},
    connection::Connection,
    health::{HealthService, Names},
    message::LARGE_BYTES,
    metrics::Metrics,
    reflection::Reflection,
    table::Table,
};
use conclave_types::{
    error::Error,
    limits::{
        CALL_TIME_MAX, CONNECTION_IDLE, CONNECTIONS_MAX, REQUEST_BYTES_MAX, REQUEST_TIMEOUT,
        SUBSCRIPTIONS_PER_CONNECTION_MAX,
    },
};

/// Limits of the layer. All of them apply at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Deadlines of calls.
    pub deadlines: Deadlines,
    /// Maximum size of a request message. It must fit into a log entry and into one call of
    /// the state machine.
    pub request_bytes_max: usize,
    /// Memory for all requests of more than 64 KiB together.
    pub large_requests_bytes_max: usize,
    /// Memory for all responses of more than 64 KiB together, until their readers have taken them.
    pub large_answers_bytes_max: usize,
    /// Maximum number of calls that are being processed, or whose responses have not been sent.
    /// Each holds at most 64 KiB, so this bounds the memory of small requests and responses.
    pub calls_in_flight_max: usize,
    /// Additional calls of the cluster service and of health, so that operators can reach a busy node.
    pub operator_calls_max: usize,
    /// Maximum number of backups that are being sent. Each holds a few MiB, and keeps a snapshot file.
    pub backups_max: usize,
    /// Maximum number of connections on the client port. Further connections are closed.
    pub connections_max: usize,
    /// Idle limit: a connection that begins no call for this time is closed once its calls have
    /// ended. `None`: no limit.
    pub connection_idle: Option<Duration>,
    /// Age limit, varied by up to 10 %: an older connection is closed once its calls have ended.
    /// `None`: no limit.
    pub connection_age: Option<Duration>,
    /// Maximum number of concurrent calls on one connection. Clients queue further calls themselves.
    pub streams_per_connection_max: u32,
    /// Maximum number of concurrent subscriptions on one connection. It is lower than
    /// [`Options::streams_per_connection_max`], so that other calls have room beside them.
    pub subscriptions_per_connection_max: usize,
    /// Time for a request to arrive, or a response to be read, plus one second per 64 KiB of its size.
    pub transfer_time: Duration,
    /// Time for a new connection to send the HTTP/2 preface.
    pub preface_timeout: Duration,
    /// Time for calls to end once the node stops.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadlines: Deadlines { default: REQUEST_TIMEOUT.default, max: CALL_TIME_MAX },
            request_bytes_max: REQUEST_BYTES_MAX.default,
            large_requests_bytes_max: 256 * 1024 * 1024,
            large_answers_bytes_max: 256 * 1024 * 1024,
            calls_in_flight_max: 16 * 1024,
            operator_calls_max: 256,
            backups_max: 2,
            connections_max: CONNECTIONS_MAX.default,
            connection_idle: Some(CONNECTION_IDLE.default),
            connection_age: None,
            streams_per_connection_max: 1024,
            subscriptions_per_connection_max: SUBSCRIPTIONS_PER_CONNECTION_MAX.default,
            transfer_time: Duration::from_secs(10),
            preface_timeout: Duration::from_secs(5),
            drain: Duration::from_secs(5),
        }
    }
}

/// The client port and the admin port of one node. A clone is another handle to the same ports.
pub struct Api<B>(Arc<Shared<B>>);

impl<B> Clone for Api<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<B> {
    backend: Arc<B>,
    options: Options,
    metrics: Metrics,
    calls: Budget,
    operators: Budget,
    requests: Budget,
    answers: Budget,
    /// The permits for backups that are being sent.
    backups: Arc<Semaphore>,
    table: ArcSwap<Table>,
    reflection: ArcSwap<Reflection>,
    health: HealthServer<HealthService>,
    services: watch::Sender<Names>,
    /// Becomes true when the node stops, and stays true.
    closing: watch::Sender<bool>,
    /// The principal of callers that did not authenticate.
    anonymous: Arc<str>,
}

impl<B> Shared<B> {
    /// Reserves the slot of a call. Operators' calls have additional slots, used when the common
    /// ones are taken.
    fn admit(&self, connection: &Connection, operator: bool) -> Result<Reserved, Error> {
        let load = &connection.load;
        let slot = self.calls.reserve(&load.calls, 1, self.connections());
        let slot = slot.or_else(|| {
            let own =
                operator.then(|| self.operators.reserve(&load.operators, 1, self.connections()));
            own.flatten()
        });
        slot.ok_or_else(|| {
            Error::busy(format!(
                "this node already serves {} calls, or this connection has more than its share of them: retry later, \
                 or use another node",
                self.calls.most()
            ))
        })
    }

    fn reserve_request(&self, connection: &Connection, bytes: usize) -> Result<Reserved, Error> {
        let reserved = self.requests.reserve(&connection.load.requests, bytes, self.connections());
        reserved.ok_or_else(|| no_room("requests", &self.requests))
    }

    fn grow_request(&self, reserved: &mut Reserved, bytes: usize) -> Result<(), Error> {
        match self.requests.grow(reserved, bytes, self.connections()) {
            true => Ok(()),
            false => Err(no_room("requests", &self.requests)),
        }
    }

    fn reserve_answer(&self, connection: &Connection, bytes: usize) -> Result<Reserved, Error> {
        let reserved = self.answers.reserve(&connection.load.answers, bytes, self.connections());
        reserved.ok_or_else(|| no_room("answers", &self.answers))
    }

    fn connections(&self) -> usize {
        usize::try_from(self.metrics.connections.get()).unwrap_or(1)
    }
}

fn no_room(kind: &str, budget: &Budget) -> Error {
    Error::busy(format!(
        "{kind} of more than {LARGE_BYTES} bytes use all of the {} bytes of memory reserved for them, or this \
         connection has more than its share: retry later",
        budget.most()
    ))
}

impl<B: Backend> Api<B> {
    /// Creates the ports, with their metrics in the registry. Fails if the state machine's description is inconsistent.
    pub fn new(backend: Arc<B>, options: Options, registry: &Registry) -> Result<Self, Error> {
        let metrics = Metrics::new(registry);
        let table = Table::build(backend.machine(), &metrics)?;
        let reflection = Reflection::build(&table)?;
        let (services, names) = watch::channel(Arc::new(table.services.clone()));
        let (closing, closed) = watch::channel(false);
        Ok(Self(Arc::new(Shared {
            health: HealthService::server(backend.health(), names, closed),
            backend,
            options,
            calls: Budget::new(options.calls_in_flight_max, metrics.in_flight[0].clone()),
            operators: Budget::new(options.operator_calls_max, metrics.in_flight[1].clone()),
            requests: Budget::new(options.large_requests_bytes_max, Arc::default()),
            answers: Budget::new(options.large_answers_bytes_max, Arc::default()),
            backups: Arc::new(Semaphore::new(options.backups_max)),
            table: ArcSwap::from_pointee(table),
            reflection: ArcSwap::from_pointee(reflection),
            metrics,
            services,
            closing,
            anonymous: Arc::from(""),
        })))
    }

    /// Serves another state machine from now on. On an error the old one stays active.
    pub fn set_machine(&self, machine: Arc<MachineInfo>) -> Result<(), Error> {
        let table = Table::build(machine, &self.0.metrics)?;
        let reflection = Reflection::build(&table)?;
        let names = Arc::new(table.services.clone());
        self.0.table.store(Arc::new(table));
        self.0.reflection.store(Arc::new(reflection));
        self.0.services.send_replace(names);
        Ok(())
    }

    /// Serves gRPC on the listener until `shutdown`, then lets calls end within [`Options::drain`].
    /// From `shutdown` on, health and readiness report that the node does not serve.
    pub async fn serve_client(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        listeners::serve_client(self.0.clone(), listener, shutdown).await;
    }
}
