//! The service grpc.health.v1: reports whether this node serves, following the replica's health.
//!
//! The known names are the empty name and all services of the state machine and of the host. All of
//! them follow the replica's health. While the node stops they are NOT_SERVING, and watches end
//! after this status.

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use futures::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{self, HealthServer},
};

use conclave_types::status::Health;

/// A request names one service.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// The names of the services that can be checked.
pub(super) type Names = Arc<BTreeSet<String>>;

/// The sources of the health status.
#[derive(Clone)]
pub(super) struct HealthService {
    health: watch::Receiver<Health>,
    services: watch::Receiver<Names>,
    closing: watch::Receiver<bool>,
}

impl HealthService {
    pub(super) fn server(
        health: watch::Receiver<Health>,
        services: watch::Receiver<Names>,
        closing: watch::Receiver<bool>,
    ) -> HealthServer<Self> {
        HealthServer::new(Self { health, services, closing })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// Returns the status, and whether it is the last one. Marks all receivers as seen, so that a
    /// later change is noticed.
    fn status(&mut self, service: &str) -> (ServingStatus, bool) {
        let closing = *self.closing.borrow_and_update();
        let serving = *self.health.borrow_and_update() == Health::Serving;
        let known = service.is_empty() || self.services.borrow_and_update().contains(service);
        let status = match (known, serving && !closing) {
            (false, _) => ServingStatus::ServiceUnknown,
            (true, true) => ServingStatus::Serving,
            (true, false) => ServingStatus::NotServing,
        };
        (status, closing)
    }

    /// Waits for a change. Returns `false` if there will be no more changes.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.health.changed() => changed.is_ok(),
            changed = self.services.changed() => changed.is_ok(),
            changed = self.closing.changed() => changed.is_ok(),
        }
    }
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.clone().status(&service).0 {
            ServingStatus::ServiceUnknown => Err(Status::not_found(format!(
                "unknown service {service:?}: use a name that reflection lists, or the empty name"
            ))),
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let state = (self.clone(), service, None);
        let changes = stream::unfold(state, |(mut health, service, last)| async move {
            loop {
                let (status, last_one) = health.status(&service);
                if last != Some(status) {
                    let answer = Ok(HealthCheckResponse { status: status.into() });
                    return Some((answer, (health, service, Some(status))));
                }
                if last_one || !health.changed().await {
                    return None;
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
