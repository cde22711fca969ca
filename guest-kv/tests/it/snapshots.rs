//! Goal: the format matches its documentation, and only a complete and valid snapshot can be restored.

use conclave_sdk::{Code, Machine};
use guest_kv::{Kv, pb::PutRequest};

use crate::store::{Store, put_text, put_value};

/// Any change of the bytes needs a new version of the format. The old versions must still restore.
const FIXTURES: [&str; 2] =
    [include_str!("../fixtures/snapshot-v1.hex"), include_str!("../fixtures/snapshot-v2.hex")];

fn fixture() -> Vec<u8> {
    fixture_of(2)
}

fn fixture_of(version: usize) -> Vec<u8> {
    let lines = FIXTURES[version - 1].lines().filter(|line| !line.starts_with('#'));
    let bytes = lines.flat_map(str::split_whitespace);
    bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// Returns the store that the fixture contains.
fn store() -> Store {
    let mut store = Store { time_ms: 1_000, ..Store::default() };
    store.put_text("a", "one");
    store.put(PutRequest { ttl_ms: 500, ..put_value("b", [0, 255]) }).unwrap();
    store.put_text("a", "two");
    store
}

#[test]
fn the_bytes_are_the_fixtures() {
    let saved = store().kv.save();
    assert!(saved == fixture(), "saved {saved:02x?}, expected {:02x?}", fixture());
}

#[test]
fn the_fixtures_restore() {
    for version in [1, 2] {
        restores(version);
    }
    assert_eq!(Kv::load(1, &fixture_of(1)).unwrap().save(), fixture());
}

fn restores(version: u32) {
    let kv = Kv::load(version, &fixture_of(version as usize)).unwrap();
    let mut restored = Store { kv, time_ms: 1_499, ..Store::default() };
    assert_eq!(restored.text("a").as_deref(), Some("two"));
    assert_eq!(restored.get("b").unwrap().kv.unwrap().expires_at_ms, 1_500);
    // The index of expiry times is restored too.
    restored.time_ms = 1_500;
    restored.tick();
    assert_eq!((restored.held(), restored.wake_at_ms), (1, None));
}

#[test]
fn every_end_that_comes_too_early_is_refused() {
    for version in [1, 2] {
        let whole = fixture_of(version as usize);
        for length in 0..whole.len() {
            let failure = Kv::load(version, &whole[..length]).err().expect("it must not restore");
            assert_eq!(failure.code, Code::InvalidArgument, "cut at {length}");
            assert!(failure.message.contains("it ends"), "cut at {length}: {}", failure.message);
        }
    }
}

#[test]
fn what_no_store_would_write_is_refused() {
    let body = fixture();
    // The offsets of the first and the second record, from the lines of the fixture.
    let (first, second) = (28, 28 + 4 + 39);
    let set = |position: usize, bytes: &[u8]| {
        let mut changed = body.clone();
        changed[position..position + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let swapped = [&body[..first], &body[second..], &body[first..second]].concat();
    let longer = |version| [&fixture_of(version)[..], &[0]].concat();
    for (bytes, says) in [
        (set(0, b"X"), "not a snapshot of this state machine"),
        (set(11, &[3]), "format version 3"),
        (set(19, &[2]), "in a store of revision 2"),
        (set(first, &[0xff]), "the record has"),
        (set(first + 3, &[5]), "shorter than its fields"),
        (set(first + 5, &[0]), "the key is empty"),
        (set(first + 6, &[0xff]), "not UTF-8"),
        (set(first + 7, &[2]), "unknown kind 2"),
        (set(first + 15, &[0]), "create revision 0"),
        (set(first + 31, &[0]), "version 0"),
        (set(first + 40, &[0xff]), "the text is not UTF-8"),
        (swapped, "out of order"),
        (longer(1), "bytes after its end"),
        (longer(2), "bytes after its end"),
    ] {
        let failure = Kv::load(2, &bytes).err().unwrap_or_else(|| panic!("{says}: it restored"));
        assert!(failure.message.contains(says), "{says:?} is not in {:?}", failure.message);
        assert!(failure.message.contains("damaged at byte"), "{}", failure.message);
    }
}

#[test]
fn a_large_value_survives_any_cut() {
    let mut store = Store::default();
    store.put(put_value("large", vec![7; 1 << 20])).unwrap();
    store.put(put_text("small", "x")).unwrap();
    let saved = store.kv.save();
    for chunk_bytes in [1 << 20, (1 << 20) + 77, 65_537] {
        let mut writer = Kv::restore(2).unwrap();
        for chunk in saved.chunks(chunk_bytes) {
            writer.write(chunk).unwrap();
        }
        assert!(writer.finish().unwrap().save() == saved, "in chunks of {chunk_bytes}");
    }
}
