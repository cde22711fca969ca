//! Comparison of a router with the descriptor set that it serves.
//!
//! Decodes only the fields of a descriptor set that give the methods' names, kinds and messages.
//! The field numbers are those of google/protobuf/descriptor.proto, which never change.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use crate::{Machine, router, router::Messages};

const NO_SIDE_EFFECTS: i32 = 1;

#[derive(Message)]
struct FileDescriptorSet {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Message)]
struct File {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(string, repeated, tag = "3")]
    dependency: Vec<String>,
    #[prost(int32, repeated, packed = "false", tag = "10")]
    public_dependency: Vec<i32>,
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
    #[prost(string, tag = "2")]
    input_type: String,
    #[prost(string, tag = "3")]
    output_type: String,
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

/// A method of the descriptor set.
struct Described {
    kind: &'static str,
    /// The full names of the request and response messages.
    request: String,
    response: String,
}

/// Checks that every method of the descriptor set has a handler of the right kind, and that every
/// handler belongs to a method. A state machine without a router dispatches methods itself and
/// cannot be checked.
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
        match described.get(name).map(|described| described.kind) {
            Some(other) => assert_eq!(
                *kind, other,
                "{name} is a {other} according to the protobuf, but the router has it as a {kind}"
            ),
            None => panic!("the descriptor set has no method {name}, but the router handles it"),
        }
    }
    for name in described.keys() {
        assert!(handlers.contains_key(name), "{name} has no handler in the router");
    }
}

/// Checks that handlers use the messages of their methods. Methods without a description are skipped.
pub(crate) fn check_messages(descriptor_set: &[u8], handlers: &[Messages]) {
    let described = described(descriptor_set);
    for Messages { method, request, response } in handlers {
        let Some(described) = described.get(*method) else { continue };
        let response = response.as_ref().unwrap_or(&described.response);
        for (verb, wanted, given) in
            [("takes", &described.request, request), ("gives", &described.response, response)]
        {
            assert!(
                wanted == given || wanted.is_empty(),
                "{method} {verb} {wanted} according to the protobuf, but its handler {verb} {given}: register \
                 the handler of this method"
            );
        }
    }
}

fn described(descriptor_set: &[u8]) -> BTreeMap<String, Described> {
    let set = FileDescriptorSet::decode(descriptor_set)
        .unwrap_or_else(|error| panic!("the descriptor set does not decode: {error}"));
    let mut methods = BTreeMap::new();
    let own = own_files(&set);
    for file in set.file.iter().filter(|file| own.contains(file.name.as_str())) {
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
                // Full names in a descriptor set begin with a dot.
                let full_name = |name: &str| name.strip_prefix('.').unwrap_or(name).to_owned();
                let request = full_name(&method.input_type);
                let response = full_name(&method.output_type);
                methods.insert(name, Described { kind, request, response });
            }
        }
    }
    methods
}

/// Returns the files whose services the host serves. A descriptor set contains all imports. The
/// services of an imported file belong to the state machine only if the file is in the package of a
/// root file or below it, or if such a file imports it publicly. A root file is one that no other
/// file imports.
fn own_files(set: &FileDescriptorSet) -> BTreeSet<&str> {
    let imported: BTreeSet<&str> =
        set.file.iter().flat_map(|file| file.dependency.iter().map(String::as_str)).collect();
    let roots = set.file.iter().filter(|file| !imported.contains(file.name.as_str()));
    let packages: BTreeSet<&str> = roots.clone().map(|file| file.package.as_str()).collect();
    let lies_in = |package: &str, outer: &&str| {
        let inside = package.strip_prefix(*outer);
        inside.is_some_and(|rest| rest.is_empty() || (!outer.is_empty() && rest.starts_with('.')))
    };
    let inside =
        set.file.iter().filter(|file| packages.iter().any(|outer| lies_in(&file.package, outer)));
    let mut queue: Vec<&File> = roots.chain(inside).collect();
    let mut own = BTreeSet::new();
    while let Some(file) = queue.pop() {
        if !own.insert(file.name.as_str()) {
            continue;
        }
        for at in &file.public_dependency {
            let name = usize::try_from(*at).ok().and_then(|at| file.dependency.get(at));
            queue.extend(
                set.file.iter().filter(|other| name.is_some_and(|name| *name == other.name)),
            );
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, package: &str, dependency: &[&str], public_dependency: &[i32]) -> File {
        let method = Method { name: "Do".to_owned(), ..Method::default() };
        let service = Service { name: "S".to_owned(), method: vec![method] };
        File {
            name: name.to_owned(),
            package: package.to_owned(),
            dependency: dependency.iter().map(|&name| name.to_owned()).collect(),
            public_dependency: public_dependency.to_vec(),
            service: vec![service],
        }
    }

    #[test]
    fn services_of_imports_need_no_handler() {
        let file = vec![
            file("long.proto", "google.longrunning", &[], &[]),
            file("public.proto", "other.v1", &[], &[]),
            file("admin.proto", "app.v1.admin", &[], &[]),
            file("app.proto", "app.v1", &["long.proto", "public.proto", "admin.proto"], &[1]),
        ];
        let described = described(&FileDescriptorSet { file }.encode_to_vec());
        let names: Vec<_> = described.keys().map(String::as_str).collect();
        assert_eq!(names, ["app.v1.S/Do", "app.v1.admin.S/Do", "other.v1.S/Do"]);
    }
}
