//! A node inside another program.
//!
//! A program that brings its own machine along, or wants no second process beside it, runs nodes itself.
//! They are the nodes that `conclave serve` runs: the same ports, the same files, the same peers. A cluster
//! may be made of both.
//!
//! Contract: a node that has started listens on its ports; calls wait until there is a leader. It runs in
//! the tokio runtime that started it, which must have several threads, beside threads of its own for the
//! disk and the machine.
//!
//! Caveats: a node whose state machine or disk fails continues to run and reports it: watch its health, at the
//! client port and the admin port. After a bug in the node itself (a panic in one of its tasks or threads) it
//! ends, and [`Node::failed`] returns the error. It installs no signal handlers and no log; the program
//! does ([`conclave_cli::telemetry::start`] is what `conclave serve` uses). What a program's other threads do to
//! memory and processors, they do to the node.
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
//! // Calls go to 127.0.0.1:7101, with conclave-client or any other client of gRPC.
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

/// A node that runs. Dropping it stops it too, without a wait for the end.
#[derive(Debug)]
pub struct Node {
    client_address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    /// `None` once the node has ended by itself.
    running: Option<JoinHandle<Result<(), Error>>>,
}

impl Node {
    /// Starts a node. Fails with what is wrong: a port that is taken, a key that does not fit the data, a
    /// component that is none; the data directory is left as it was.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let client_address = config.listen_client;
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, has_started) = oneshot::channel();
        let running = tokio::spawn(node::run_with(
            config,
            move || {
                // Nobody waits any more.
                let _ = started.send(());
            },
            async move { drop(stopped.await) },
        ));
        match has_started.await {
            Ok(()) => Ok(Self { client_address, stop: Some(stop), running: Some(running) }),
            // It ended before it had started.
            Err(_) => Err(match ended(running.await) {
                Err(error) => error,
                Ok(()) => Error::fatal("the node stopped before it had started"),
            }),
        }
    }

    /// Where clients reach it.
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Waits until the node ends by itself, and returns why: a fatal error, such as a panic in one of its tasks.
    /// A node that works never returns from this; dropping the future does not affect the node.
    pub async fn failed(&mut self) -> Error {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let result = ended(running.await);
        self.running = None;
        result.err().unwrap_or_else(|| Error::fatal("the node stopped by itself: report this"))
    }

    /// Stops the node: a leader transfers its leadership first, and calls under way are answered.
    pub async fn stop(mut self) -> Result<(), Error> {
        drop(self.stop.take());
        match self.running.take() {
            Some(running) => ended(running.await),
            None => Ok(()),
        }
    }
}

fn ended(joined: Result<Result<(), Error>, JoinError>) -> Result<(), Error> {
    joined.unwrap_or_else(|error| Err(Error::fatal(format!("the node broke: {error}"))))
}
