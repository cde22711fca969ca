//! The limits of the peer port: strangers' messages, members' messages, and snapshots.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use conclave_proto::raft::{
    AppendRequest, Entry, LogId, PingRequest, SnapshotPart, SnapshotStart, Vote,
    snapshot_part::Part, snapshot_progress::Progress,
};
use futures::{StreamExt, future::join_all, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    full_disk::SmallDisk,
    harness::{Cluster, PATIENCE, eventually, files, get, put},
    peers::{Pretender, header_with},
};

const MIB: usize = 1 << 20;
const MESSAGE_BYTES: usize = 64 * MIB;

/// Sends a vote request of 64 MiB without its last byte, with the metadata of a member of another
/// cluster. Returns the number of bytes sent when the call ends.
async fn send_large_message(address: &str) -> usize {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut first = vec![7; MIB];
    first[0] = 0;
    first[1..5].copy_from_slice(&(MESSAGE_BYTES as u32 - 4).to_be_bytes());
    let rest = vec![7; MIB];
    let pieces = std::iter::once(first).chain(std::iter::repeat_n(rest, MESSAGE_BYTES / MIB - 1));
    let sent = Arc::<AtomicUsize>::default();
    let count = sent.clone();
    let frames = pieces.map(move |piece| {
        count.fetch_add(piece.len(), Ordering::Relaxed);
        Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from(piece)))
    });
    let body = StreamBody::new(stream::iter(frames).chain(stream::pending()));
    let request = http::Request::post("http://x/conclave.raft.v1.Raft/Vote")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("conclave-cluster", "other")
        .header("conclave-from", "2")
        .header("conclave-to", "1")
        .body(BodyExt::boxed_unsync(body))
        .unwrap();
    let answer = timeout(Duration::from_secs(10), client.send_request(request)).await;
    // The node may close the connection before its response is read.
    if let Ok(answer) = answer.expect("the node waits for the rest of the message") {
        assert_eq!(answer.headers()["grpc-status"], (Code::PermissionDenied as i32).to_string());
    }
    sent.load(Ordering::Relaxed)
}

/// Goal: the messages of strangers take no memory. Method: they send large messages without the
/// last byte, which a node that reads them holds.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_messages_are_not_read() {
    let cluster = Cluster::start().await;
    put(&cluster.client(), "key", "before").await.unwrap();
    let resident = || cluster.metric(1, "process_resident_memory_bytes").unwrap();
    let before = resident();
    let sent = join_all((0..8).map(|_| send_large_message(&cluster.node(1).peer))).await;
    let grown = resident() - before;
    eprintln!("sent {sent:?}, the node grew by {grown} bytes");
    assert!(sent.iter().all(|sent| *sent <= 16 * MIB), "{sent:?}");
    assert!(grown < (64 * MIB) as f64, "the node grew by {grown} bytes");
    put(&cluster.client(), "key", "after").await.unwrap();
}

/// Only appends have large messages. A connection is admitted by its own handshake.
#[tokio::test(flavor = "multi_thread")]
async fn each_connection_and_each_method_has_its_own_limit() {
    let cluster = Cluster::start().await;
    let mut member = Pretender::member(&cluster, 2, 1).await;
    member.client.ping(PingRequest {}).await.unwrap();
    let mut other = Pretender::connect(&cluster, 1).await;
    let mut request = tonic::Request::new(PingRequest {});
    request.metadata_mut().insert("conclave-cluster", "test".parse().unwrap());
    request.metadata_mut().insert("conclave-from", "2".parse().unwrap());
    request.metadata_mut().insert("conclave-to", "1".parse().unwrap());
    let refused = other.ping(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    let entry = Entry { log_id: Some(LogId { term: 100, index: 1_000_000 }), payload: None };
    let large = AppendRequest {
        vote: Some(Vote { term: 100, node_id: 2, committed: true }),
        entries: vec![entry; 20_000],
        ..AppendRequest::default()
    };
    let refused = member.client.heartbeat(large).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    member.client.ping(PingRequest {}).await.unwrap();
}

/// Returns the first part of a snapshot that announces so many bytes.
fn start(cluster: &Cluster, bytes: u64) -> Part {
    let vote = Some(Vote { term: 100, node_id: 2, committed: true });
    let header = Some(header_with(cluster, conclave_cli::DEFAULT_MACHINE));
    Part::Start(SnapshotStart { vote, header, bytes, ..SnapshotStart::default() })
}

fn chunk() -> Part {
    Part::Chunk(vec![7; MIB].into())
}

async fn nothing_is_left(snapshots: &std::path::Path, own: &[PathBuf]) {
    eventually("nothing is left of it", async || {
        let found = files(snapshots);
        if found == own { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_without_an_end_is_refused() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "key", "before").await.unwrap();
    cluster.client_of(1).snapshot().await.unwrap();
    let snapshots = cluster.node(1).data_dir.join("snapshots");
    let own = files(&snapshots);
    let mut pretender = Pretender::member(&cluster, 2, 1).await;

    let mut parts = vec![start(&cluster, 3 * MIB as u64), Part::Offset(0)];
    parts.extend((0..200).map(|_| chunk()));
    let refused = pretender.install(parts).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("more than the 3145728 bytes"), "{refused}");
    nothing_is_left(&snapshots, &own).await;

    // Larger than any state of the cluster, before a byte of it is sent.
    let refused = pretender.install(vec![start(&cluster, 1 << 40)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("memory_bytes_max"), "{refused}");
    nothing_is_left(&snapshots, &own).await;

    cluster.assert_running(1);
    put(&client, "key", "after").await.unwrap();
    assert_eq!(get(&cluster.client_of(1), "key").await.unwrap(), "after");
}

/// Sends the parts of a snapshot until the node refuses one. Fills the disk once the node has
/// received the first chunk.
async fn install_while_the_disk_fills(
    pretender: &mut Pretender,
    start: Part,
    disk: &SmallDisk,
) -> Status {
    let (parts, stream) = mpsc::channel(1);
    let part = |part| SnapshotPart { part: Some(part) };
    let feeding = async {
        for first in [start, Part::Offset(0), chunk()] {
            parts.send(part(first)).await.unwrap();
        }
    };
    let call = pretender.client.install_snapshot(ReceiverStream::new(stream));
    let (call, ()) = tokio::join!(call, feeding);
    let mut answers = call.unwrap().into_inner();
    loop {
        match answers.message().await {
            Ok(Some(answer)) if matches!(answer.progress, Some(Progress::Work(work)) if work > 0) =>
            {
                break;
            }
            Ok(Some(_)) => {}
            other => panic!("the first chunk was refused: {other:?}"),
        }
    }
    disk.fill();
    parts.send(part(chunk())).await.unwrap();
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the response stream ended"),
            Err(status) => return status,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_does_not_fit_on_the_disk_is_refused() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "key", "before").await.unwrap();
    cluster.stop(1);
    let snapshots = cluster.node(1).data_dir.join("snapshots");
    let Some(disk) = SmallDisk::mount(&snapshots, 48 * MIB) else { return };
    cluster.start_node(1);
    cluster.caught_up(&[1, 2, 3]).await;
    let mut pretender = Pretender::member(&cluster, 2, 1).await;

    let refused = pretender.install(vec![start(&cluster, 40 * MIB as u64)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("too little free space"), "{refused}");
    nothing_is_left(&snapshots, &[]).await;

    let start = start(&cluster, 10 * MIB as u64);
    let filling = install_while_the_disk_fills(&mut pretender, start, &disk);
    let refused = timeout(PATIENCE, filling).await.unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    disk.make_room();
    nothing_is_left(&snapshots, &[]).await;

    cluster.assert_running(1);
    put(&client, "key", "after").await.unwrap();
    timeout(PATIENCE, cluster.caught_up(&[1, 2, 3])).await.unwrap();
    cluster.kill(1);
}
