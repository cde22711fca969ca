//! A scripted node, whose responses come from a closure.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::Server,
};

pub(crate) type Reply = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

/// One call, as the node receives it.
pub(crate) struct Call {
    /// Counted from 0.
    pub(crate) number: usize,
    pub(crate) path: String,
    pub(crate) message: Bytes,
    pub(crate) metadata: MetadataMap,
}

type Script = Arc<dyn Fn(Call) -> Reply + Send + Sync>;

/// A running node with its own runtime. Dropping it closes all its connections.
pub(crate) struct Node {
    pub(crate) address: String,
    pub(crate) calls: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Node {
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts a node that responds to each call immediately.
pub(crate) fn node(
    script: impl Fn(Call) -> Result<Response<Bytes>, Status> + Send + Sync + 'static,
) -> Node {
    slow_node(move |call| {
        let reply = script(call);
        Box::pin(async move { reply })
    })
}

/// Starts a node whose responses may take time.
pub(crate) fn slow_node(script: impl Fn(Call) -> Reply + Send + Sync + 'static) -> Node {
    let calls = Arc::new(AtomicUsize::new(0));
    let echo = Fake::<ECHO> { calls: Arc::clone(&calls), script: Arc::new(script) };
    let kv = Fake::<KV> { calls: Arc::clone(&calls), script: Arc::clone(&echo.script) };
    let (runtime, listener, address) = listen();
    let reflection_v1alpha = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(&descriptors())
        .build_v1alpha()
        .unwrap();
    let server =
        Server::builder().add_service(echo).add_service(kv).add_service(reflection_v1alpha);
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    Node { address, calls, runtime: Some(runtime) }
}

/// Refuses the first stream of a connection (RST_STREAM with REFUSED_STREAM).
pub(crate) const REFUSED_STREAM: &[u8] = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x07";
/// GOAWAY: accepts no more streams, and has processed none.
pub(crate) const GO_AWAY: &[u8] = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Empty settings.
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// A peer that accepts connections, waits for a request and disconnects.
pub(crate) fn hangs_up() -> Node {
    answers_with(b"")
}

/// A peer whose kernel accepts connections while its process does nothing.
pub(crate) fn frozen() -> Node {
    let (runtime, listener, address) = listen();
    runtime.spawn(async move {
        std::future::pending::<()>().await;
        drop(listener);
    });
    Node { address, calls: Arc::default(), runtime: Some(runtime) }
}

/// A peer that accepts connections, waits for a request, responds with a frame and disconnects.
pub(crate) fn answers_with(frame: &'static [u8]) -> Node {
    let (runtime, listener, address) = listen();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(SETTINGS).await;
            read_past_the_preface(&mut stream).await;
            let _ = stream.write_all(frame).await;
            let _ = stream.shutdown().await;
        }
    });
    Node { address, calls, runtime: Some(runtime) }
}

async fn read_past_the_preface(stream: &mut TcpStream) {
    let mut total = 0;
    let mut buffer = [0; 4096];
    // Preface and settings are shorter, so further bytes belong to the request.
    while total < 150 {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => total += read,
        }
    }
}

/// Returns an address without a listener.
pub(crate) fn unused_address() -> String {
    let (runtime, _, address) = listen();
    runtime.shutdown_background();
    address
}

fn listen() -> (Runtime, std::net::TcpListener, String) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (runtime, listener, address)
}

/// Returns a response with the metadata of a node.
pub(crate) fn answer(message: &'static [u8], leader: &str) -> Result<Response<Bytes>, Status> {
    let mut response = Response::new(Bytes::from_static(message));
    response.metadata_mut().insert("conclave-index", "42".parse().unwrap());
    response.metadata_mut().insert("conclave-leader", leader.parse().unwrap());
    Ok(response)
}

/// Returns an error, with the leader's address if it is known.
pub(crate) fn error(code: Code, leader: Option<&str>, not_applied: bool) -> Status {
    let mut metadata = MetadataMap::new();
    if let Some(leader) = leader {
        metadata.insert("conclave-leader", leader.parse().unwrap());
    }
    if not_applied {
        metadata.insert("conclave-outcome", "not-applied".parse().unwrap());
    }
    Status::with_metadata(code, "scripted", metadata)
}

/// `test.v1.Echo`: `Say` is a command, `Ask` a query, both with `message Text { string text = 1; }`.
fn descriptors() -> Vec<u8> {
    use prost::Message;
    use prost_reflect::prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
        MethodDescriptorProto, MethodOptions, ServiceDescriptorProto, field_descriptor_proto::Type,
        method_options::IdempotencyLevel,
    };
    let field = FieldDescriptorProto {
        name: Some("long_text".to_owned()),
        number: Some(1),
        r#type: Some(Type::String as i32),
        label: Some(1),
        ..Default::default()
    };
    let message =
        DescriptorProto { name: Some("Text".to_owned()), field: vec![field], ..Default::default() };
    let method = |name: &str, query: bool| MethodDescriptorProto {
        name: Some(name.to_owned()),
        input_type: Some(".test.v1.Text".to_owned()),
        output_type: Some(".test.v1.Text".to_owned()),
        options: query.then(|| MethodOptions {
            idempotency_level: Some(IdempotencyLevel::NoSideEffects as i32),
            ..Default::default()
        }),
        ..Default::default()
    };
    // The message is in a separate file, so that imports are fetched too.
    let messages = FileDescriptorProto {
        name: Some("test/messages.proto".to_owned()),
        package: Some("test.v1".to_owned()),
        message_type: vec![message],
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    };
    let service = FileDescriptorProto {
        name: Some("test/echo.proto".to_owned()),
        package: Some("test.v1".to_owned()),
        dependency: vec!["test/messages.proto".to_owned()],
        service: vec![ServiceDescriptorProto {
            name: Some("Echo".to_owned()),
            method: vec![method("Say", false), method("Ask", true)],
            ..Default::default()
        }],
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    };
    FileDescriptorSet { file: vec![messages, service] }.encode_to_vec()
}

const ECHO: u8 = 0;
const KV: u8 = 1;

/// A service of the node. All services behave the same.
#[derive(Clone)]
struct Fake<const SERVICE: u8> {
    calls: Arc<AtomicUsize>,
    script: Script,
}

impl tonic::server::NamedService for Fake<ECHO> {
    const NAME: &'static str = "test.v1.Echo";
}

impl tonic::server::NamedService for Fake<KV> {
    const NAME: &'static str = "kv.v1.KV";
}

impl<const SERVICE: u8> tower::Service<http::Request<tonic::body::Body>> for Fake<SERVICE> {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let script = Arc::clone(&self.script);
        let handler = tower::service_fn(move |request: Request<Bytes>| {
            let (metadata, _, message) = request.into_parts();
            script(Call { number, path: path.clone(), message, metadata })
        });
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(handler, request).await) })
    }
}

#[derive(Clone, Copy)]
struct Raw;

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
