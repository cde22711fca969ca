//! Fuzz targets of the client port.
#![allow(clippy::expect_used, clippy::panic, reason = "constants, and what is to be found")]

use std::sync::LazyLock;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::shape::{ShapeId, Shapes};

pub(super) const PROTO: &str = r#"
    syntax = "proto3";
    package t;
    message All {
      int64 a = 1; bool b = 2; double c = 3; float d = 4; string e = 5; bytes f = 6; All g = 7;
      repeated sint32 h = 8; repeated fixed64 i = 9; repeated fixed32 j = 10;
      map<string, All> k = 11; repeated string l = 12; Kind m = 13; repeated Kind n = 300;
      oneof o { string p = 70; All q = 71; }
    }
    enum Kind { NONE = 0; SOME = 1; }
"#;

/// All fields of `All`, as a client would send them.
pub(super) const FULL: &str = r#"
    a: -5 b: true c: 1.5 d: 2.5 e: "héllo" f: "\xff\x00" g { g { e: "deep" } } h: [1, -2, 3]
    i: [1, 2] j: [7] k { key: "x" value { a: 1 } } l: ["a", "b"] m: SOME n: [NONE, SOME] q { a: 2 }
"#;

struct Fixed(&'static str);

impl protox::file::FileResolver for Fixed {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        protox::file::File::from_source(name, self.0)
    }
}

pub(super) fn pool(proto: &'static str) -> DescriptorPool {
    let mut compiler = protox::Compiler::with_file_resolver(Fixed(proto));
    compiler.include_imports(true).open_file("t.proto").expect("a constant");
    DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).expect("a constant")
}

static ALL: LazyLock<(DescriptorPool, Shapes, ShapeId)> = LazyLock::new(|| {
    let pool = pool(PROTO);
    let mut shapes = Shapes::default();
    let id = shapes.add(&pool, "t.All").expect("a constant");
    (pool, shapes, id)
});

fn decode(bytes: &[u8]) -> Result<DynamicMessage, prost::DecodeError> {
    let descriptor = ALL.0.get_message_by_name("t.All").expect("a constant");
    DynamicMessage::decode(descriptor, bytes)
}

/// Checks both directions: a request that passes the check can be decoded by a library, and a
/// message that a library encodes passes the check.
pub fn request_shape(data: &[u8]) {
    let (_, shapes, id) = &*ALL;
    let (passes, decoded) = (shapes.check(*id, data), decode(data));
    match (passes, decoded) {
        (Ok(()), Err(error)) => panic!("the check passes what prost-reflect rejects: {error}"),
        (_, Ok(message)) => {
            let again = shapes.check(*id, &message.encode_to_vec());
            assert!(again.is_ok(), "prost-reflect's own output is rejected: {again:?}");
        }
        (Err(_), Err(_)) => {}
    }
}

/// Valid requests.
pub fn request_shape_seeds() -> Vec<Vec<u8>> {
    let descriptor = ALL.0.get_message_by_name("t.All").expect("a constant");
    let full = DynamicMessage::parse_text_format(descriptor, FULL).expect("a constant");
    vec![Vec::new(), full.encode_to_vec(), vec![0x08, 0x01], vec![0x3a, 0x02, 0x08, 0x01]]
}
