//! Goal: calls with JSON work through reflection. The server supports only v1alpha, so every test
//! covers the fallback.

use std::time::Duration;

use bytes::Bytes;
use conclave_client::{Client, Code, MethodKind};
use serde_json::json;
use tonic::Response;

use crate::fake::{Node, node};

async fn echo() -> (Node, Client) {
    let node = node(|call| Ok(Response::new(Bytes::clone(&call.message))));
    let client = Client::builder()
        .endpoints([&node.address])
        .deadline(Duration::from_secs(3))
        .build()
        .unwrap();
    (node, client)
}

#[tokio::test]
async fn json_goes_there_and_back() {
    let (_node, client) = echo().await;
    for spelling in ["test.v1.Echo/Say", "/test.v1.Echo/Say", "test.v1.Echo.Say"] {
        let answer = client.call_json(spelling, json!({"long_text": "grüße"})).await.unwrap();
        assert_eq!(answer, json!({"longText": "grüße"}));
    }
}

#[tokio::test]
async fn an_unknown_method_lists_the_known_ones() {
    let (_node, client) = echo().await;
    let error = client.call_json("test.v1.Echo/Shout", json!({})).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    let text = error.to_string();
    assert!(text.contains("test.v1.Echo/Say, test.v1.Echo/Ask"), "{text}");
}

#[tokio::test]
async fn a_field_that_is_not_there_is_refused_with_those_that_are() {
    let (node, client) = echo().await;
    let error = client.call_json("test.v1.Echo/Say", json!({"txt": ""})).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.to_string().contains("longText"), "{error}");
    assert_eq!(node.calls(), 0);
}

#[tokio::test]
async fn methods_say_what_they_do() {
    let (_node, client) = echo().await;
    let methods = client.methods().await.unwrap();
    let kinds: Vec<_> = methods.iter().map(|method| (method.name(), method.kind())).collect();
    assert_eq!(
        kinds,
        [
            ("test.v1.Echo/Say".to_owned(), MethodKind::Command),
            ("test.v1.Echo/Ask".to_owned(), MethodKind::Query),
        ]
    );
    assert_eq!(methods[0].request().full_name(), "test.v1.Text");
}
