//! Goal: reflection, both versions, shows the host's services and the machine's.

use std::sync::Arc;

use prost::Message;
use tonic_reflection::pb::{v1, v1alpha};

use crate::fake::{Node, counter};

const HOST: [&str; 5] = [
    "conclave.cluster.v1.Cluster",
    "conclave.machine.v1.Machine",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

macro_rules! ask {
    ($version:ident, $node:expr, $request:expr) => {{
        #[allow(unused_imports, reason = "one of them is named by the request")]
        use MessageRequest::{FileContainingSymbol, ListServices};
        use $version::{
            server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new($node.channel().await);
        let request = $version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some($request),
        };
        let stream = tokio_stream::once(request);
        let mut answers = client.server_reflection_info(stream).await.unwrap().into_inner();
        match answers.message().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|service| service.name).collect()
            }
            MessageResponse::FileDescriptorResponse(files) => files
                .file_descriptor_proto
                .iter()
                .map(|file| {
                    let file = prost_types::FileDescriptorProto::decode(file.as_slice()).unwrap();
                    file.name().to_owned()
                })
                .collect(),
            other => vec![format!("{other:?}")],
        }
    }};
}

fn with_host(machine: &str) -> Vec<String> {
    let mut names: Vec<_> = HOST.into_iter().chain([machine]).map(str::to_owned).collect();
    names.sort();
    names
}

#[tokio::test]
async fn both_versions_list_and_describe_and_follow_the_machine() {
    let node = Node::start().await;
    let names: Vec<String> = ask!(v1, node, ListServices(String::new()));
    assert_eq!(names, with_host("kv.v1.KV"));
    let names: Vec<String> = ask!(v1alpha, node, ListServices(String::new()));
    assert_eq!(names, with_host("kv.v1.KV"));
    for (symbol, file) in [
        ("kv.v1.KV", "kv/v1/kv.proto"),
        ("kv.v1.PutRequest", "kv/v1/kv.proto"),
        ("conclave.machine.v1.Machine", "conclave/machine/v1/machine.proto"),
        ("conclave.cluster.v1.Cluster", "conclave/cluster/v1/cluster.proto"),
    ] {
        let files: Vec<String> = ask!(v1, node, FileContainingSymbol(symbol.to_owned()));
        assert_eq!(files, [file]);
        let files: Vec<String> = ask!(v1alpha, node, FileContainingSymbol(symbol.to_owned()));
        assert_eq!(files, [file]);
    }
    for symbol in HOST {
        let files: Vec<String> = ask!(v1, node, FileContainingSymbol(symbol.to_owned()));
        assert!(files[0].ends_with(".proto"), "{files:?}");
    }

    node.api.set_machine(Arc::new(counter())).unwrap();
    let names: Vec<String> = ask!(v1, node, ListServices(String::new()));
    assert_eq!(names, with_host("counter.v1.Counter"));
}
