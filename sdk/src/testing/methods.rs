//! A router against the descriptor set that it serves.
//!
//! Of a descriptor set the few fields are read that name methods and say their kind: the numbers are
//! those of google/protobuf/descriptor.proto, which never change.

use std::collections::BTreeMap;

use prost::Message;

use crate::{Machine, router};

const NO_SIDE_EFFECTS: i32 = 1;

#[derive(Message)]
struct FileDescriptorSet {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
}

#[derive(Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Method>,
}

#[derive(Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "4")]
    options: Option<Options>,
    #[prost(bool, tag = "6")]
    server_streaming: bool,
}

#[derive(Message)]
struct Options {
    #[prost(int32, tag = "34")]
    idempotency_level: i32,
}

/// Every method of the descriptor set has a handler of its kind, and every handler a method. A
/// machine without a router answers by itself, so nothing can be said of it.
pub fn check_methods<M: Machine>() {
    let router = router::of::<M>();
    let commands = router.commands().map(|name| (name.to_owned(), "command"));
    let queries = router.queries().map(|name| (name.to_owned(), "query"));
    let subscriptions = router.subscriptions().map(|name| (name.to_owned(), "subscription"));
    let handlers: BTreeMap<String, &str> = commands.chain(queries).chain(subscriptions).collect();
    if handlers.is_empty() || M::descriptor_set().is_empty() {
        return;
    }
    let described = described(M::descriptor_set());
    for (name, kind) in &handlers {
        match described.get(name) {
            Some(other) => assert_eq!(
                kind, other,
                "{name} is a {other}, as the protobuf has it, and has the handler of a {kind}"
            ),
            None => panic!("the descriptor set has no method {name}, which the router handles"),
        }
    }
    for name in described.keys() {
        assert!(handlers.contains_key(name), "{name} has no handler in the router");
    }
}

fn described(descriptor_set: &[u8]) -> BTreeMap<String, &'static str> {
    let set = FileDescriptorSet::decode(descriptor_set)
        .unwrap_or_else(|error| panic!("the descriptor set does not decode: {error}"));
    let mut methods = BTreeMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let name = match file.package.as_str() {
                    "" => format!("{}/{}", service.name, method.name),
                    package => format!("{package}.{}/{}", service.name, method.name),
                };
                let level = method.options.as_ref().map_or(0, |options| options.idempotency_level);
                let kind = match (method.server_streaming, level) {
                    (true, _) => "subscription",
                    (false, NO_SIDE_EFFECTS) => "query",
                    (false, _) => "command",
                };
                methods.insert(name, kind);
            }
        }
    }
    methods
}
