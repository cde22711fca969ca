//! Compares the services of two state machines and lists the changes that clients would notice.
//!
//! The measure is the wire format: a client that was built for the old descriptor set calls the new
//! state machine. The opposite direction is not covered.
//!
//! These changes are breaking:
//! - A method is gone or streams differently.
//! - A field's bytes would be decoded as something else.
//! - A field or value is gone without its number being reserved. The data that clients send in it
//!   would be dropped silently.
//!
//! These are buf's rules of the category WIRE. Names of messages, fields and packages of messages are not
//! part of the wire format. Changes that only people and JSON clients see are listed as not breaking.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{
    Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    MethodDescriptor, prost_types::method_options::IdempotencyLevel,
};

use conclave_types::{components::Change, services};

/// The maximum number of changes in the list. Two unrelated state machines would give thousands.
pub const CHANGES_MAX: usize = 200;

/// Compares two serialized descriptor sets: that of the active state machine and that of its
/// successor. The breaking changes come first. A set that cannot be read counts as empty; no loaded
/// component has such a set.
pub fn compare(from: &[u8], to: &[u8]) -> Vec<Change> {
    let pool = |set: &[u8]| DescriptorPool::decode(set).unwrap_or_default();
    let (from, to) = (methods(&pool(from)), methods(&pool(to)));
    let mut comparison = Comparison::default();
    for (name, old) in &from {
        match to.get(name) {
            Some(new) => comparison.method(name, old, new),
            None => comparison.note(true, name, "is not served any more"),
        }
    }
    for name in to.keys().filter(|name| !from.contains_key(*name)) {
        comparison.note(false, name, "is new");
    }
    let mut changes = comparison.changes;
    changes.sort_by_key(|change| !change.breaking);
    changes.truncate(CHANGES_MAX);
    changes
}

fn methods(pool: &DescriptorPool) -> BTreeMap<String, MethodDescriptor> {
    let services = services::own(pool);
    let methods = services.iter().flat_map(|service| service.methods().collect::<Vec<_>>());
    let named = methods.map(|method| {
        (format!("{}/{}", method.parent_service().full_name(), method.name()), method)
    });
    named.collect()
}

fn is_query(method: &MethodDescriptor) -> bool {
    let proto = method.method_descriptor_proto();
    let level = proto.options.as_ref().map(|options| options.idempotency_level());
    level == Some(IdempotencyLevel::NoSideEffects)
}

#[derive(Default)]
struct Comparison {
    changes: Vec<Change>,
    /// The pairs of messages and enums that have been compared, by name.
    seen: BTreeSet<(String, String)>,
}

impl Comparison {
    fn note(&mut self, breaking: bool, subject: &str, text: impl Into<String>) {
        let (subject, text) = (subject.to_owned(), text.into());
        self.changes.push(Change { subject, text, breaking });
    }

    fn method(&mut self, name: &str, old: &MethodDescriptor, new: &MethodDescriptor) {
        match (old.is_server_streaming(), new.is_server_streaming()) {
            (false, true) => {
                self.note(true, name, "answers with a stream now, not with one message")
            }
            (true, false) => {
                self.note(true, name, "answers with one message now, not with a stream")
            }
            _ => {}
        }
        match (is_query(old), is_query(new)) {
            (true, false) => self.note(false, name, "is a command now: it goes through the log"),
            (false, true) => {
                self.note(false, name, "is a query now: it does not go through the log")
            }
            _ => {}
        }
        self.message(&old.input(), &new.input());
        self.message(&old.output(), &new.output());
    }

    fn message(&mut self, old: &MessageDescriptor, new: &MessageDescriptor) {
        if !self.seen.insert((old.full_name().to_owned(), new.full_name().to_owned())) {
            return;
        }
        if old.full_name() != new.full_name() {
            let text = format!("is called {} now", new.full_name());
            self.note(false, old.full_name(), text);
        }
        for field in old.fields() {
            match new.get_field(field.number()) {
                Some(now) => self.field(&field, &now),
                None => {
                    let reserved =
                        new.reserved_ranges().any(|range| range.contains(&field.number()));
                    let text = match reserved {
                        true => "is gone, and its number reserved",
                        false => {
                            "is gone, and its number is not reserved: what clients send in it \
                                  would be dropped"
                        }
                    };
                    self.note(!reserved, field.full_name(), text);
                }
            }
        }
        for field in new.fields().filter(|field| old.get_field(field.number()).is_none()) {
            let required = field.cardinality() == Cardinality::Required;
            let text = if required { "is new and required" } else { "is new" };
            self.note(required, field.full_name(), text);
        }
    }

    fn field(&mut self, old: &FieldDescriptor, new: &FieldDescriptor) {
        let name = old.full_name();
        if old.name() != new.name() {
            let text =
                format!("is called {} now, which clients that speak JSON notice", new.name());
            self.note(false, name, text);
        }
        match (old.is_list() || old.is_map(), new.is_list() || new.is_map()) {
            (false, true) => self.note(true, name, "is repeated now"),
            (true, false) => self.note(true, name, "is not repeated any more"),
            _ => {}
        }
        match (
            old.cardinality() == Cardinality::Required,
            new.cardinality() == Cardinality::Required,
        ) {
            (false, true) => self.note(true, name, "is required now"),
            (true, false) => self.note(true, name, "is not required any more"),
            _ => {}
        }
        let oneof = |field: &FieldDescriptor| {
            let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
            oneof.map(|oneof| oneof.name().to_owned())
        };
        if oneof(old).is_some() != oneof(new).is_some() {
            self.note(true, name, "was moved into or out of a oneof");
        }
        match (old.kind(), new.kind()) {
            (Kind::Message(old), Kind::Message(new)) => self.message(&old, &new),
            (Kind::Enum(old), Kind::Enum(new)) => self.values(&old, &new),
            (old, new) if old == new => {}
            (old, new) => {
                let breaking = encoding(&old) != encoding(&new);
                self.note(breaking, name, format!("has type {new:?} now, not {old:?}"));
            }
        }
    }

    fn values(&mut self, old: &EnumDescriptor, new: &EnumDescriptor) {
        if !self.seen.insert((old.full_name().to_owned(), new.full_name().to_owned())) {
            return;
        }
        for value in old.values() {
            if new.get_value(value.number()).is_none() {
                let reserved = new.reserved_ranges().any(|range| range.contains(&value.number()));
                let text = if reserved {
                    "is gone, and its number reserved"
                } else {
                    "is gone, and its number is not reserved"
                };
                self.note(!reserved, value.full_name(), text);
            }
        }
    }
}

/// Returns a number that is equal for kinds with the same encoding, which can be decoded as each
/// other. Text and bytes are encoded alike, but not all bytes are text, and a decoder rejects a
/// message whose string is not.
fn encoding(kind: &Kind) -> u8 {
    match kind {
        Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 | Kind::Bool | Kind::Enum(_) => 0,
        Kind::Sint32 | Kind::Sint64 => 1,
        Kind::Fixed32 | Kind::Sfixed32 => 2,
        Kind::Fixed64 | Kind::Sfixed64 => 3,
        Kind::Float => 4,
        Kind::Double => 5,
        Kind::String => 6,
        Kind::Bytes => 7,
        Kind::Message(_) => 8,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    struct Source(String);

    impl protox::file::FileResolver for Source {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            protox::file::File::from_source(name, &self.0)
        }
    }

    fn set(body: &str) -> Vec<u8> {
        let source = Source(format!("syntax = \"proto3\"; package t.v1; {body}"));
        let mut compiler = protox::Compiler::with_file_resolver(source);
        compiler.open_file("t.proto").unwrap();
        compiler.encode_file_descriptor_set()
    }

    const OLD: &str = "service S { rpc A(M) returns (M); rpc B(M) returns (N); } \
        message M { string a = 1; N n = 2; M next = 3; Colour colour = 4; map<string, int32> m = 5; } \
        message N { int32 x = 1; bytes b = 2; } enum Colour { NONE = 0; RED = 1; }";

    /// Returns `subject text` of each change against [`OLD`]. Breaking changes begin with an
    /// exclamation mark.
    fn changes(new: &str) -> Vec<String> {
        let changes = compare(&set(OLD), &set(new));
        let described = changes.iter().map(|change| {
            let mark = if change.breaking { "!" } else { "" };
            format!("{mark}{} {}", change.subject, change.text)
        });
        described.collect()
    }

    fn with(from: &str, to: &str) -> Vec<String> {
        assert!(OLD.contains(from), "{from}");
        changes(&OLD.replace(from, to))
    }

    #[test]
    fn the_same_and_what_only_adds_breaks_nothing() {
        assert!(changes(OLD).is_empty());
        let added = with("int32 x = 1;", "int32 x = 1; string y = 9;");
        assert_eq!(added, ["t.v1.N.y is new"]);
        let method = with("rpc A", "rpc C(N) returns (N); rpc A");
        assert_eq!(method, ["t.v1.S/C is new"]);
    }

    #[test]
    fn methods_that_go_or_stream_break() {
        assert_eq!(with("rpc A(M) returns (M);", ""), ["!t.v1.S/A is not served any more"]);
        let stream = with("rpc A(M) returns (M)", "rpc A(M) returns (stream M)");
        assert_eq!(stream, ["!t.v1.S/A answers with a stream now, not with one message"]);
        let query = with(
            "rpc A(M) returns (M);",
            "rpc A(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }",
        );
        assert_eq!(query, ["t.v1.S/A is a query now: it does not go through the log"]);
        let all = compare(&set(OLD), b"");
        assert_eq!((all.len(), all.iter().all(|change| change.breaking)), (2, true));
        assert!(compare(b"", &set(OLD)).iter().all(|change| !change.breaking));
    }

    #[test]
    fn fields_break_by_what_travels() {
        let breaking = |from: &str, to: &str| {
            let changes = with(from, to);
            assert_eq!(changes.len(), 1, "{changes:?}");
            changes[0].starts_with('!')
        };
        assert!(breaking("string a = 1;", "bytes a = 1;"), "not every bytes are text");
        assert!(breaking("int32 x = 1;", "string x = 1;"));
        assert!(breaking("int32 x = 1;", "sint32 x = 1;"), "zigzag reads as another number");
        assert!(breaking("int32 x = 1;", "repeated int32 x = 1;"));
        assert!(breaking("bytes b = 2;", ""));
        assert!(breaking("RED = 1;", ""));
        assert!(breaking("int32 x = 1;", "oneof o { int32 x = 1; }"));
        assert!(breaking("map<string, int32> m", "map<string, string> m"));
        assert!(!breaking("bytes b = 2;", "reserved 2;"));
        assert!(!breaking("RED = 1;", "reserved 1;"));
        assert!(!breaking("int32 x = 1;", "int64 x = 1;"));
        assert!(!breaking("int32 x = 1;", "int32 renamed = 1;"));
        assert!(with("int32 x = 1;", "optional int32 x = 1;").is_empty(), "a presence of its own");
    }

    #[test]
    fn messages_are_compared_wherever_they_are_and_once() {
        let renamed =
            OLD.replace("N n", "P n").replace("(N)", "(P)").replace("message N", "message P");
        assert_eq!(changes(&renamed), ["t.v1.N is called t.v1.P now"]);
        let deep = with("bytes b = 2;", "double b = 2;");
        assert_eq!(deep, ["!t.v1.N.b has type double now, not bytes"]);
    }

    #[test]
    fn breaking_changes_come_first_and_there_is_an_end() {
        let many: String = (0..500).map(|n| format!("rpc Z{n}(M) returns (M); ")).collect();
        let mixed = with("rpc A(M) returns (M);", &many);
        assert_eq!(mixed.len(), CHANGES_MAX);
        assert!(mixed[0].starts_with('!') && !mixed[1].starts_with('!'));
    }
}
