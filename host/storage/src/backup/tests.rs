//! Goal: a reader accepts exactly the file that was written. Method: small backups, changed in every
//! byte and cut at every length.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::Error;
use bytes::Bytes;

fn key() -> MasterKey {
    MasterKey::from_bytes(std::array::from_fn(|at| at as u8))
}

fn info(chunks: &[&'static [u8]]) -> BackupInfo {
    BackupInfo {
        cluster_id: "blue".into(),
        index: 42,
        component_id: ComponentId([9; 32]),
        component_name: "kv".into(),
        component_version: "1.0".into(),
        created_ms: 1_700_000_000_000,
        version: "0.1.0".into(),
        backup_id: [3; 16],
        chunks: chunks.len() as u64,
        bytes: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        wrapped_by: WrappedBy::MasterKey,
    }
}

const CHUNKS: [&[u8]; 3] = [b"component", b"state, first part", b"state, second part"];
const CONTENTS: &[u8] = b"the header of the snapshot";

fn sealed(chunks: &[&'static [u8]]) -> Vec<Bytes> {
    let all = chunks.iter().map(|chunk| Ok::<_, Error>(Bytes::from_static(chunk)));
    let sealed = SealedBackup::new(info(chunks), CONTENTS, all, &key()).unwrap();
    sealed.map(Result::unwrap).collect()
}

/// Reads everything, as a restore does.
fn read(file: &[u8]) -> Result<Vec<Bytes>, BackupError> {
    let backup = BackupReader::open("b.backup", file)?.unlock(&key())?;
    assert_eq!(backup.contents(), CONTENTS);
    backup.collect()
}

#[test]
fn backup_comes_back_as_it_was_sealed() {
    for chunks in [&CHUNKS[..], &[]] {
        let file = sealed(chunks).concat();
        assert_eq!(read(&file).unwrap(), chunks);
        let reader = BackupReader::open("b", &file[..]).unwrap();
        assert_eq!((reader.info(), reader.key_id()), (&info(chunks), key().id()));
        let frames = reader.check_frames().unwrap();
        assert_eq!(frames.bytes, file.len() as u64);
        assert_eq!(frames.blake3, *blake3::hash(&file).as_bytes());
    }
}

#[test]
fn nothing_but_the_header_is_readable_without_the_key() {
    let file = sealed(&CHUNKS).concat();
    let shows = |text: &[u8]| file.windows(text.len()).any(|window| window == text);
    assert!(shows(b"blue") && shows(b"kv"));
    for text in [CONTENTS, CHUNKS[0], CHUNKS[1]] {
        assert!(!shows(text), "{}", text.escape_ascii());
    }
}

#[test]
fn truncated_backup_is_refused_at_every_length() {
    let pieces = sealed(&CHUNKS);
    let file = pieces.concat();
    for length in 0..file.len() {
        let error = read(&file[..length]).unwrap_err();
        let named = error.to_string().contains("b.backup");
        let expected = match length < 10 {
            true => matches!(error, BackupError::Truncated { .. } | BackupError::Foreign { .. }),
            false => matches!(error, BackupError::Truncated { .. }),
        };
        assert!(named && expected, "{length}: {error}");
        let opened = BackupReader::open("b.backup", &file[..length]);
        assert!(opened.and_then(BackupReader::check_frames).is_err(), "{length}");
    }
    // Whole records are missing at the end.
    let mut cut = pieces;
    cut.remove(2);
    let error = read(&cut.concat()).unwrap_err();
    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
}

#[test]
fn every_changed_bit_is_detected() {
    let file = sealed(&CHUNKS).concat();
    for at in 0..file.len() {
        for bit in [0x01, 0x80] {
            let mut changed = file.clone();
            changed[at] ^= bit;
            assert!(read(&changed).is_err(), "byte {at}");
        }
    }
}

#[test]
fn reordered_repeated_and_foreign_records_are_refused() {
    let pieces = sealed(&CHUNKS);
    let other = sealed(&CHUNKS);
    let with =
        |order: &[usize]| order.iter().map(|at| pieces[*at].clone()).collect::<Vec<_>>().concat();
    assert!(read(&with(&[0, 1, 2, 3, 4])).is_ok());
    for order in [&[0, 2, 1, 3, 4][..], &[0, 1, 1, 2, 3, 4], &[0, 1, 2, 4], &[0, 1, 2, 3, 4, 4]] {
        let error = read(&with(order)).unwrap_err();
        assert!(matches!(error, BackupError::Damaged { .. }), "{order:?}: {error}");
    }
    let mixed = [&pieces[0], &pieces[1], &other[2], &pieces[3], &pieces[4]];
    assert!(read(&mixed.map(|piece| piece.to_vec()).concat()).is_err());
}

#[test]
fn wrong_key_and_foreign_files_are_named() {
    let file = sealed(&CHUNKS).concat();
    let other = MasterKey::from_bytes([8; 32]);
    let error = BackupReader::open("b", &file[..]).unwrap().unlock(&other).err().unwrap();
    assert!(matches!(error, BackupError::WrongKey { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&key().id()) && text.contains("master key of the cluster"), "{text}");
    for foreign in [&b"CNCLVSNP\0\x02 and more bytes"[..], b"PK", b""] {
        let error = BackupReader::open("b", foreign).err().unwrap();
        assert!(matches!(error, BackupError::Foreign { .. }), "{error}");
    }
    let mut newer = file;
    newer[9] = 2;
    let error = BackupReader::open("b", &newer[..]).err().unwrap();
    assert!(matches!(error, BackupError::Version { found: 2, known: 1, .. }), "{error}");
}

/// A header that was changed and got a new checksum does not open, because the data key is bound to it.
#[test]
fn forged_header_is_refused() {
    let mut file = sealed(&CHUNKS).concat();
    let at = file.windows(4).position(|window| window == b"blue").unwrap();
    file[at] = b'g';
    let keyring_at = 14 + u32::from_be_bytes(file[10..14].try_into().unwrap()) as usize;
    let length = u32::from_be_bytes(file[keyring_at..keyring_at + 4].try_into().unwrap()) as usize;
    let check_at = keyring_at + 4 + length;
    let check = *blake3::hash(&file[..check_at]).as_bytes();
    file[check_at..check_at + 32].copy_from_slice(&check);
    let reader = BackupReader::open("b", &file[..]).unwrap();
    assert_eq!(reader.info().cluster_id, "glue");
    assert!(matches!(reader.unlock(&key()).err().unwrap(), BackupError::Damaged { .. }));
}

/// The golden backup: every later version must read the file that version 1 wrote.
#[test]
fn the_format_is_version_1() {
    let file = hex::decode(include_str!("golden_backup.hex").trim()).unwrap();
    assert_eq!(read(&file).unwrap(), CHUNKS);
    assert_eq!(BackupReader::open("b", &file[..]).unwrap().info(), &info(&CHUNKS));
}

#[test]
#[ignore = "writes the golden file; run when a new version of the format is made"]
fn write_golden() {
    let file = hex::encode(sealed(&CHUNKS).concat());
    std::fs::write("src/backup/golden_backup.hex", file + "\n").unwrap();
}
