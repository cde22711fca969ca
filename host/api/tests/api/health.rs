//! Goal: the health service reports the replica's health immediately, and its streams end when
//! the node stops.

use std::{sync::Arc, time::Duration};

use conclave_types::status::{Health, NotServing};
use tokio::time::timeout;
use tonic::{Code, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::fake::{Node, counter};

async fn next(watch: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let next = timeout(Duration::from_secs(5), watch.message()).await.expect("no change in time");
    next.unwrap().map(|answer| answer.status())
}

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn checks_and_watches_follow_the_replica() {
    let node = Node::start().await;
    let mut client = HealthClient::new(node.channel().await);
    let mut watch = client.watch(request("kv.v1.KV")).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await, Some(ServingStatus::Serving));
    for service in [
        "",
        "kv.v1.KV",
        "conclave.machine.v1.Machine",
        "conclave.cluster.v1.Cluster",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        let answer = client.check(request(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = client.check(request("unknown.v1.Unknown")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    node.fake.health.send_replace(Health::NotServing(NotServing::NoLeader));
    assert_eq!(next(&mut watch).await, Some(ServingStatus::NotServing));
    let answer = client.check(request("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);

    // Another reason is not a change of the status.
    node.fake.health.send_replace(Health::NotServing(NotServing::NoMajority));
    node.fake.health.send_replace(Health::Serving);
    assert_eq!(next(&mut watch).await, Some(ServingStatus::Serving));
}

#[tokio::test]
async fn a_watch_follows_the_machine() {
    let node = Node::start().await;
    let mut client = HealthClient::new(node.channel().await);
    let mut kv = client.watch(request("kv.v1.KV")).await.unwrap().into_inner();
    let mut counters = client.watch(request("counter.v1.Counter")).await.unwrap().into_inner();
    assert_eq!(next(&mut kv).await, Some(ServingStatus::Serving));
    assert_eq!(next(&mut counters).await, Some(ServingStatus::ServiceUnknown));
    node.api.set_machine(Arc::new(counter())).unwrap();
    assert_eq!(next(&mut kv).await, Some(ServingStatus::ServiceUnknown));
    assert_eq!(next(&mut counters).await, Some(ServingStatus::Serving));
}

#[tokio::test]
async fn a_watch_ends_at_its_deadline() {
    let node = Node::start().await;
    let mut client = HealthClient::new(node.channel().await);
    let mut watching = tonic::Request::new(request(""));
    watching.metadata_mut().insert("grpc-timeout", "100m".parse().unwrap());
    let mut watch = client.watch(watching).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await, Some(ServingStatus::Serving));
    let ended = timeout(Duration::from_secs(5), watch.message())
        .await
        .expect("the watch continues past its deadline");
    assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
}

/// Fills all slots with other calls.
#[tokio::test]
async fn a_busy_node_answers_checks() {
    let options = conclave_api::Options { calls_in_flight_max: 2, ..Default::default() };
    let node = Node::with(options).await;
    node.script(crate::fake::Script::Hang);
    let channel = node.channel().await;
    let mut hanging = Vec::new();
    for _ in 0..4 {
        let put = tonic::Request::new(bytes::Bytes::from_static(crate::fake::PUT));
        let put = crate::fake::call(channel.clone(), "/kv.v1.KV/Put", put);
        hanging.push(tokio::spawn(put));
    }
    while !hanging.iter().any(|put| put.is_finished()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut client = HealthClient::new(channel);
    let answer = client.check(request("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
}

#[tokio::test]
async fn a_watch_ends_when_the_node_stops() {
    let mut node = Node::start().await;
    let mut client = HealthClient::new(node.channel().await);
    let mut watch = client.watch(request("")).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await, Some(ServingStatus::Serving));
    node.stop.take();
    assert_eq!(next(&mut watch).await, Some(ServingStatus::NotServing));
    assert_eq!(next(&mut watch).await, None);
    let served = node.served.take().unwrap();
    timeout(Duration::from_secs(2), served).await.expect("the port lingers").unwrap();
}
