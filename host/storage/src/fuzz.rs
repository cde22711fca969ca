//! Fuzz targets of the decoders for decrypted data from the disk.

use super::format::{BlockBuilder, BlockHead, encode_entry, split_value};
use crate::raft_types::{Entry, LogId};

/// Decodes the first part of a block of log entries. Checks that the entries are consecutive, and
/// that encoding and decoding them again gives equal entries.
pub fn log_block(data: &[u8]) {
    let Ok(head) = BlockHead::parse(data.to_vec()) else { return };
    let Ok(entries) = head.decode(1) else { return };
    for (entry, index) in entries.iter().zip(1..) {
        assert_eq!(entry.log_id.index, index);
        let mut encoded = Vec::new();
        encode_entry(entry, &mut encoded);
        let again = super::format::decode_entry(encoded.into());
        assert!(
            again.is_ok_and(|again| again == *entry),
            "entry {index} changes when it is encoded and decoded"
        );
    }
}

/// Returns the parts of a block as seeds.
pub fn log_block_seeds() -> Vec<Vec<u8>> {
    let mut builder = BlockBuilder::default();
    let mut encoded = Vec::new();
    for index in 1..=3 {
        let log_id = LogId::new_term_index(2, index);
        encode_entry(&Entry { log_id, payload: openraft::EntryPayload::Blank }, &mut encoded);
        builder.push(&encoded, index);
    }
    let (_, values) = builder.finish(0, &mut 7);
    debug_assert!(values.iter().all(|value| split_value(value.clone()).is_ok()));
    values
}
