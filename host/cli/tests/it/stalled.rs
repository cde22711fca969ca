//! A follower, played by the test, that receives a snapshot and falls silent.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use conclave_proto::raft::{
    AppendRequest, AppendResponse, HandshakeRequest, HandshakeResponse, LogId, SnapshotOffer,
    SnapshotPart, SnapshotProgress, SnapshotResponse, append_response, snapshot_part::Part,
    snapshot_progress::Progress,
};
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    server::{Grpc, NamedService},
    transport::Server,
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use crate::harness::{Cluster, PATIENCE, Setup, eventually, put};

/// One attempt of the leader: the offset where it began, the number of bytes it sent, and the time
/// when all were sent.
type Attempt = (u64, u64, Instant);

#[derive(Clone)]
struct Silent {
    component_id: bytes::Bytes,
    /// Whether the follower answers appends.
    answers: Arc<AtomicBool>,
    attempts: mpsc::UnboundedSender<Attempt>,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Silent {
    fn handshake(&self) -> Result<Response<HandshakeResponse>, Status> {
        Ok(Response::new(HandshakeResponse {
            incarnation: vec![3; 16].into(),
            component_id: self.component_id.clone(),
            ..HandshakeResponse::default()
        }))
    }

    /// Rejects an append: the follower's log is empty.
    fn append(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Result<Response<impl Stream<Item = Result<AppendResponse, Status>> + use<>>, Status> {
        if !self.answers.load(Ordering::Relaxed) {
            return Err(Status::unavailable("not yet"));
        }
        let answers = request.into_inner().map(|request| {
            let conflict = request?.previous.unwrap_or(LogId { term: 0, index: 0 });
            let result = Some(append_response::Result::Conflict(conflict));
            Ok(AppendResponse { result, ..AppendResponse::default() })
        });
        Ok(Response::new(answers))
    }

    fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Response<ReceiverStream<Result<SnapshotProgress, Status>>> {
        let (answers, stream) = mpsc::channel(4);
        tokio::spawn(self.clone().receive(request.into_inner(), answers));
        Response::new(ReceiverStream::new(stream))
    }

    async fn receive(
        self,
        mut parts: Streaming<SnapshotPart>,
        answers: mpsc::Sender<Result<SnapshotProgress, Status>>,
    ) {
        let mut vote = None;
        let (offered, hash) = {
            let received = self.received.lock().unwrap();
            (received.len() as u64, blake3::hash(&received))
        };
        let offer = SnapshotOffer { bytes: offered, blake3: hash.as_bytes().to_vec().into() };
        let answer = |progress| Ok(SnapshotProgress { progress: Some(progress) });
        answers.send(answer(Progress::Offer(offer))).await.unwrap();
        let (mut began_at, mut bytes) = (u64::MAX, 0);
        while let Ok(Some(SnapshotPart { part: Some(part) })) = parts.message().await {
            match part {
                Part::Start(start) => vote = start.vote,
                Part::Offset(offset) => began_at = offset,
                Part::Chunk(chunk) => {
                    bytes += chunk.len() as u64;
                    self.received.lock().unwrap().extend_from_slice(&chunk);
                }
                Part::End(_) => {
                    self.attempts.send((began_at, bytes, Instant::now())).unwrap();
                    break;
                }
            }
        }
        if offered > 0 {
            let done = Progress::Done(SnapshotResponse { vote });
            answers.send(answer(done)).await.unwrap();
        } else {
            // The follower has received all and never responds.
            answers.closed().await;
        }
    }
}

impl NamedService for Silent {
    const NAME: &'static str = "conclave.raft.v1.Raft";
}

/// Three methods of the peer service. The follower answers no heartbeat and does not vote.
impl Service<http::Request<Body>> for Silent {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match &*method {
                "Handshake" => {
                    let answer =
                        |_: Request<HandshakeRequest>| std::future::ready(this.handshake());
                    let mut grpc = Grpc::new(ProstCodec::default());
                    grpc.unary(service_fn(answer), request).await
                }
                "Append" => {
                    let answer = |request| std::future::ready(this.append(request));
                    let mut grpc = Grpc::new(ProstCodec::default());
                    grpc.streaming(service_fn(answer), request).await
                }
                "InstallSnapshot" => {
                    let answer = |request| {
                        std::future::ready(Ok::<_, Status>(this.install_snapshot(request)))
                    };
                    let mut grpc = Grpc::new(ProstCodec::default());
                    grpc.streaming(service_fn(answer), request).await
                }
                _ => Status::unimplemented("the test does not play this").into_http(),
            })
        }
        .boxed()
    }
}

/// The follower has received all of a snapshot and never reports the result, while its connection
/// stays open. The leader retries, and does not send the bytes a second time, as the follower still
/// has them.
#[tokio::test(flavor = "multi_thread")]
async fn follower_that_falls_silent_over_a_snapshot_is_tried_again() {
    const STALL: Duration = Duration::from_secs(1);
    let flags = ["--snapshot-entries=100", "--keep-entries=0", "--snapshot-stall=1s"];
    let setup = Setup { flags: flags.map(str::to_owned).into(), ..Setup::default() };
    let mut cluster = Cluster::prepared(setup);
    let component_id = conclave_types::ComponentId::of(conclave_cli::DEFAULT_MACHINE).0.to_vec();
    let (attempts, mut attempted) = mpsc::unbounded_channel();
    let answers = Arc::<AtomicBool>::default();
    let silent = Silent {
        component_id: component_id.into(),
        answers: answers.clone(),
        attempts,
        received: Arc::default(),
    };
    let listener = tokio::net::TcpListener::bind(&cluster.node(3).peer).await.unwrap();
    let serving =
        Server::builder().add_service(silent).serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(serving);
    cluster.start_node(1);
    cluster.start_node(2);
    cluster.serving().await;
    let client = cluster.client();
    for number in 0..400 {
        put(&client, &format!("key/{number}"), "text").await.unwrap();
    }
    eventually("both nodes have purged", async || {
        let status = client.status().await.map_err(|error| error.to_string())?;
        let purged = status.nodes.iter().filter(|node| node.purged > 200).count();
        if purged == 2 { Ok(()) } else { Err(format!("{:?}", status.nodes)) }
    })
    .await;
    answers.store(true, Ordering::Relaxed);
    let mut next =
        async || tokio::time::timeout(PATIENCE, attempted.recv()).await.unwrap().unwrap();
    let (began_at, sent, first) = next().await;
    assert!(began_at == 0 && sent > 0);
    let (began_at, again, second) = next().await;
    assert_eq!((began_at, again), (sent, 0), "the follower has all of it");
    // The last call of a transfer may take longer than the others.
    assert!(second - first >= STALL, "{:?}", second - first);
    put(&client, "key", "text").await.unwrap();
    serving.abort();
}
