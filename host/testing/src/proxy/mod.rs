//! A TCP proxy between the nodes, in the test's process, that can break each link separately.
//!
//! A [`Network`] listens on the peer address that a node advertises, and forwards each connection to
//! the address on which the node listens. All nodes have the same list of members, so the address
//! does not identify the node that connects. The kernel's socket tables do (see [`source`]).
//!
//! A *link* carries all bytes from one node to another, over all connections between the two. It
//! carries the requests of connections that the first node opened, and the responses of connections
//! that the second one opened. So a link is one direction of the network between two hosts.
//!
//! # Faults of a link
//!
//! | [`Fault`] | bytes | connections |
//! |---|---|---|
//! | `Hold` | wait, and arrive in order after the release | stay open |
//! | `Cut` | are lost | stay open while the link is cut; each that lost bytes is reset afterwards |
//! | `Refuse` | are lost | are reset immediately, including new ones |
//!
//! In addition, [`Shape`] has a delay and a rate.
//!
//! # Caveats
//!
//! - The proxy accepts connections while a link is cut, but forwards nothing. A real network would
//!   not complete such a connection. So connect timeouts are not tested.
//! - A sender can have [`BUFFER_CHUNKS`] × [`CHUNK_BYTES`] in transit before its own buffers fill.

mod connection;
pub mod source;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use self::source::Owners;

/// Maximum number of chunks that wait in one direction of a connection.
pub const BUFFER_CHUNKS: usize = 256;
/// Maximum size of a chunk.
pub const CHUNK_BYTES: usize = 16 << 10;

/// The fault of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// No fault.
    #[default]
    None,
    /// Bytes wait until the link is released.
    Hold,
    /// Bytes are lost. The connections stay open until the link works again.
    Cut,
    /// Connections are reset.
    Refuse,
}

/// The fault, delay and rate of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// The fault.
    pub fault: Fault,
    /// Delay of each byte.
    pub delay: Duration,
    /// Bytes per second and connection. `None` for no limit.
    pub bytes_per_second: Option<u64>,
}

/// A part of a link's bytes. Bytes of different connections may overtake each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of connections that the sender opened.
    Requests,
    /// Bytes of connections that the receiver opened.
    Responses,
}

/// One direction between two nodes.
pub struct Link {
    requests: watch::Sender<Shape>,
    responses: watch::Sender<Shape>,
    /// Number of bytes that were read from the sender.
    taken: AtomicU64,
    /// Number of bytes that were written to the receiver.
    given: AtomicU64,
    /// Number of bytes that were read but never written, because their connections ended.
    lost: AtomicU64,
}

impl Default for Link {
    fn default() -> Self {
        let shape = || watch::channel(Shape::default()).0;
        let zero = || AtomicU64::new(0);
        Self { requests: shape(), responses: shape(), taken: zero(), given: zero(), lost: zero() }
    }
}

impl Link {
    /// Changes how the link carries bytes.
    pub fn set(&self, change: impl Fn(&mut Shape)) {
        self.set_part(Part::Requests, &change);
        self.set_part(Part::Responses, &change);
    }

    /// Changes how the link carries one part of its bytes.
    pub fn set_part(&self, part: Part, change: impl FnOnce(&mut Shape)) {
        self.part(part).send_modify(change);
    }

    fn part(&self, part: Part) -> &watch::Sender<Shape> {
        match part {
            Part::Requests => &self.requests,
            Part::Responses => &self.responses,
        }
    }

    /// Holds all bytes until [`Link::repair`].
    pub fn hold(&self) {
        self.set(|shape| shape.fault = Fault::Hold);
    }

    /// Loses all bytes until [`Link::repair`].
    pub fn cut(&self) {
        self.set(|shape| shape.fault = Fault::Cut);
    }

    /// Resets all connections until [`Link::repair`].
    pub fn refuse(&self) {
        self.set(|shape| shape.fault = Fault::Refuse);
    }

    /// Removes all faults, delays and limits.
    pub fn repair(&self) {
        self.set(|shape| *shape = Shape::default());
    }

    /// Number of bytes in transit: read from the sender and not yet written to the receiver.
    pub fn waiting(&self) -> u64 {
        let over = self.given.load(Ordering::Acquire) + self.lost.load(Ordering::Acquire);
        self.taken.load(Ordering::Acquire).saturating_sub(over)
    }

    /// Number of bytes that were written to the receiver.
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Acquire)
    }
}

/// Counters of the bytes in one direction of one connection.
struct Tally<'a> {
    link: &'a Link,
    part: Part,
    taken: AtomicU64,
    given: AtomicU64,
}

impl<'a> Tally<'a> {
    fn new(link: &'a Link, part: Part) -> Self {
        Self { link, part, taken: AtomicU64::new(0), given: AtomicU64::new(0) }
    }

    fn shape(&self) -> Shape {
        *self.link.part(self.part).borrow()
    }

    fn watch(&self) -> watch::Receiver<Shape> {
        self.link.part(self.part).subscribe()
    }

    fn took(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::AcqRel);
        self.link.taken.fetch_add(bytes as u64, Ordering::AcqRel);
    }

    fn gave(&self, bytes: usize) {
        self.given.fetch_add(bytes as u64, Ordering::AcqRel);
        self.link.given.fetch_add(bytes as u64, Ordering::AcqRel);
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        let given = self.given.load(Ordering::Acquire);
        let lost = self.taken.load(Ordering::Acquire).saturating_sub(given);
        self.link.lost.fetch_add(lost, Ordering::AcqRel);
    }
}

/// The links between all nodes, and the proxies that carry them.
pub struct Network {
    links: BTreeMap<(u64, u64), Arc<Link>>,
    owners: Arc<Owners>,
    proxies: Mutex<Vec<JoinHandle<()>>>,
}

impl Network {
    /// Creates the links between these nodes. Starts no proxy.
    pub fn new(nodes: impl Iterator<Item = u64> + Clone) -> Self {
        let pairs = nodes.clone().flat_map(|from| nodes.clone().map(move |to| (from, to)));
        let links = pairs.filter(|(from, to)| from != to);
        Self {
            links: links.map(|pair| (pair, Arc::new(Link::default()))).collect(),
            owners: Arc::new(Owners::default()),
            proxies: Mutex::default(),
        }
    }

    /// Starts the proxy of one node, which forwards connections from `advertised` to `listening`.
    pub async fn serve(
        &self,
        to: u64,
        advertised: SocketAddr,
        listening: SocketAddr,
    ) -> Result<()> {
        let listener = TcpListener::bind(advertised)
            .await
            .with_context(|| format!("the proxy of node {to} cannot listen at {advertised}"))?;
        let owners = Arc::clone(&self.owners);
        let links = self.links.clone();
        let proxy = tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let (owners, links) = (Arc::clone(&owners), links.clone());
                tokio::spawn(async move {
                    // The process of the connecting node may have ended meanwhile.
                    let Some(from) = owners.owner_of(from, advertised) else { return };
                    let request = links.get(&(from, to)).cloned();
                    let (Some(request), Some(response)) =
                        (request, links.get(&(to, from)).cloned())
                    else {
                        return;
                    };
                    let connected = TcpStream::connect(listening).await;
                    connection::carry(stream, connected.ok(), request, response).await;
                });
            }
        });
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner).push(proxy);
        Ok(())
    }

    /// Sets the process of a node, so that its connections are recognized.
    pub fn is_process(&self, node: u64, pid: u32) {
        self.owners.insert(node, pid);
    }

    /// The link that carries bytes from one node to another.
    ///
    /// # Panics
    /// Panics if there is no such pair of nodes.
    #[allow(clippy::expect_used, reason = "the caller names nodes of its own cluster")]
    pub fn link(&self, from: u64, to: u64) -> &Link {
        self.links.get(&(from, to)).expect("two different nodes of this network")
    }

    /// The links in both directions between two nodes.
    pub fn between(&self, one: u64, other: u64) -> [&Link; 2] {
        [self.link(one, other), self.link(other, one)]
    }

    /// The links that carry bytes to a node.
    pub fn into(&self, node: u64) -> impl Iterator<Item = &Link> {
        let links = self.links.iter().filter(move |((_, to), _)| *to == node);
        links.map(|(_, link)| &**link)
    }

    /// The links that carry bytes from a node.
    pub fn out_of(&self, node: u64) -> impl Iterator<Item = &Link> {
        let links = self.links.iter().filter(move |((from, _), _)| *from == node);
        links.map(|(_, link)| &**link)
    }

    /// The links to and from a node.
    pub fn around(&self, node: u64) -> impl Iterator<Item = &Link> {
        self.into(node).chain(self.out_of(node))
    }

    /// All links.
    pub fn all(&self) -> impl Iterator<Item = &Link> {
        self.links.values().map(|link| &**link)
    }

    /// Repairs all links.
    pub fn repair(&self) {
        for link in self.all() {
            link.repair();
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for proxy in self.proxies.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            proxy.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::{Instant, timeout},
    };

    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    /// Both ends of a connection from node 1 (this process) to node 2.
    async fn connected() -> (Network, TcpStream, TcpStream, SocketAddr) {
        let network = Network::new([1, 2].into_iter());
        network.is_process(1, std::process::id());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let advertised = free.local_addr().unwrap();
        drop(free);
        network.serve(2, advertised, listener.local_addr().unwrap()).await.unwrap();
        let client = TcpStream::connect(advertised).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (network, client, server, advertised)
    }

    async fn passes(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").await.unwrap();
        let mut byte = [0];
        matches!(timeout(SOON, to.read_exact(&mut byte)).await, Ok(Ok(_)))
    }

    #[tokio::test]
    async fn each_direction_is_held_by_itself_and_delivers_in_the_end() {
        let (network, mut client, mut server, _) = connected().await;
        assert!(passes(&mut client, &mut server).await && passes(&mut server, &mut client).await);
        network.link(1, 2).hold();
        assert!(!passes(&mut client, &mut server).await);
        assert!(passes(&mut server, &mut client).await);
        assert_eq!((network.link(1, 2).waiting(), network.link(2, 1).waiting()), (1, 0));
        network.repair();
        let mut byte = [0];
        server.read_exact(&mut byte).await.unwrap();
        assert!(passes(&mut client, &mut server).await);
    }

    #[tokio::test]
    async fn what_a_cut_link_has_lost_breaks_the_connection_afterwards() {
        let (network, mut client, mut server, _) = connected().await;
        network.link(1, 2).cut();
        assert!(!passes(&mut client, &mut server).await);
        assert!(passes(&mut server, &mut client).await);
        network.repair();
        let mut rest = Vec::new();
        let ended = timeout(SOON, server.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty(), "{ended:?}");
        assert_eq!(network.link(1, 2).waiting(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_lost_nothing_outlives_a_cut() {
        let (network, mut client, mut server, _) = connected().await;
        network.link(1, 2).cut();
        tokio::time::sleep(SOON).await;
        network.repair();
        assert!(passes(&mut client, &mut server).await);
    }

    #[tokio::test]
    async fn a_link_that_refuses_resets_connections() {
        let (network, mut client, _server, advertised) = connected().await;
        network.link(1, 2).refuse();
        let mut byte = [0];
        let read = timeout(SOON, client.read(&mut byte)).await.unwrap();
        assert!(!matches!(read, Ok(1..)), "{read:?}");
        let mut again = TcpStream::connect(advertised).await.unwrap();
        let read = timeout(SOON, again.read(&mut byte)).await.unwrap();
        assert!(!matches!(read, Ok(1..)), "{read:?}");
    }

    #[tokio::test]
    async fn delay_and_rate_are_kept() {
        let (network, mut client, mut server, _) = connected().await;
        network.link(1, 2).set(|shape| shape.delay = Duration::from_millis(50));
        let begun = Instant::now();
        assert!(passes(&mut client, &mut server).await);
        assert!(begun.elapsed() >= Duration::from_millis(50));
        network.repair();
        network.link(1, 2).set(|shape| shape.bytes_per_second = Some(100_000));
        let begun = Instant::now();
        client.write_all(&[0; 10_000]).await.unwrap();
        server.read_exact(&mut [0; 10_000]).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(90), "{:?}", begun.elapsed());
    }
}
