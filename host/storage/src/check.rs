//! Validation of a tree when it is opened: it must hold everything that was acknowledged.
//!
//! The whole tree is read and decrypted once. The log since the last snapshot has a bounded size.
//! These are errors that name the entry or the value: a value that cannot be decrypted, a gap after
//! the purged entries, a value older than the entries after it require, and a value older than the
//! durable watermark.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};

use super::{
    Error,
    error::Reason,
    format::{self, Block, BlockHead},
    sizes::{Sizes, entry_bytes},
    tree::Tree,
    watermark::{Watermark, record_sum},
};
use crate::raft_types::{LogId, Vote};
use conclave_crypto as crypto;
use conclave_crypto::KeyId;
use conclave_proto::raft as wire;

/// The content of a tree.
#[derive(Default)]
pub(super) struct Recovered {
    /// The watermark that describes this content.
    pub(super) watermark: Watermark,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    /// Whether the log holds the committed entry itself.
    pub(super) holds_committed: bool,
    pub(super) purged: Option<LogId>,
    /// The id of the last entry, or of the purged entry if there are no entries.
    pub(super) last: Option<LogId>,
    /// All blocks, including purged blocks that are not removed yet.
    pub(super) blocks: VecDeque<Block>,
    /// The metadata entries: name, sequence number, value.
    pub(super) records: BTreeMap<String, (u64, Bytes)>,
    /// The data keys that sealed any value of the tree.
    pub(super) key_ids: BTreeSet<KeyId>,
    /// The data keys that sealed values other than log entries. Log entries are purged in time.
    pub(super) small_key_ids: BTreeSet<KeyId>,
    /// The sizes of the entries.
    pub(super) sizes: Sizes,
    /// The total size of all values.
    pub(super) live_bytes: u64,
    birth: Option<Bytes>,
}

/// A block of which some parts have been read.
struct Open {
    first: u64,
    head: BlockHead,
    body: BytesMut,
    parts_read: u16,
}

/// Reads the whole tree and validates it.
pub(super) fn check(
    tree: &Tree,
    incarnation: &[u8],
    watermark: &Watermark,
) -> Result<Recovered, Error> {
    let log = tree.dir().display().to_string();
    let mut found = Recovered::default();
    // The tree stores the blocks first, but their validation depends on the purged log id.
    if let Some((_, body)) = get_meta(tree, format::PURGED)? {
        found.purged = format::decode_log_id(body)
            .map_err(|reason| Error::damaged("the purged log id", reason))?;
    }
    found.last = found.purged;
    // Read before the entries, so that the committed entry is recognized among them.
    if let Some((_, body)) = get_meta(tree, format::COMMITTED)? {
        found.committed = format::decode_log_id(body)
            .map_err(|reason| Error::damaged("the committed log id", reason))?;
    }
    let mut block: Option<Open> = None;
    for item in tree.scan() {
        let (key, sealed) = item.map_err(|error| Error::unreadable(&log, tree.dir(), error))?;
        let what = describe(&key);
        let plaintext = tree.open_value(&key, &sealed);
        let plaintext = plaintext.map_err(|error| Error::unreadable(&what, tree.dir(), error))?;
        found.key_ids.extend(crypto::key_id_of(&sealed));
        found.live_bytes += (key.len() + sealed.len()) as u64;
        if let Some((first, part)) = format::parse_part_key(&key) {
            let whole = found.take_part(block.take(), first, part, plaintext);
            block = whole.map_err(|reason| Error::unusable(&what, reason))?;
            continue;
        }
        found.small_key_ids.extend(crypto::key_id_of(&sealed));
        found.take_value(&key, plaintext).map_err(|reason| Error::unusable(&what, reason))?;
    }
    if block.is_some() {
        return Err(Error::damaged(&log, "the last block of log entries is incomplete"));
    }
    if found.birth.as_deref() != Some(incarnation) {
        return Err(Error::damaged(&log, "it belongs to another directory, or is empty"));
    }
    found.watermark.last_pack = found.blocks.back().map_or(0, |block| block.sequence);
    for (name, (sequence, _)) in &found.records {
        found.watermark.records = found.watermark.records.wrapping_add(record_sum(name, *sequence));
    }
    compare(&found.watermark, watermark).map_err(|reason| Error::damaged(&log, reason))?;
    Ok(found)
}

/// Compares the content of a tree with the watermark that it must have reached.
fn compare(found: &Watermark, watermark: &Watermark) -> Result<(), String> {
    if found.sequence < watermark.sequence {
        return Err(format!(
            "its newest value has sequence number {}, but sequence number {} was durable: \
             acknowledged writes are lost",
            found.sequence, watermark.sequence
        ));
    }
    let older = |what: &str| Err(format!("{what} is older than its durable version"));
    if found.vote < watermark.vote {
        return older("the vote");
    }
    if found.committed < watermark.committed {
        return older("the committed log id");
    }
    if found.purged < watermark.purged {
        return older("the purged log id");
    }
    if found.truncated < watermark.truncated {
        return older("the record of the last truncation");
    }
    // The last block becomes older only by a later truncation or purge.
    let removed = found.truncated > watermark.sequence || found.purged > watermark.sequence;
    if found.last_pack < watermark.last_pack && !removed {
        return older("the last entry");
    }
    // If nothing was written since the watermark, the metadata entries must be unchanged.
    if found.sequence == watermark.sequence && found.records != watermark.records {
        return older("a metadata entry");
    }
    Ok(())
}

impl Recovered {
    /// Adds a part. Returns the block if parts are still missing.
    fn take_part(
        &mut self,
        open: Option<Open>,
        first: u64,
        part: u16,
        plaintext: Vec<u8>,
    ) -> Result<Option<Open>, Reason> {
        let block = match open {
            None if part == 0 => {
                let mut head = BlockHead::parse(plaintext)?;
                let body = BytesMut::from(std::mem::take(&mut head.body));
                Open { first, head, body, parts_read: 1 }
            }
            Some(mut block) if block.first == first && block.parts_read == part => {
                let (sequence, rest) = format::split_value(plaintext)?;
                if sequence != block.head.sequence + u64::from(part) {
                    return Err("its parts are from different writes".into());
                }
                block.body.extend_from_slice(&rest);
                block.parts_read += 1;
                block
            }
            _ => return Err("a part of it is missing".into()),
        };
        if block.parts_read < block.head.parts {
            return Ok(Some(block));
        }
        self.take_pack(block)?;
        Ok(None)
    }

    fn take_pack(
        &mut self,
        Open { first, mut head, body, parts_read }: Open,
    ) -> Result<(), Reason> {
        head.body = body.freeze();
        let (sequence, previous) = (head.sequence, head.previous);
        let entries = head.decode(first)?;
        let Some(last) = entries.last().map(|entry| entry.log_id) else {
            return Err("it contains no entries".into());
        };
        let newest = sequence + u64::from(parts_read) - 1;
        self.watermark.sequence = self.watermark.sequence.max(newest);
        let block = Block { first, last: last.index, parts: parts_read, sequence };
        let before = self.blocks.back().copied();
        self.blocks.push_back(block);
        let purged_to = self.purged.map(|purged| purged.index);
        if purged_to.is_some_and(|purged| block.last <= purged) {
            // The block is purged, but not removed yet.
            return Ok(());
        }
        // Every other block must follow its predecessor.
        let reaches_purged = purged_to.is_some_and(|purged| first <= purged + 1);
        if !reaches_purged {
            match before {
                None if previous == 0 => {}
                Some(before) if before.last + 1 == first && before.sequence == previous => {}
                Some(before) if before.last + 1 == first => {
                    let reason = format!(
                        "the preceding entry {} is not its original predecessor",
                        before.last
                    );
                    return Err(reason.into());
                }
                Some(before) => {
                    return Err(
                        format!("the preceding entry {} is missing", before.last + 1).into()
                    );
                }
                None => return Err("the preceding entries are missing".into()),
            }
        }
        for entry in &entries {
            // Skip purged entries at the beginning of the block.
            if purged_to.is_some_and(|purged| entry.log_id.index <= purged) {
                continue;
            }
            if self.last.is_some_and(|last| entry.log_id.leader_id < last.leader_id) {
                let index = entry.log_id.index;
                return Err(format!(
                    "the term of entry {index} is lower than that of its predecessor"
                )
                .into());
            }
            self.sizes.append(entry.log_id.index, entry_bytes(entry) as u64);
            self.last = Some(entry.log_id);
            self.holds_committed |= self.last == self.committed;
        }
        Ok(())
    }

    fn take_value(&mut self, key: &[u8], plaintext: Vec<u8>) -> Result<(), Reason> {
        let (sequence, body) = format::split_value(plaintext)?;
        self.watermark.sequence = self.watermark.sequence.max(sequence);
        match key {
            format::BIRTH => self.birth = Some(body),
            format::VOTE => {
                let vote: wire::Vote = prost::Message::decode(body)?;
                self.vote = Some(crate::convert::vote_from_wire(&vote));
                self.watermark.vote = sequence;
            }
            format::COMMITTED => self.watermark.committed = sequence,
            format::PURGED => self.watermark.purged = sequence,
            format::REMOVED => {}
            format::TRUNCATED => self.watermark.truncated = sequence,
            [format::RECORD, name @ ..] => {
                let name = str::from_utf8(name)?;
                self.records.insert(name.to_owned(), (sequence, body));
            }
            _ => return Err(Reason::UnknownKind),
        }
        Ok(())
    }
}

/// Reads and decrypts the value of a key.
fn get_meta(tree: &Tree, key: &[u8]) -> Result<Option<(u64, Bytes)>, Error> {
    let plaintext = tree.get(key);
    let plaintext =
        plaintext.map_err(|error| Error::unreadable(describe(key), tree.dir(), error))?;
    plaintext
        .map(format::split_value)
        .transpose()
        .map_err(|reason| Error::damaged(describe(key), reason))
}

/// Describes a key in an error message.
fn describe(key: &[u8]) -> String {
    if let Some((first, _)) = format::parse_part_key(key) {
        return format!("log entry {first}");
    }
    match key {
        [format::META, name @ ..] => format!("the log's stored value {}", name.escape_ascii()),
        [format::RECORD, name @ ..] => format!("metadata entry {}", name.escape_ascii()),
        _ => format!("the log's value at {}", key.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use super::*;
    use crate::{Disk, Identity, Keys, LOG_DIR, Options, Storage, tree::Batch};
    use conclave_crypto::MasterKey;
    use conclave_types::ComponentId;

    /// A program that was rolled back to an older version must not report a newer version's
    /// data as damaged.
    #[test]
    fn a_value_of_a_newer_version_is_not_called_damage() {
        let dir = tempfile::tempdir().unwrap();
        let component = Bytes::from_static(b"component");
        let options = || Options {
            dir: dir.path().to_owned(),
            cluster_id: "c".into(),
            node_id: 1,
            component_id: ComponentId::of(&component),
            component: component.clone(),
            master_key: MasterKey::from_bytes([7; 32]),
        };
        drop(Storage::open(options()).unwrap());
        {
            let identity = Identity::read(dir.path()).unwrap().unwrap();
            let keys = Keys::open(dir.path(), identity, options().master_key).unwrap();
            let tree = Tree::open(&dir.path().join(LOG_DIR), keys, Arc::new(Disk)).unwrap();
            let mut batch = Batch::default();
            let key = b"mfuture".to_vec();
            let sealed = tree.seal(&key, &format::value(1_000, b"text")).unwrap();
            batch.insert(key, sealed);
            tree.apply(batch).unwrap();
            tree.sync().unwrap();
        }
        let error = Storage::open(options()).err().unwrap();
        assert!(matches!(error, Error::Newer { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains("newer version") && !error.contains("damaged"), "{error}");
    }

    #[test]
    fn an_unknown_command_is_of_a_newer_version_and_a_missing_field_is_not() {
        let newer =
            conclave_proto::convert::command_from_wire(wire::Command::default()).unwrap_err();
        assert!(matches!(Error::unusable("log entry 1", newer), Error::Newer { .. }));
        let broken = crate::convert::entry_from_wire(wire::Entry::default()).unwrap_err();
        assert!(matches!(Error::unusable("log entry 1", broken), Error::Damaged { .. }));
    }

    const WATERMARK: Watermark = Watermark {
        sequence: 50,
        vote: 10,
        committed: 20,
        purged: 30,
        truncated: 40,
        last_pack: 50,
        records: 7,
    };

    #[test]
    fn a_tree_that_lost_something_is_found_out() {
        compare(&WATERMARK, &WATERMARK).unwrap();
        for older in [
            Watermark { sequence: 49, ..WATERMARK },
            Watermark { vote: 9, ..WATERMARK },
            Watermark { committed: 19, ..WATERMARK },
            Watermark { purged: 29, ..WATERMARK },
            Watermark { truncated: 39, ..WATERMARK },
            Watermark { last_pack: 48, ..WATERMARK },
            Watermark { records: 8, ..WATERMARK },
        ] {
            assert!(compare(&older, &WATERMARK).is_err(), "{older:?}");
        }
    }

    #[test]
    fn a_mark_that_stayed_behind_is_no_damage() {
        let later = Watermark { sequence: 90, ..WATERMARK };
        for legal in [
            Watermark { records: 8, ..later },
            Watermark { vote: 60, last_pack: 70, ..later },
            Watermark { truncated: 80, last_pack: 45, ..later },
            Watermark { purged: 80, last_pack: 0, ..later },
        ] {
            compare(&legal, &WATERMARK).unwrap();
        }
        assert!(compare(&Watermark { last_pack: 45, ..later }, &WATERMARK).is_err());
    }
}
