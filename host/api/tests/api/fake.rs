//! A scripted replica, the ports over it, and a client that sends and receives bytes.

use std::{
    future::pending,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Buf, BufMut, Bytes};
use conclave_api::{
    Admin, Api, Backend, BackupFile, Events, MachineInfo, MethodKind, MethodSpec, Options, Startup,
    Subscribed, Subscription, bind,
};
use conclave_metrics::Registry;
use conclave_types::{
    Call, Caller, ComponentId, Digest, Failure, Outcome, Receipt, Reply,
    backup::{BackupPiece, WrappingKey},
    error::Error,
    limits::{ClusterLimits, LimitsChange},
    status::{
        Answered, ClusterStatus, Consistency, Health, Leader, LimitsSet, NodeStatus, Role, TimeSet,
        Verification, Verified,
    },
};
use futures::future::BoxFuture;
use http::uri::PathAndQuery;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::{broadcast, mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_stream::{StreamExt as _, wrappers::BroadcastStream};
use tonic::{
    Request, Response, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};

use crate::protos::{COUNTER, KV};

/// `PutRequest { key: "k", value: "v" }`
pub const PUT: &[u8] = b"\x0a\x01k\x12\x01v";
/// `GetRequest { key: "k" }`
pub const GET: &[u8] = b"\x0a\x01k";

struct Fixed(&'static str);

impl protox::file::FileResolver for Fixed {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        protox::file::File::from_source(name, self.0)
    }
}

/// Returns a state machine with one protobuf file.
pub fn machine(file: &str, proto: &'static str, methods: &[(&str, MethodKind)]) -> MachineInfo {
    let mut compiler = protox::Compiler::with_file_resolver(Fixed(proto));
    compiler.include_imports(true).open_file(file).unwrap();
    MachineInfo {
        name: file.to_owned(),
        version: "1.2.3".to_owned(),
        state_version: 4,
        component_id: ComponentId([7; 32]),
        methods: methods
            .iter()
            .map(|(name, kind)| MethodSpec { name: Arc::from(*name), kind: *kind })
            .collect(),
        descriptor_set: compiler.encode_file_descriptor_set().into(),
    }
}

pub fn kv() -> MachineInfo {
    machine(
        "kv/v1/kv.proto",
        KV,
        &[
            ("kv.v1.KV/Put", MethodKind::Command),
            ("kv.v1.KV/Get", MethodKind::Query),
            ("kv.v1.KV/Watch", MethodKind::Subscription),
        ],
    )
}

pub fn counter() -> MachineInfo {
    machine("counter/v1/counter.proto", COUNTER, &[("counter.v1.Counter/Add", MethodKind::Command)])
}

/// The behaviour of the replica for every call.
pub enum Script {
    /// Returns the request.
    Echo,
    Outcome(Outcome),
    Answer(Result<Bytes, Failure>),
    Refuse(fn() -> Error),
    Hang,
}

pub struct Fake {
    pub script: Mutex<Script>,
    pub seen: Mutex<Vec<(Call, Option<Consistency>)>>,
    /// True if calls are recorded in `seen`.
    pub records: AtomicBool,
    pub index: AtomicU64,
    pub leader: Mutex<Option<Leader>>,
    pub health: watch::Sender<Health>,
    /// Events for subscribers: an entry's index and its messages. `None` means that the subscriber
    /// is too slow.
    pub events: broadcast::Sender<(u64, Option<Vec<Bytes>>)>,
    /// The position that subscriptions report while no events wait. 0: none.
    pub position: Arc<AtomicU64>,
    /// The index from which the last subscription resumed.
    pub resumed: Mutex<Option<u64>>,
}

impl Fake {
    fn record(&self, call: &Call, consistency: Option<Consistency>) {
        if self.records.load(Ordering::Relaxed) {
            self.seen.lock().unwrap().push((call.clone(), consistency));
        }
    }

    fn next_index(&self) -> u64 {
        self.index.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn node(&self) -> NodeStatus {
        NodeStatus {
            role: Role::Leader,
            term: 3,
            leader: Some(1),
            last_log: 12,
            committed: 11,
            applied: 10,
            component: Some(ComponentId([7; 32])),
            engine: "engine".to_owned(),
            ..NodeStatus::unreachable(1, "client:1".to_owned(), "peer:1".to_owned())
        }
    }
}

/// The events of a subscription: those that a test sends.
struct FakeEvents {
    events: BroadcastStream<(u64, Option<Vec<Bytes>>)>,
    position: Arc<AtomicU64>,
}

impl Events for FakeEvents {
    fn next(&mut self) -> BoxFuture<'_, Result<(u64, Vec<Bytes>), Error>> {
        Box::pin(async {
            match self.events.next().await.unwrap().unwrap() {
                (index, Some(messages)) => Ok((index, messages)),
                (index, None) => Err(Error::gone(format!("after {index}"))),
            }
        })
    }

    fn position(&mut self) -> Option<u64> {
        Some(self.position.load(Ordering::Relaxed)).filter(|position| *position > 0)
    }
}

impl Backend for Fake {
    async fn command(
        &self,
        call: Call,
        _caller: &Caller,
        _deadline: Instant,
    ) -> Result<Receipt, Error> {
        self.record(&call, None);
        let outcome = match &*self.script.lock().unwrap() {
            Script::Refuse(error) => Err(error()),
            Script::Outcome(outcome) => Ok(Some(outcome.clone())),
            Script::Hang => Ok(None),
            _ => Ok(Some(Outcome::Reply(Reply { response: call.request, ..Reply::default() }))),
        }?;
        if outcome.is_none() {
            pending::<()>().await;
        }
        Ok(Receipt { index: self.next_index(), outcome })
    }

    async fn query(
        &self,
        call: Call,
        _caller: &Caller,
        consistency: Consistency,
        _deadline: Instant,
    ) -> Result<Answered, Error> {
        self.record(&call, Some(consistency));
        let result = match &*self.script.lock().unwrap() {
            Script::Refuse(error) => Err(error()),
            Script::Answer(result) => Ok(Some(result.clone())),
            Script::Hang => Ok(None),
            _ => Ok(Some(Ok(call.request))),
        }?;
        match result {
            Some(result) => Ok(Answered { index: self.next_index(), result }),
            None => pending().await,
        }
    }

    async fn subscribe(
        &self,
        call: Call,
        _caller: &Caller,
        consistency: Consistency,
        resume: Option<u64>,
        _deadline: Instant,
    ) -> Result<Subscribed, Error> {
        self.record(&call, Some(consistency));
        *self.resumed.lock().unwrap() = resume;
        let result = match &*self.script.lock().unwrap() {
            Script::Refuse(error) => Err(error()),
            Script::Answer(result) => Ok(result.clone()),
            _ => Ok(Ok(call.request)),
        }?;
        let events = FakeEvents {
            events: BroadcastStream::new(self.events.subscribe()),
            position: Arc::clone(&self.position),
        };
        let result = result.map(|first| Subscription {
            initial: if resume.is_some() { Vec::new() } else { vec![first] },
            events: Box::new(events),
        });
        Ok(Subscribed { index: self.index.load(Ordering::Relaxed), result })
    }

    async fn snapshot_now(&self) -> Result<u64, Error> {
        Ok(10)
    }

    /// With a key, the backup never ends.
    async fn back_up(&self, key: Option<WrappingKey>, _: Instant) -> Result<BackupFile, Error> {
        let (sender, pieces) = mpsc::channel(1);
        tokio::spawn(async move {
            for piece in [vec![1; 100], vec![2; 1 << 20]] {
                let _ = sender.send(Ok(BackupPiece::Bytes(piece.into()))).await;
            }
            if key.is_some() {
                sender.closed().await;
                return;
            }
            let end = BackupPiece::End { bytes: 100 + (1 << 20), blake3: [3; 32] };
            let _ = sender.send(Ok(end)).await;
        });
        Ok(BackupFile { index: 11, pieces })
    }

    async fn set_time(&self, time_ms: u64, _deadline: Instant) -> Result<TimeSet, Error> {
        match time_ms {
            0 => Err(Error::refused("the log's time never goes back")),
            _ => Ok(TimeSet { index: 7, before_ms: 1, time_ms }),
        }
    }

    async fn set_limits(
        &self,
        change: LimitsChange,
        _deadline: Instant,
    ) -> Result<LimitsSet, Error> {
        let limits = ClusterLimits::DEFAULT.changed(&change, 1024);
        let limits = limits.map_err(|error| Error::invalid(error.to_string()))?;
        Ok(LimitsSet { index: 8, limits })
    }

    async fn verify(&self, _deadline: Instant) -> Result<Verification, Error> {
        let found = Verified { digest: Digest([1; 32]), state: [2; 32], bytes: 3 };
        let nodes = vec![(1, Ok(found)), (2, Ok(found)), (3, Err("it is away".to_owned()))];
        Ok(Verification { index: 9, nodes })
    }

    async fn cluster_status(&self) -> ClusterStatus {
        ClusterStatus {
            cluster_id: "test".to_owned(),
            leader: Some(1),
            term: 3,
            answered_by: 1,
            nodes: vec![
                self.node(),
                NodeStatus::unreachable(2, "client:2".to_owned(), "peer:2".to_owned()),
            ],
            limits: LimitsSet { index: 5, limits: ClusterLimits::DEFAULT },
        }
    }

    fn node_status(&self) -> NodeStatus {
        self.node()
    }

    fn leader(&self) -> Option<Leader> {
        self.leader.lock().unwrap().clone()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn machine(&self) -> Arc<MachineInfo> {
        Arc::new(kv())
    }
}

/// A node without Raft. Its ports close when it is dropped.
pub struct Node {
    pub fake: Arc<Fake>,
    pub api: Api<Fake>,
    pub client: SocketAddr,
    pub admin: SocketAddr,
    pub stop: Option<watch::Sender<()>>,
    pub served: Option<JoinHandle<()>>,
}

impl Node {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let fake = Arc::new(Fake {
            script: Mutex::new(Script::Echo),
            seen: Mutex::default(),
            records: AtomicBool::new(true),
            index: AtomicU64::new(0),
            leader: Mutex::new(Some(Leader { node_id: 1, client_address: "client:1".into() })),
            health: watch::channel(Health::Serving).0,
            events: broadcast::channel(64).0,
            position: Arc::default(),
            resumed: Mutex::new(None),
        });
        let registry = Registry::default();
        let api = Api::new(fake.clone(), options, &registry).unwrap();
        let listener = bind("127.0.0.1:0", "client").await.unwrap();
        let admin_listener = bind("127.0.0.1:0", "admin").await.unwrap();
        let client = listener.local_addr().unwrap();
        let admin = admin_listener.local_addr().unwrap();
        let (stop, mut stopped) = watch::channel(());
        let serving = api.clone();
        let served = tokio::spawn(async move {
            let stopped = async move { while stopped.changed().await.is_ok() {} };
            serving.serve_client(listener, stopped).await;
        });
        let serving = Admin::new(Startup::new("testing"), registry);
        serving.started(&api);
        let mut stopped = stop.subscribe();
        tokio::spawn(async move {
            let stopped = async move { while stopped.changed().await.is_ok() {} };
            serving.serve(admin_listener, stopped).await;
        });
        Self { fake, api, client, admin, stop: Some(stop), served: Some(served) }
    }

    pub fn script(&self, script: Script) {
        *self.fake.script.lock().unwrap() = script;
    }

    pub async fn channel(&self) -> Channel {
        channel(self.client).await
    }

    /// Makes one call with its own client.
    pub async fn call(
        &self,
        path: &'static str,
        request: &[u8],
    ) -> Result<Response<Bytes>, Status> {
        self.send(path, Request::new(Bytes::copy_from_slice(request))).await
    }

    pub async fn send(
        &self,
        path: &'static str,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        call(self.channel().await, path, request).await
    }
}

pub async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_str(&format!("http://{address}")).unwrap().connect().await.unwrap()
}

pub async fn call(
    channel: Channel,
    path: &'static str,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    client.unary(request, PathAndQuery::from_static(path), Raw).await
}

/// Sends a POST over plain HTTP/2. A gRPC client would add its own timers and checks.
pub async fn post(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> http::Response<hyper::body::Incoming> {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://x{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send_request(request.body(Full::new(body)).unwrap()).await.unwrap()
}

/// Makes a call with a timeout that only the server observes. Returns the status of the response.
pub async fn call_with_timeout(
    address: SocketAddr,
    path: &str,
    timeout: &str,
    request: &[u8],
) -> Status {
    let headers = [("content-type", "application/grpc"), ("grpc-timeout", timeout)];
    let mut framed = vec![0];
    framed.extend((request.len() as u32).to_be_bytes());
    framed.extend(request);
    let response = post(address, path, &headers, framed.into()).await;
    Status::from_header_map(response.headers()).unwrap()
}

/// A codec that passes messages as bytes.
#[derive(Clone, Copy)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Returns the value of a metadata key.
pub fn metadata<'a>(metadata: &'a tonic::metadata::MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name).map(|value| value.to_str().unwrap())
}
