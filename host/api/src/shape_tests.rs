//! Goal: a decoder accepts every message that passes the check, and the check accepts every message
//! of a correct client.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::*;
use crate::fuzz::{FULL, PROTO, pool};

fn all() -> (DescriptorPool, Shapes, ShapeId) {
    let pool = pool(PROTO);
    let mut shapes = Shapes::default();
    let id = shapes.add(&pool, "t.All").unwrap();
    (pool, shapes, id)
}

fn full(pool: &DescriptorPool) -> Vec<u8> {
    let descriptor = pool.get_message_by_name("t.All").unwrap();
    DynamicMessage::parse_text_format(descriptor, FULL).unwrap().encode_to_vec()
}

#[test]
fn a_full_message_passes_and_no_true_prefix_of_it_is_mistaken() {
    let (pool, shapes, id) = all();
    let bytes = full(&pool);
    shapes.check(id, &bytes).unwrap();
    let descriptor = pool.get_message_by_name("t.All").unwrap();
    for length in 0..bytes.len() {
        let decoded = DynamicMessage::decode(descriptor.clone(), &bytes[..length]);
        assert_eq!(shapes.check(id, &bytes[..length]).is_ok(), decoded.is_ok(), "{length}");
    }
}

#[test]
fn the_reasons_name_message_and_field() {
    let (_, shapes, id) = all();
    let reason = |bytes: &[u8]| shapes.check(id, bytes).unwrap_err().to_string();
    let is = |text: &str| format!("not a well-formed t.All: {text}");
    assert_eq!(reason(&[0x2a, 2, 0xff, 0xfe]), is("field 5: a string that is not UTF-8"));
    assert_eq!(reason(&[0x2a, 200, 1, b'x']), is("field 5: cut off"));
    assert_eq!(reason(&[0x08]), is("field 1: a number that is cut off"));
    assert_eq!(reason(&[0x0a, 0]), is("field 1: another wire type than the field has"));
    assert_eq!(reason(&[0x00, 1]), is("field number 0"));
    assert_eq!(reason(&[0x0f]), is("a wire type that does not exist"));
    assert_eq!(reason(&[0x4a, 3, 0, 0, 0]), is("field 9: packed numbers that are cut off"));
    assert_eq!(reason(&[0x0c]), is("field 1: ends a group that is not open"));
    assert_eq!(
        reason(&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]),
        is("field 1: a number of more than 64 bits")
    );
    // Unknown fields are skipped completely.
    assert!(shapes.check(id, &[0xa3, 0x06, 0x08, 1, 0xa4, 0x06]).is_ok());
    assert_eq!(reason(&[0xa3, 0x06, 0x08, 1]), is("field 100: a number that is cut off"));
}

#[test]
fn nesting_is_bounded() {
    let (_, shapes, id) = all();
    let nest = |depth: usize| {
        (0..depth).fold(Vec::new(), |inside, _| {
            let mut outside = vec![0x3a];
            prost::encoding::encode_varint(inside.len() as u64, &mut outside);
            outside.extend(inside);
            outside
        })
    };
    shapes.check(id, &nest(100)).unwrap();
    assert!(shapes.check(id, &nest(102)).is_err());
    // Unknown groups nest too: 0xa3 0x06 opens one.
    assert!(shapes.check(id, &[0xa3, 0x06].repeat(100_000)).is_err());
}

#[test]
fn groups_of_proto2() {
    let pool = pool(
        r#"syntax = "proto2"; package t; message Old { optional group G = 1 { optional int32 a = 2; } }"#,
    );
    let mut shapes = Shapes::default();
    let id = shapes.add(&pool, "t.Old").unwrap();
    shapes.check(id, &[0x0b, 0x10, 5, 0x0c]).unwrap();
    assert!(shapes.check(id, &[0x0b, 0x10, 5]).is_err());
    assert!(shapes.check(id, &[0x0b, 0x12, 0, 0x0c]).is_err());
}

proptest! {
    /// Method: damages a valid message, and compares the check with a real decoder.
    #[test]
    fn what_passes_decodes(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let (pool, shapes, id) = all();
        let mut bytes = full(&pool);
        for (index, value) in flips {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        if shapes.check(id, &bytes).is_ok() {
            let descriptor = pool.get_message_by_name("t.All").unwrap();
            prop_assert!(DynamicMessage::decode(descriptor, bytes.as_slice()).is_ok());
        }
    }

    /// Method: random bytes neither panic nor pass wrongly.
    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let (pool, shapes, id) = all();
        if shapes.check(id, &bytes).is_ok() {
            let descriptor = pool.get_message_by_name("t.All").unwrap();
            prop_assert!(DynamicMessage::decode(descriptor, bytes.as_slice()).is_ok());
        }
    }
}
