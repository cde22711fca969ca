//! The attacks of hostile clients. Each attack runs on all nodes and at a bounded rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use conclave_client::proto::kv::{PutRequest, RangeRequest, WatchRequest, put_request};
use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request};
use prost::Message as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{cluster::Cluster, random::Random};

/// Time for which an attacker holds its resources before it repeats the attack.
const HOLD: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// Number of streams per connection, about as many as a node allows.
const STREAMS: usize = 1_000;
const IDLE_CONNECTIONS: usize = 1_500;
const ADMIN_CONNECTIONS: usize = 200;
/// Number of streams that are opened and cancelled in one burst.
const CANCELLED: usize = 100;
/// Number and size of the keys from which large answers are composed.
const LARGE_KEYS: u64 = 64;
const LARGE_BYTES: usize = 64 << 10;
const LARGE: &str = "large/";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A kind of hostile client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Requests large answers and does not read them.
    UnreadAnswers,
    /// Announces large requests and does not send them.
    UnfinishedBodies,
    /// Holds connections open, with and without the HTTP/2 preface.
    IdleConnections,
    /// Makes calls and cancels them immediately.
    CancelledStreams,
    /// Sends random bytes.
    Garbage,
    /// Opens many watches on one connection and does not read them.
    UnreadWatches,
    /// Resumes watches from an index that does not exist yet.
    FutureWatches,
    /// Holds connections to the admin port open.
    IdleAdminConnections,
}

impl Attack {
    /// All attacks.
    pub const ALL: [Self; 8] = [
        Self::UnreadAnswers,
        Self::UnfinishedBodies,
        Self::IdleConnections,
        Self::CancelledStreams,
        Self::Garbage,
        Self::UnreadWatches,
        Self::FutureWatches,
        Self::IdleAdminConnections,
    ];

    /// Description of the counted actions, for the report.
    pub fn describe(self) -> &'static str {
        match self {
            Self::UnreadAnswers => "large answers that were requested and not read",
            Self::UnfinishedBodies => "requests of 4 MiB that were announced and not sent",
            Self::IdleConnections => "connections that stayed idle",
            Self::CancelledStreams => "calls that were cancelled immediately",
            Self::Garbage => "connections that sent random bytes",
            Self::UnreadWatches => "watches that were not read",
            Self::FutureWatches => "watches from an index beyond the log",
            Self::IdleAdminConnections => "idle connections to the admin port",
        }
    }
}

/// Running attackers.
pub(super) struct Attackers {
    stopping: Arc<AtomicBool>,
    counts: Vec<Arc<AtomicU64>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Attackers {
    /// Stops all attackers. Returns the counters of each kind.
    pub(super) async fn stop(self) -> Vec<Arc<AtomicU64>> {
        self.stopping.store(true, Ordering::Relaxed);
        for task in self.tasks {
            // Aborting the task closes its connections.
            task.abort();
            let _ = task.await;
        }
        self.counts
    }
}

/// Writes the keys from which large answers are composed.
pub(super) async fn fill(cluster: &Cluster) -> Result<()> {
    let kv = cluster.client()?.kv().retry_unknown(true);
    for number in 0..LARGE_KEYS {
        let content = Some(put_request::Content::Text("x".repeat(LARGE_BYTES)));
        let put = PutRequest { key: format!("{LARGE}{number}"), content, ..PutRequest::default() };
        kv.put(&put).await.context("the large keys cannot be written")?;
    }
    Ok(())
}

/// Starts one attacker of each kind at each node.
pub(super) fn start(cluster: &Cluster, attacks: &[Attack], seed: u64) -> Attackers {
    let stopping = Arc::<AtomicBool>::default();
    let mut random = Random::new(seed);
    let (mut counts, mut tasks) = (Vec::new(), Vec::new());
    for attack in attacks.iter().copied() {
        let count = Arc::<AtomicU64>::default();
        for node in &cluster.nodes {
            let attacker = Attacker {
                attack,
                client: node.client.clone(),
                admin: node.admin.clone(),
                count: Arc::clone(&count),
                random: random.fork(node.id),
            };
            tasks.push(tokio::spawn(attacker.run(Arc::clone(&stopping))));
        }
        counts.push(count);
    }
    Attackers { stopping, counts, tasks }
}

struct Attacker {
    attack: Attack,
    client: String,
    admin: String,
    count: Arc<AtomicU64>,
    random: Random,
}

/// The connections and streams that an attacker holds open.
#[derive(Default)]
struct Held {
    connections: Vec<JoinHandle<()>>,
    streams: Vec<(ResponseFuture, SendStream<Bytes>)>,
    answers: Vec<RecvStream>,
    sockets: Vec<TcpStream>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connections.iter().for_each(JoinHandle::abort);
    }
}

impl Attacker {
    async fn run(mut self, stopping: Arc<AtomicBool>) {
        while !stopping.load(Ordering::Relaxed) {
            // A node may reject an attack. The attacker then retries.
            let _ = self.round().await;
            sleep(PAUSE).await;
        }
    }

    async fn round(&mut self) -> Result<()> {
        let mut held = Held::default();
        match self.attack {
            Attack::UnreadAnswers => {
                let request = RangeRequest { prefix: LARGE.into(), ..RangeRequest::default() };
                self.ask(&mut held, "/kv.v1.KV/Range", &request.encode_to_vec(), HeaderMap::new())
                    .await?;
            }
            Attack::UnreadWatches => {
                let request = WatchRequest {
                    prefix: LARGE.into(),
                    initial: false,
                    ..WatchRequest::default()
                };
                self.ask(&mut held, "/kv.v1.KV/Watch", &request.encode_to_vec(), HeaderMap::new())
                    .await?;
            }
            Attack::FutureWatches => {
                let mut headers = HeaderMap::new();
                headers.insert("conclave-from-index", u64::MAX.into());
                let request = WatchRequest::default().encode_to_vec();
                self.ask(&mut held, "/kv.v1.KV/Watch", &request, headers).await?;
            }
            Attack::UnfinishedBodies => self.unfinished_bodies(&mut held).await?,
            Attack::CancelledStreams => self.cancelled_streams(&mut held).await?,
            Attack::IdleConnections => self.idle_connections(&mut held).await?,
            Attack::IdleAdminConnections => {
                for _ in 0..ADMIN_CONNECTIONS {
                    held.sockets.push(open(&self.admin).await?);
                    self.count.fetch_add(1, Ordering::Relaxed);
                }
                sleep(HOLD).await;
            }
            Attack::Garbage => self.garbage().await?,
        }
        Ok(())
    }

    /// Begins requests and never ends them.
    async fn unfinished_bodies(&mut self, held: &mut Held) -> Result<()> {
        let (mut sender, connection) = connect(&self.client).await?;
        held.connections.push(connection);
        for _ in 0..STREAMS {
            sender = timeout(PAUSE, sender.ready()).await??;
            let (response, mut body) =
                sender.send_request(request("/kv.v1.KV/Put", HeaderMap::new())?, false)?;
            let mut begin = BytesMut::new();
            begin.put_u8(0);
            begin.put_u32(4 << 20);
            begin.put_slice(b"begin");
            body.send_data(begin.freeze(), false)?;
            held.streams.push((response, body));
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        sleep(HOLD).await;
        Ok(())
    }

    /// Begins requests and cancels them at once.
    async fn cancelled_streams(&mut self, held: &mut Held) -> Result<()> {
        let (mut sender, connection) = connect(&self.client).await?;
        held.connections.push(connection);
        for _ in 0..CANCELLED {
            sender = timeout(PAUSE, sender.ready()).await??;
            let (response, mut body) =
                sender.send_request(request("/kv.v1.KV/Get", HeaderMap::new())?, false)?;
            body.send_reset(h2::Reason::CANCEL);
            drop(response);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Opens connections to the client port and sends nothing, or only a preface.
    async fn idle_connections(&mut self, held: &mut Held) -> Result<()> {
        for number in 0..IDLE_CONNECTIONS {
            let mut socket = open(&self.client).await?;
            if number % 2 == 0 {
                socket.write_all(PREFACE).await?;
            }
            held.sockets.push(socket);
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        sleep(HOLD).await;
        Ok(())
    }

    /// Sends random bytes.
    async fn garbage(&mut self) -> Result<()> {
        let mut socket = open(&self.client).await?;
        if self.random.percent(50) {
            socket.write_all(PREFACE).await?;
        }
        let bytes: Vec<u8> =
            (0..self.random.range(1..20_000)).map(|_| self.random.next() as u8).collect();
        self.count.fetch_add(1, Ordering::Relaxed);
        socket.write_all(&bytes).await?;
        sleep(PAUSE).await;
        Ok(())
    }

    /// Sends a request on many streams and reads no answer.
    async fn ask(
        &self,
        held: &mut Held,
        path: &str,
        message: &[u8],
        headers: HeaderMap,
    ) -> Result<()> {
        let (mut sender, connection) = connect(&self.client).await?;
        held.connections.push(connection);
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(message.len() as u32);
        framed.put_slice(message);
        let framed = framed.freeze();
        for _ in 0..STREAMS {
            sender = timeout(PAUSE, sender.ready()).await??;
            let (response, mut body) =
                sender.send_request(request(path, headers.clone())?, false)?;
            body.send_data(framed.clone(), true)?;
            held.streams.push((response, body));
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        for (response, _) in std::mem::take(&mut held.streams) {
            if let Ok(Ok(answer)) = timeout(PAUSE, response).await {
                held.answers.push(answer.into_body());
            }
        }
        sleep(HOLD).await;
        Ok(())
    }
}

fn request(path: &str, headers: HeaderMap) -> Result<Request<()>> {
    let mut request = Request::post(format!("http://node{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    request.headers_mut().extend(headers);
    Ok(request)
}

async fn open(address: &str) -> Result<TcpStream> {
    Ok(timeout(CONNECT_TIME_MAX, TcpStream::connect(address)).await??)
}

/// Opens a connection with a small initial window for its streams.
async fn connect(address: &str) -> Result<(SendRequest<Bytes>, JoinHandle<()>)> {
    let socket = open(address).await?;
    let handshake = Builder::new().initial_window_size(16 << 10).handshake(socket);
    let (sender, connection) = timeout(CONNECT_TIME_MAX, handshake).await??;
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok((sender, connection))
}
