//! The initial component: the component that the cluster started with.
//!
//! The log up to the first snapshot depends on it, and a newer program may have another default
//! component. Each node therefore stores it at its first start. All other components are in the log
//! and in snapshots.
//!
//! ```text
//! 0   8  magic "CNCLVGEN"
//! 8   2  version, 1
//! then pieces of 1 MiB up to the end of the file, the last one shorter:
//!     4  length of the envelope
//!     n  sealed: the piece, bound to its number
//! ```
//! The hash of the whole component, which is the component id in `identity`, detects truncated,
//! exchanged and missing pieces. A file that is sealed under an older data key is rewritten at the
//! next start, so that it keeps no old key in use.

use std::path::{Path, PathBuf};

use bytes::{BufMut, Bytes, BytesMut};

use super::{Error, Identity, Keys, files};
use conclave_crypto as crypto;
use conclave_crypto::OVERHEAD_BYTES;
use conclave_types::{ComponentId, components::COMPONENT_BYTES_MAX};

const MAGIC: &[u8; 8] = b"CNCLVGEN";
const VERSION: u16 = 1;
const PLACE: &str = "initial component";
const PIECE_BYTES: usize = 1 << 20;
/// The largest file: the largest component, and the overhead of its pieces.
const FILE_BYTES_MAX: u64 =
    (COMPONENT_BYTES_MAX + (COMPONENT_BYTES_MAX / PIECE_BYTES + 2) * 64) as u64;

pub(super) const FILE: &str = "initial-component";

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Writes the file durably.
pub(super) fn write(dir: &Path, keys: &Keys, component: &[u8]) -> Result<(), Error> {
    let mut file = BytesMut::with_capacity(component.len() + 4096);
    file.put_slice(MAGIC);
    file.put_u16(VERSION);
    for (number, piece) in (0_u32..).zip(component.chunks(PIECE_BYTES)) {
        let sealed = keys.seal(PLACE, &number.to_be_bytes(), piece)?;
        // A piece has at most 1 MiB.
        file.put_u32(sealed.len() as u32);
        file.put_slice(&sealed);
    }
    files::write_atomically(&path(dir), &file)
}

/// Reads the initial component, and reseals it if needed.
///
/// # Errors
/// The file is missing or damaged, or contains another component than the directory's initial component.
pub(super) fn open(dir: &Path, keys: &Keys, identity: &Identity) -> Result<Bytes, Error> {
    let path = path(dir);
    let damaged = |reason: &'static str| Error::damaged(path.display().to_string(), reason);
    let file = files::read_small(&path, FILE_BYTES_MAX)?;
    let file = file.ok_or_else(|| Error::Missing { path: path.clone() })?;
    let (component, stale) = decode(&file, &path, keys)?;
    if ComponentId::of(&component) != identity.component_id {
        return Err(damaged("it is not the initial component of this data directory"));
    }
    if stale {
        write(dir, keys, &component)?;
    }
    Ok(component)
}

/// Decodes the component. Also returns whether any piece is sealed under an inactive key.
fn decode(file: &[u8], path: &Path, keys: &Keys) -> Result<(Bytes, bool), Error> {
    let damaged = |reason: &'static str| Error::damaged(path.display().to_string(), reason);
    let (magic, rest) = file.split_first_chunk::<8>().ok_or(damaged("it is too short"))?;
    if magic != MAGIC {
        return Err(damaged("it does not start with the magic bytes"));
    }
    let (version, mut rest) = rest.split_first_chunk().ok_or(damaged("it is too short"))?;
    let found = u16::from_be_bytes(*version);
    if found > VERSION {
        return Err(Error::Version { path: path.to_owned(), found, known: VERSION });
    }
    let (mut component, mut stale) = (BytesMut::with_capacity(file.len()), false);
    let mut number = 0_u32;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk().ok_or(damaged("it is truncated"))?;
        let length = u32::from_be_bytes(*length) as usize;
        if length > after.len() || length > PIECE_BYTES + OVERHEAD_BYTES {
            return Err(damaged("it is truncated"));
        }
        let (sealed, after) = after.split_at(length);
        let piece = keys.open_sealed(PLACE, &number.to_be_bytes(), sealed);
        let piece = piece.map_err(|error| Error::damaged(path.display().to_string(), error))?;
        component.put_slice(&piece);
        stale |= crypto::key_id_of(sealed) != Some(keys.active());
        rest = after;
        number += 1;
    }
    Ok((component.freeze(), stale))
}
