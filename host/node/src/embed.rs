//! A node inside another program.
//!
//! A program can run nodes itself, for example to provide its own state machine or to avoid a
//! second process. They are equal to the nodes of `conclave serve`: the same ports, files and peer
//! protocol. A cluster may mix both kinds.
//!
//! Contract: a node that has started listens on its ports; calls wait until there is a leader. It
//! runs in the tokio runtime that started it, which must be multi-threaded. It also has its own
//! threads for the disk and the state machine.
//!
//! Caveats: a node whose state machine or disk fails continues to run and reports the failure.
//! Watch its health on the client port or the admin port. After a bug in the node itself (a panic
//! in one of its tasks or threads) it ends, and [`Node::failed`] returns the error. A node installs
//! no signal handlers and no logging; the program does (`conclave serve` uses
//! `conclave_cli::telemetry::start`). The program's other threads share memory and processors
//! with the node.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use conclave::{
//!     Node,
//!     config::{Config, ComponentSource, Settings},
//! };
//!
//! let settings = Settings {
//!     node_id: Some(1),
//!     cluster_id: Some("my-program".into()),
//!     data_dir: Some("data".into()),
//!     members: vec!["1=127.0.0.1:7201,127.0.0.1:7101".into()],
//!     master_key_file: Some("master.key".into()),
//!     ..Settings::default()
//! };
//! let mut config = Config::from_settings(settings, None)?;
//! config.component = Some(ComponentSource::File("target/counter.wasm".into()));
//! let node = Node::start(config).await?;
//! // Calls go to 127.0.0.1:7101, with conclave-client or any other gRPC client.
//! node.stop().await?;
//! # Ok(()) }
//! ```

use std::net::SocketAddr;

use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle},
};

use crate::{config::Config, node};
use conclave_types::error::Error;

/// A running node. Dropping it also stops it, without waiting for the end.
#[derive(Debug)]
pub struct Node {
    client_address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    /// `None` once the node has ended by itself.
    running: Option<JoinHandle<Result<(), Error>>>,
}

impl Node {
    /// Starts a node. Fails if, for example, a port is in use, the key does not match the data, or
    /// the component is invalid. The data directory is then unchanged.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let client_address = config.listen_client;
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, has_started) = oneshot::channel();
        let running = tokio::spawn(node::run_with(
            config,
            move || {
                // The caller may have stopped waiting.
                let _ = started.send(());
            },
            async move { drop(stopped.await) },
        ));
        match has_started.await {
            Ok(()) => Ok(Self { client_address, stop: Some(stop), running: Some(running) }),
            // The node ended during its start.
            Err(_) => Err(match ended(running.await) {
                Err(error) => error,
                Ok(()) => Error::fatal("the node stopped before it had started"),
            }),
        }
    }

    /// The address for clients.
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Waits until the node ends by itself, and returns the reason: a fatal error, such as a panic
    /// in one of its tasks. While the node works, this does not return. Dropping the future does
    /// not affect the node.
    pub async fn failed(&mut self) -> Error {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let result = ended(running.await);
        self.running = None;
        result.err().unwrap_or_else(|| Error::fatal("the node stopped by itself: report this bug"))
    }

    /// Stops the node. A leader transfers its leadership first, and calls in progress are completed.
    pub async fn stop(mut self) -> Result<(), Error> {
        drop(self.stop.take());
        match self.running.take() {
            Some(running) => ended(running.await),
            None => Ok(()),
        }
    }
}

fn ended(joined: Result<Result<(), Error>, JoinError>) -> Result<(), Error> {
    joined.unwrap_or_else(|error| Err(Error::fatal("the node failed").with_source(error)))
}
