//! How a cluster is set up.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Result;

use super::Node;
use crate::proxy::Network;

/// Held by the test that may have a cluster.
pub struct Turn(#[allow(dead_code, reason = "held until it is dropped")] MutexGuard<'static, ()>);

/// Waits until no other test of this program has a cluster: three nodes fill two cores.
pub fn turn() -> Turn {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    Turn(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
}

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `conclave`.
    pub binary: PathBuf,
    /// The number of nodes.
    pub nodes: u64,
    /// More flags for every node.
    pub flags: Vec<String>,
    /// The initial component. `None`: the key-value store.
    pub component: Option<PathBuf>,
    /// Whether peers reach each other through a [`Network`](crate::proxy::Network).
    pub proxied: bool,
    /// Where the directory of the cluster is made. `None`: where temporary files go.
    pub parent: Option<PathBuf>,
}

impl Options {
    /// Three nodes with the key-value store, directly connected.
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

/// A free loopback address. Its port is not one of those that the kernel gives to outgoing connections: such
/// a connection could take it before the node listens.
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

/// A network with a proxy before each node.
pub(super) async fn proxies(nodes: &[Node]) -> Result<Network> {
    let network = Network::new(nodes.iter().map(|node| node.id));
    for node in nodes {
        let address = |text: &str| -> Result<SocketAddr> { Ok(text.parse()?) };
        network.serve(node.id, address(&node.peer)?, address(&node.listen_peer)?).await?;
    }
    Ok(network)
}
