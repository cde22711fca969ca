//! Preparation of the changes of one batch to the tree.
//!
//! [`Staging`] translates the storage thread's work into keys and values. It also tracks the
//! resulting content of the tree: the blocks of the log, the metadata entries and the watermark. It
//! reads no clocks and does not seal, write or sync. It accesses the tree only through [`Target`],
//! so a test can compare it with a model.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
};

use bytes::Bytes;

use super::{
    check::Recovered,
    format::{self, Block, BlockBuilder},
    ops::Work,
    state::change_record_sum,
    watermark::Watermark,
};
use crate::raft_types::{Entry, LogId, Vote};

/// The maximum number of blocks that one batch removes. Each takes about 10 µs, and a caller may
/// wait for the batch.
const PURGED_PACKS_MAX: usize = 64;

/// Keys with their new plaintext values. `None` removes the key.
pub(super) type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// The tree to change.
pub(super) trait Target {
    /// Applies changes atomically: after a crash, either all or none of them are present.
    fn apply(&self, changes: Changes) -> io::Result<()>;
    /// Returns the plaintext value of a key.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Returns the entries of the block that begins at this index.
    fn read_pack(&self, first: u64) -> io::Result<Vec<Entry>>;
}

/// The staged changes of one batch, and the resulting content of the tree.
pub(super) struct Staging {
    watermark: Watermark,
    blocks: VecDeque<Block>,
    records: BTreeMap<String, u64>,
    purged: Option<LogId>,
    changes: Changes,
    block: BlockBuilder,
    encoded: Vec<u8>,
}

impl Staging {
    pub(super) fn new(recovered: Recovered) -> Self {
        let records = recovered.records.into_iter();
        Self {
            watermark: recovered.watermark,
            blocks: recovered.blocks,
            records: records.map(|(name, (sequence, _))| (name, sequence)).collect(),
            purged: recovered.purged,
            changes: Vec::new(),
            block: BlockBuilder::default(),
            encoded: Vec::new(),
        }
    }

    /// The watermark of the tree after all staged changes are applied.
    pub(super) fn watermark(&self) -> &Watermark {
        &self.watermark
    }

    /// Stages one operation. A truncation is applied at once, because it may need to read staged entries.
    pub(super) fn stage(&mut self, work: Work, target: &impl Target) -> io::Result<()> {
        match work {
            Work::Append(entries) => self.stage_entries(&entries),
            Work::Vote(vote) => self.stage_vote(&vote),
            Work::Truncate(after) => return self.stage_truncation(after, target),
            Work::Purge(to) => {
                // A purge beyond the end of the log leaves a gap before the next entry, so the
                // block must end here.
                self.stage_pack();
                self.purged = Some(to);
                self.stage_purged();
            }
        }
        Ok(())
    }

    pub(super) fn stage_committed(&mut self, committed: Option<LogId>) {
        self.stage_pack();
        let committed = format::encode_log_id(committed.as_ref());
        self.watermark.committed = self.stage_value(format::COMMITTED.to_vec(), &committed);
    }

    pub(super) fn stage_records(&mut self, records: BTreeMap<String, Option<Bytes>>) {
        self.stage_pack();
        for (name, value) in records {
            let key = format::record_key(&name);
            let old = self.records.get(&name).copied();
            let new = match value {
                Some(value) => Some(self.stage_value(key, &value)),
                None => {
                    self.changes.push((key, None));
                    self.stage_value(format::REMOVED.to_vec(), b"");
                    None
                }
            };
            self.watermark.records = change_record_sum(self.watermark.records, &name, old, new);
            match new {
                Some(sequence) => self.records.insert(name, sequence),
                None => self.records.remove(&name),
            };
        }
    }

    /// Whether purged blocks are left to remove.
    pub(super) fn purgeable(&self) -> bool {
        let purged = self.purged.map(|purged| purged.index);
        self.blocks.front().is_some_and(|block| Some(block.last) <= purged)
    }

    /// Stages the removal of some purged blocks, if there are any, and applies all changes.
    pub(super) fn finish(&mut self, target: &impl Target) -> io::Result<()> {
        self.stage_pack();
        if self.purgeable() {
            for _ in 0..PURGED_PACKS_MAX {
                if !self.purgeable() {
                    break;
                }
                if let Some(block) = self.blocks.pop_front() {
                    self.stage_removal(block);
                }
            }
            if self.blocks.is_empty() {
                self.watermark.last_pack = 0;
            }
            // Staged again, so that the purged log id is never older than a removal.
            self.stage_purged();
        }
        self.apply(target)
    }

    /// Rewrites all values except log entries, which seals them under the active key. Older keys
    /// then become unused.
    pub(super) fn reseal(&mut self, target: &impl Target) -> io::Result<()> {
        let malformed = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
        for key in format::METAS {
            let Some(plaintext) = target.get(key)? else { continue };
            let (_, body) = format::split_value(plaintext).map_err(malformed)?;
            let sequence = self.stage_value(key.to_vec(), &body);
            match key {
                format::VOTE => self.watermark.vote = sequence,
                format::COMMITTED => self.watermark.committed = sequence,
                format::PURGED => self.watermark.purged = sequence,
                format::TRUNCATED => self.watermark.truncated = sequence,
                _ => {}
            }
        }
        for (name, old) in std::mem::take(&mut self.records) {
            let key = format::record_key(&name);
            let Some(plaintext) = target.get(&key)? else { continue };
            let (_, body) = format::split_value(plaintext).map_err(malformed)?;
            let new = self.stage_value(key, &body);
            self.watermark.records =
                change_record_sum(self.watermark.records, &name, Some(old), Some(new));
            self.records.insert(name, new);
        }
        Ok(())
    }

    fn apply(&mut self, target: &impl Target) -> io::Result<()> {
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() { Ok(()) } else { target.apply(changes) }
    }

    /// Stages one value and returns its sequence number.
    fn stage_value(&mut self, key: Vec<u8>, body: &[u8]) -> u64 {
        self.watermark.sequence += 1;
        self.changes.push((key, Some(format::value(self.watermark.sequence, body))));
        self.watermark.sequence
    }

    fn stage_vote(&mut self, vote: &Vote) {
        let vote = prost::Message::encode_to_vec(&crate::convert::vote_to_wire(vote));
        self.watermark.vote = self.stage_value(format::VOTE.to_vec(), &vote);
    }

    fn stage_entries(&mut self, entries: &[Entry]) {
        for entry in entries {
            let mut encoded = std::mem::take(&mut self.encoded);
            format::encode_entry(entry, &mut encoded);
            if !self.block.push(&encoded, entry.log_id.index) {
                self.stage_pack();
                let taken = self.block.push(&encoded, entry.log_id.index);
                assert!(taken, "an empty block took no entry");
            }
            // Frees the buffer of a very large entry.
            encoded.shrink_to(format::BLOCK_BYTES_MAX);
            self.encoded = encoded;
        }
    }

    fn stage_pack(&mut self) {
        if self.block.is_empty() {
            return;
        }
        let (block, values) =
            self.block.finish(self.watermark.last_pack, &mut self.watermark.sequence);
        for (part, value) in (0..block.parts).zip(values) {
            self.changes.push((format::part_key(block.first, part), Some(value)));
        }
        self.watermark.last_pack = block.sequence;
        self.blocks.push_back(block);
    }

    /// Removes the blocks after `after`. A block that contains the cut is rewritten.
    fn stage_truncation(&mut self, after: Option<u64>, target: &impl Target) -> io::Result<()> {
        // Staged entries must be in the tree before they can be read back.
        self.stage_pack();
        self.apply(target)?;
        let next = after.map_or(0, |after| after + 1);
        let mut cut = None;
        while let Some(block) = self.blocks.pop_back_if(|block| block.last >= next) {
            self.stage_removal(block);
            cut = (block.first < next).then_some(block);
        }
        self.watermark.last_pack = self.blocks.back().map_or(0, |block| block.sequence);
        if let Some(block) = cut {
            let entries = target.read_pack(block.first)?;
            let kept = entries.iter().take_while(|entry| entry.log_id.index < next);
            self.stage_entries(&kept.cloned().collect::<Vec<_>>());
            self.stage_pack();
        }
        self.watermark.truncated =
            self.stage_value(format::TRUNCATED.to_vec(), &next.to_be_bytes());
        // One atomic change: after a crash, the log is either untouched or truncated.
        self.apply(target)
    }

    fn stage_removal(&mut self, block: Block) {
        for part in 0..block.parts {
            self.changes.push((format::part_key(block.first, part), None));
        }
    }

    fn stage_purged(&mut self) {
        let purged = format::encode_log_id(self.purged.as_ref());
        self.watermark.purged = self.stage_value(format::PURGED.to_vec(), &purged);
    }
}

#[cfg(test)]
#[path = "staging_tests.rs"]
mod tests;
