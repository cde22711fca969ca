//! Goal: a backup is streamed to its end, at most as many at a time as the limit, and a component is
//! sent in parts.

use bytes::Bytes;
use conclave_api::Options;
use conclave_proto::cluster as wire;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::{Code, Request, Status, Streaming};

use crate::{
    fake::{Node, Raw, metadata},
    fake_components::COMPONENT,
};

async fn begin(
    node: &Node,
    request: &wire::CreateBackupRequest,
) -> Result<Streaming<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(node.channel().await);
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/conclave.cluster.v1.Cluster/CreateBackup");
    let request = Request::new(Bytes::from(request.encode_to_vec()));
    let response = client.server_streaming(request, path, Raw).await?;
    assert_eq!(metadata(response.metadata(), "conclave-index"), Some("11"));
    Ok(response.into_inner())
}

async fn part(stream: &mut Streaming<Bytes>) -> Option<wire::backup_part::Part> {
    let message = stream.message().await.unwrap()?;
    wire::BackupPart::decode(message).unwrap().part
}

#[tokio::test]
async fn backup_is_streamed_to_its_end() {
    let node = Node::start().await;
    let mut stream = begin(&node, &wire::CreateBackupRequest::default()).await.unwrap();
    for bytes in [100, 1 << 20] {
        let Some(wire::backup_part::Part::Bytes(found)) = part(&mut stream).await else {
            panic!("there are no bytes")
        };
        assert_eq!(found.len(), bytes);
    }
    let Some(wire::backup_part::Part::End(end)) = part(&mut stream).await else {
        panic!("there is no end")
    };
    assert_eq!((end.bytes, &end.blake3[..]), (100 + (1 << 20), &[3; 32][..]));
    assert_eq!(part(&mut stream).await, None);
}

#[tokio::test]
async fn backups_have_a_limit_and_keys_a_length() {
    let node = Node::with(Options { backups_max: 1, ..Options::default() }).await;
    let key = wire::WrappingKey { key: vec![1; 32].into(), ..wire::WrappingKey::default() };
    let request = wire::CreateBackupRequest { key: Some(key) };
    let first = begin(&node, &request).await.unwrap();
    let status = begin(&node, &request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    drop(first);
    let key = wire::WrappingKey { key: b"short"[..].into(), ..wire::WrappingKey::default() };
    let request = wire::CreateBackupRequest { key: Some(key) };
    let status = loop {
        // The node learns of the end of the first stream a moment later.
        match begin(&node, &request).await.unwrap_err() {
            status if status.code() == Code::Unavailable => tokio::task::yield_now().await,
            status => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("32 bytes, not 5"), "{status}");
}

#[tokio::test]
async fn component_is_pulled_in_parts() {
    const PULL: &str = "/conclave.cluster.v1.Cluster/PullComponent";
    let node = Node::start().await;
    let pull = async |component: String, at| {
        let request = wire::PullComponentRequest { component, at }.encode_to_vec();
        let answer = node.call(PULL, &request).await?;
        Ok::<_, Status>(wire::PullComponentResponse::decode(answer.into_inner()).unwrap())
    };
    let id = COMPONENT.to_string();
    let mut received = 0;
    while received < 1_500_000 {
        let part = pull(id.clone(), received).await.unwrap();
        assert_eq!((&part.component[..], part.total_bytes), (&COMPONENT.0[..], 1_500_000));
        assert!(!part.bytes.is_empty() && part.bytes.len() <= 1 << 20);
        received += part.bytes.len() as u64;
    }
    assert!(pull(id.clone(), received).await.unwrap().bytes.is_empty());
    let status = pull(id, received + 1).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}
