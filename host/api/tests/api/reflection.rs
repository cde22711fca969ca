//! Goal: both versions of reflection list the services of the host and of the component, and
//! all their symbols.

use std::sync::Arc;

use conclave_api::MethodKind;
use prost::Message;
use tonic::Code;
use tonic_reflection::pb::{
    v1::{self, ExtensionRequest},
    v1alpha,
};

use crate::{
    fake::{Node, counter, machine},
    protos::EXTENDED,
};

const HOST: [&str; 5] = [
    "conclave.cluster.v1.Cluster",
    "conclave.machine.v1.Machine",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Sends requests on one stream. A result is a list of services, files or numbers, or the code of an error.
macro_rules! ask {
    ($version:ident, $node:expr, [$($request:expr),+ $(,)?]) => {{
        #[allow(unused_imports, reason = "some of them are named by the requests")]
        use $version::{
            ServerReflectionRequest,
            server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest::{self, *},
            server_reflection_response::MessageResponse,
        };
        let requests: Vec<MessageRequest> = vec![$($request),+];
        let count = requests.len();
        let mut client = ServerReflectionClient::new($node.channel().await);
        let stream = tokio_stream::iter(requests.into_iter().map(|request| {
            ServerReflectionRequest { host: "h".to_owned(), message_request: Some(request) }
        }));
        let mut stream = client.server_reflection_info(stream).await.unwrap().into_inner();
        let mut answers = Vec::new();
        while let Some(answer) = stream.message().await.unwrap() {
            assert_eq!((&*answer.valid_host, answer.original_request.is_some()), ("h", true));
            answers.push(match answer.message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    list.service.into_iter().map(|service| service.name).collect()
                }
                MessageResponse::FileDescriptorResponse(files) => {
                    files.file_descriptor_proto.iter().map(|file| file_name(file)).collect()
                }
                MessageResponse::AllExtensionNumbersResponse(numbers) => {
                    numbers.extension_number.iter().map(ToString::to_string).collect()
                }
                MessageResponse::ErrorResponse(error) => {
                    vec![format!("{:?}", Code::from_i32(error.error_code))]
                }
            });
        }
        assert_eq!(answers.len(), count);
        let answers: Vec<Vec<String>> = answers;
        answers
    }};
}

fn file_name(file: &[u8]) -> String {
    prost_types::FileDescriptorProto::decode(file).unwrap().name().to_owned()
}

fn with_host(machine: &str) -> Vec<String> {
    let mut names: Vec<_> = HOST.into_iter().chain([machine]).map(str::to_owned).collect();
    names.sort();
    names
}

#[tokio::test]
async fn both_versions_list_and_describe_and_follow_the_machine() {
    let node = Node::start().await;
    assert_eq!(ask!(v1, node, [ListServices(String::new())]), [with_host("kv.v1.KV")]);
    assert_eq!(ask!(v1alpha, node, [ListServices(String::new())]), [with_host("kv.v1.KV")]);
    for (symbol, file) in [
        ("kv.v1.KV", "kv/v1/kv.proto"),
        ("kv.v1.KV.Put", "kv/v1/kv.proto"),
        ("kv.v1.PutRequest", "kv/v1/kv.proto"),
        ("conclave.machine.v1.Machine", "conclave/machine/v1/machine.proto"),
        ("conclave.cluster.v1.Cluster", "conclave/cluster/v1/cluster.proto"),
        ("grpc.health.v1.Health", "grpc/health/v1/health.proto"),
        ("grpc.health.v1.HealthCheckResponse.SERVING", "grpc/health/v1/health.proto"),
        ("grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"),
        ("grpc.reflection.v1alpha.ServerReflection", "grpc/reflection/v1alpha/reflection.proto"),
    ] {
        let files = ask!(
            v1,
            node,
            [FileContainingSymbol(symbol.to_owned()), FileByFilename(file.to_owned())]
        );
        assert_eq!(files, [[file], [file]], "{symbol}");
        let files = ask!(v1alpha, node, [FileContainingSymbol(symbol.to_owned())]);
        assert_eq!(files, [[file]], "{symbol}");
    }

    node.api.set_machine(Arc::new(counter())).unwrap();
    assert_eq!(ask!(v1, node, [ListServices(String::new())]), [with_host("counter.v1.Counter")]);
}

/// Regression: an unknown name ended the stream, and later requests on it were lost.
#[tokio::test]
async fn an_unknown_name_is_an_answer_and_the_stream_continues() {
    let node = Node::start().await;
    let extension =
        ExtensionRequest { containing_type: "kv.v1.PutRequest".to_owned(), extension_number: 9 };
    let answers = ask!(
        v1,
        node,
        [
            FileContainingSymbol("kv.v1.Nothing".to_owned()),
            FileByFilename("nothing.proto".to_owned()),
            FileContainingExtension(extension),
            AllExtensionNumbersOfType("kv.v1.Nothing".to_owned()),
            AllExtensionNumbersOfType("kv.v1.PutRequest".to_owned()),
            FileContainingSymbol("kv.v1.KV".to_owned()),
        ]
    );
    let none: [&str; 0] = [];
    assert_eq!(answers[..4], [["NotFound"], ["NotFound"], ["NotFound"], ["NotFound"]]);
    assert_eq!(answers[4], none);
    assert_eq!(answers[5], ["kv/v1/kv.proto"]);
}

/// Regression: a component with a file `health.proto`, tonic's name for the host's file, could be
/// neither described nor called.
#[tokio::test]
async fn files_with_any_name_and_all_kinds_of_symbols_are_found() {
    let node = Node::start().await;
    let methods = [("ext.v1.Ext/Do", MethodKind::Command)];
    for name in ["health.proto", "reflection_v1.proto", "kv.proto"] {
        node.api.set_machine(Arc::new(machine(name, EXTENDED, &methods))).unwrap();
        for symbol in [
            "ext.v1.Ext",
            "ext.v1.Ext.Do",
            "ext.v1.Base",
            "ext.v1.Base.Kind",
            "ext.v1.Base.PUT",
            "ext.v1.Base.Kind.PUT",
            "ext.v1.TOP",
            "ext.v1.note",
            "ext.v1.Holder.inner",
            "ext.v1.Holder.text",
            "ext.v1.Holder.choice",
            ".ext.v1.Holder",
        ] {
            let files = ask!(v1, node, [FileContainingSymbol(symbol.to_owned())]);
            assert_eq!(files, [[name]], "{symbol}");
        }
        let extension = |number| ExtensionRequest {
            containing_type: "ext.v1.Base".to_owned(),
            extension_number: number,
        };
        let files = ask!(
            v1,
            node,
            [
                FileContainingExtension(extension(100)),
                FileContainingExtension(extension(101)),
                AllExtensionNumbersOfType("ext.v1.Base".to_owned()),
                FileContainingSymbol("grpc.health.v1.Health".to_owned()),
            ]
        );
        assert_eq!(files[..2], [[name], [name]]);
        assert_eq!(files[2], ["100", "101"]);
        assert_eq!(files[3], ["grpc/health/v1/health.proto"]);
    }
    // The file has the name of a host's file, so the host's file is served.
    let shadow = machine("grpc/health/v1/health.proto", EXTENDED, &methods);
    node.api.set_machine(Arc::new(shadow)).unwrap();
    let answers = ask!(
        v1,
        node,
        [
            FileByFilename("grpc/health/v1/health.proto".to_owned()),
            FileContainingSymbol("grpc.health.v1.Health".to_owned()),
            FileContainingSymbol("ext.v1.Ext".to_owned()),
        ]
    );
    let health = ["grpc/health/v1/health.proto"];
    assert_eq!(answers, [health, health, ["NotFound"]]);
}

#[tokio::test]
async fn a_stream_ends_at_its_deadline_and_when_the_node_stops() {
    let mut node = Node::start().await;
    let ask = async |timeout: Option<&'static str>| {
        let mut client =
            v1::server_reflection_client::ServerReflectionClient::new(node.channel().await);
        let mut request = tonic::Request::new(tokio_stream::pending());
        if let Some(timeout) = timeout {
            request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        client.server_reflection_info(request).await.unwrap().into_inner()
    };
    let ended = ask(Some("50m")).await.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    let mut stream = ask(None).await;
    node.stop.take();
    assert!(stream.message().await.unwrap().is_none());
}
