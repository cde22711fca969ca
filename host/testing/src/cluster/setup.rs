//! Setup of clusters.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::available_parallelism,
};

use anyhow::Result;

use super::Node;
use crate::proxy::Network;

/// Permission for one test to run a cluster, until it is dropped.
pub struct Turn(());

/// Number of clusters that this process is running.
static CLUSTERS: Mutex<usize> = Mutex::new(0);
static TURN_ENDED: Condvar = Condvar::new();

/// Waits for permission to run a cluster. Three nodes fill two cores, so one process runs one
/// cluster per two cores at a time.
pub fn turn() -> Turn {
    let clusters_max = available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
    let clusters = CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner);
    let free = TURN_ENDED.wait_while(clusters, |clusters| *clusters >= clusters_max);
    *free.unwrap_or_else(PoisonError::into_inner) += 1;
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        *CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        TURN_ENDED.notify_one();
    }
}

/// Settings of a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `conclave`.
    pub binary: PathBuf,
    /// The number of nodes.
    pub nodes: u64,
    /// Additional flags for every node.
    pub flags: Vec<String>,
    /// The initial component. `None` for the key-value store.
    pub component: Option<PathBuf>,
    /// Whether peers reach each other through a [`Network`](crate::proxy::Network).
    pub proxied: bool,
    /// Parent of the cluster's directory. `None` for the directory of temporary files.
    pub parent: Option<PathBuf>,
}

impl Options {
    /// Three nodes with the key-value store, connected without proxies.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            nodes: 3,
            flags: Vec::new(),
            component: None,
            proxied: false,
            parent: None,
        }
    }

    /// Puts a proxy on every link between peers.
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// Sets the number of nodes.
    pub fn nodes(mut self, nodes: u64) -> Self {
        self.nodes = nodes;
        self
    }

    /// Adds a flag for every node.
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }
}

/// A free loopback address. Its port is outside the range that the kernel uses for outgoing
/// connections. Otherwise such a connection could take the port before the node listens.
pub fn free_address() -> String {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    loop {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (std::process::id() * 211 + tried) % 10_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// Creates a network with a proxy in front of each node.
pub(super) async fn proxies(nodes: &[Node]) -> Result<Network> {
    let network = Network::new(nodes.iter().map(|node| node.id));
    for node in nodes {
        let address = |text: &str| -> Result<SocketAddr> { Ok(text.parse()?) };
        network.serve(node.id, address(&node.peer)?, address(&node.listen_peer)?).await?;
    }
    Ok(network)
}
