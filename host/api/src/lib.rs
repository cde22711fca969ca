//! What clients and operators see of a node: the client port and the admin port.
//!
//! The active machine's own methods are methods of the node's gRPC server, beside the generic service
//! `conclave.machine.v1.Machine`, the cluster service, reflection and health. Messages pass through as
//! bytes: nothing here knows a machine's types beyond checking that a request has the shape that its
//! descriptor gives it.
//!
//! Contract:
//! * A call is answered by its deadline (`grpc-timeout`, else [`Deadlines::default`]), whatever the
//!   replica does. If a command may have been applied nonetheless, the answer says so.
//! * A request that is too large, not protobuf of the method's type, or for nobody never reaches the log.
//! * Every error goes through the table in `status.rs`.
//! * [`Api::set_machine`] takes effect at once and as a whole: methods, reflection, health.
//!
//! Caveats:
//! * Callers are anonymous and the port has no TLS. Whoever reaches it may do everything.
//! * A subscription is served by one node. When that stops, or its subscriber is slower than the events, the
//!   stream ends with an error, and the subscriber goes on elsewhere (`subscription.rs`).
//! * A machine cannot have a service of the host's name; the host's is served.
//!
//! The layer rests on [`Backend`] and sees nothing of Raft, storage or the engine.

mod admin;
mod answer;
mod backend;
mod budget;
mod call;
mod components;
#[doc(hidden)]
pub mod fuzz;
mod gather;
mod generic;
mod health;
mod listeners;
mod message;
mod metadata;
mod metrics;
mod peers;
mod process;
mod reflection;
mod shape;
mod startup;
mod status;
mod streams;
mod subscription;
mod table;

use std::{future::Future, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, sync::watch};
use tonic_health::pb::health_server::HealthServer;

pub use self::{
    admin::Admin,
    backend::{
        Backend, Events, MachineInfo, MethodKind, MethodSpec, Metric, MetricKind, Subscribed,
        Subscription, Upgrades,
    },
    listeners::bind,
    metadata::Deadlines,
    peers::serve_peers,
    process::LOG_LINES_DROPPED,
    startup::{Startup, refuse_calls},
};
use self::{
    budget::{Budget, Reserved},
    health::{HealthService, Names},
    listeners::Connection,
    message::LARGE_BYTES,
    metrics::Metrics,
    reflection::Reflection,
    table::Table,
};
use conclave_types as types;
use conclave_types::error::Error;

/// The layer's limits. All of them hold at once.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long calls may take.
    pub deadlines: Deadlines,
    /// The largest request message. It has to fit the log and what a machine is given at once.
    pub request_bytes_max: usize,
    /// The memory that requests of more than 64 KiB may hold together.
    pub large_requests_bytes_max: usize,
    /// The same for answers, until their readers have taken them.
    pub large_answers_bytes_max: usize,
    /// Calls that are worked on at once, or whose answers have not been sent; with 64 KiB each it bounds what small
    /// requests and answers hold.
    pub calls_in_flight_max: usize,
    /// Calls of the cluster service and of health that are worked on beside them, so that a node that is busy can be
    /// looked after.
    pub operator_calls_max: usize,
    /// Connections on the client port; more are closed.
    pub connections_max: usize,
    /// A connection that has begun no call for so long is closed, once its calls have ended; none: never.
    pub connection_idle: Option<Duration>,
    /// A connection of this age, 10 % more or less, is closed, once its calls have ended; none: never.
    pub connection_age: Option<Duration>,
    /// Calls at once on one connection; clients queue more by themselves.
    pub streams_per_connection_max: u32,
    /// Subscriptions at once on one connection. Fewer than [`Options::streams_per_connection_max`], so that other
    /// calls find room beside them.
    pub subscriptions_per_connection_max: usize,
    /// How long a request may take to arrive, and an answer to be read, beside a second for each 64 KiB of it.
    pub transfer_time: Duration,
    /// How long a connection may take to say that it speaks HTTP/2.
    pub preface_timeout: Duration,
    /// How long calls may go on once the node stops.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadlines: Deadlines {
                default: Duration::from_secs(10),
                max: Duration::from_secs(300),
            },
            request_bytes_max: types::limits::REQUEST_BYTES,
            large_requests_bytes_max: 256 * 1024 * 1024,
            large_answers_bytes_max: 256 * 1024 * 1024,
            calls_in_flight_max: 16 * 1024,
            operator_calls_max: 256,
            connections_max: 4096,
            connection_idle: Some(Duration::from_secs(1800)),
            connection_age: None,
            streams_per_connection_max: 1024,
            subscriptions_per_connection_max: 512,
            transfer_time: Duration::from_secs(10),
            preface_timeout: Duration::from_secs(5),
            drain: Duration::from_secs(5),
        }
    }
}

/// The client port and the admin port of one node. A clone is another handle to the same.
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
    table: ArcSwap<Table>,
    reflection: ArcSwap<Reflection>,
    health: HealthServer<HealthService>,
    services: watch::Sender<Names>,
    /// Becomes true once: the node stops.
    closing: watch::Sender<bool>,
    /// The principal of callers that did not say who they are.
    anonymous: Arc<str>,
}

impl<B> Shared<B> {
    /// The slot of a call. Operators have some of their own for when there are no others.
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
                "this node works on {} calls, or this connection has more than its share of them: try again in a \
                 context, or use another node",
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
        "{kind} of more than {LARGE_BYTES} bytes hold all of the {} bytes of memory that this node gives them, or this \
         connection has more than its share: try again in a context",
        budget.most()
    ))
}

impl<B: Backend> Api<B> {
    /// Fails if the machine's description contradicts itself.
    pub fn new(backend: Arc<B>, options: Options) -> Result<Self, Error> {
        process::note_start();
        let metrics = Metrics::new()?;
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
            table: ArcSwap::from_pointee(table),
            reflection: ArcSwap::from_pointee(reflection),
            metrics,
            services,
            closing,
            anonymous: Arc::from(""),
        })))
    }

    /// Serves another machine from now on. On an error the old one stays.
    pub fn set_machine(&self, machine: Arc<MachineInfo>) -> Result<(), Error> {
        let table = Table::build(machine, &self.0.metrics)?;
        let reflection = Reflection::build(&table)?;
        let names = Arc::new(table.services.clone());
        self.0.table.store(Arc::new(table));
        self.0.reflection.store(Arc::new(reflection));
        self.0.services.send_replace(names);
        Ok(())
    }

    /// Serves gRPC on the listener until `shutdown`, then lets calls end within [`Options::drain`]. From
    /// `shutdown` on, health and readiness say no.
    pub async fn serve_client(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        listeners::serve_client(self.0.clone(), listener, shutdown).await;
    }
}
