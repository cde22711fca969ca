//! The durable watermark: the least content that the tree must have.
//!
//! sled takes damage at the end of its log for a write that a crash interrupted, and opens without
//! the later data. Acknowledged entries and votes could be lost unnoticed. Therefore the storage
//! thread writes to a file of its own, after every sync, how much the tree contains. The file is
//! not synced. After a power failure it may be outdated, and then requires less than the tree
//! contains. It never requires more, because it is written after the sync.
//!
//! The file has two slots, written in turn, each in a sector of its own. An interrupted write
//! leaves the other slot intact. A slot is a sealed envelope, bound to its number. It contains
//! seven big-endian 64-bit numbers: the fields of [`Watermark`] in their order.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{Error, Keys, Reason, files};
use conclave_crypto::OVERHEAD_BYTES;

const PLACE: &str = "watermark";
const SLOT_BYTES: u64 = 4096;
const FIELDS: usize = 7;
const SEALED_BYTES: usize = FIELDS * 8 + OVERHEAD_BYTES;

/// Sequence numbers of the values in the tree. 0 for a value that is not in the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Watermark {
    /// The highest sequence number of all values.
    pub(super) sequence: u64,
    pub(super) vote: u64,
    pub(super) committed: u64,
    pub(super) purged: u64,
    pub(super) truncated: u64,
    pub(super) last_pack: u64,
    /// The sum over all metadata entries, see [`record_sum`].
    pub(super) records: u64,
}

/// Returns the summand of one metadata entry in the sum over all of them.
pub(super) fn record_sum(name: &str, sequence: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&sequence.to_be_bytes()).update(name.as_bytes());
    let mut sum = [0; 8];
    hasher.finalize_xof().fill(&mut sum);
    u64::from_be_bytes(sum)
}

impl Watermark {
    fn encode(&self) -> Vec<u8> {
        let Self { sequence, vote, committed, purged, truncated, last_pack, records } = *self;
        [sequence, vote, committed, purged, truncated, last_pack, records]
            .map(u64::to_be_bytes)
            .concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (fields, []) = bytes.as_chunks::<8>() else { return None };
        let fields: [_; FIELDS] = fields.try_into().ok()?;
        let [sequence, vote, committed, purged, truncated, last_pack, records] =
            fields.map(u64::from_be_bytes);
        Some(Self { sequence, vote, committed, purged, truncated, last_pack, records })
    }
}

/// The file that holds the watermark.
pub(super) struct WatermarkFile {
    path: PathBuf,
    file: File,
    keys: Keys,
    next_slot: u8,
}

impl WatermarkFile {
    pub(super) const FILE: &str = "watermark";

    /// Creates the file, and makes its content durable, but not its name.
    pub(super) fn create(dir: &Path, keys: Keys, watermark: &Watermark) -> Result<(), Error> {
        let path = dir.join(Self::FILE);
        let file = files::create(&path)?;
        let mut watermark_file = Self { path, file, keys, next_slot: 0 };
        watermark_file.write(watermark)?;
        watermark_file.sync()
    }

    /// Opens the file, and returns the newest intact watermark.
    pub(super) fn open(dir: &Path, keys: Keys) -> Result<(Self, Watermark), Error> {
        let path = dir.join(Self::FILE);
        let file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Missing { path });
            }
            opened => opened.map_err(Error::io("cannot open", &path))?,
        };
        let mut newest: Option<(u8, Watermark)> = None;
        let mut reason = Reason::from("it is empty");
        for slot in 0..2 {
            let mut sealed = [0; SEALED_BYTES];
            match file.read_exact_at(&mut sealed, u64::from(slot) * SLOT_BYTES) {
                // The second slot of a new file is not written yet.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => continue,
                read => read.map_err(Error::io("cannot read", &path))?,
            }
            match keys.open_sealed(PLACE, &[slot], &sealed).map(|bytes| Watermark::decode(&bytes)) {
                Ok(Some(watermark)) => {
                    if newest.is_none_or(|(_, other)| watermark.sequence > other.sequence) {
                        newest = Some((slot, watermark));
                    }
                }
                Ok(None) => reason = "it is malformed".into(),
                Err(error) => reason = error.into(),
            }
        }
        let (slot, watermark) =
            newest.ok_or_else(|| Error::damaged(path.display().to_string(), reason))?;
        Ok((Self { path, file, keys, next_slot: 1 - slot }, watermark))
    }

    pub(super) fn write(&mut self, watermark: &Watermark) -> Result<(), Error> {
        let sealed = self.keys.seal(PLACE, &[self.next_slot], &watermark.encode())?;
        self.file
            .write_all_at(&sealed, u64::from(self.next_slot) * SLOT_BYTES)
            .map_err(Error::io("cannot write", &self.path))?;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io("cannot sync", &self.path))
    }
}
