//! Deserialization of a snapshot to a state. The host has authenticated the bytes, but this module
//! validates them anyway: a state machine that wrote an invalid snapshot is detected here.

use conclave_sdk::{Failure, snapshot::RestoreWriter};

use crate::{
    Kv,
    key::Key,
    limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX, check_key, within},
    snapshot::{FORMAT_VERSION, HEADER_BYTES, KIND_TEXT, KIND_VALUE, MAGIC, RECORD_FIXED_BYTES},
    state::{Content, Record, State},
};

/// The format version whose snapshots end with a checksum.
pub(crate) const FORMAT_WITH_CHECKSUM: u32 = 1;
const CHECKSUM_BYTES: usize = 4;

/// The longest record. Bounds the bytes that are buffered if a length is damaged.
const RECORD_BYTES_MAX: usize = RECORD_FIXED_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX;

/// A restore in progress. Holds the decoded state and at most one incomplete record.
#[derive(Default)]
pub(crate) struct Restore {
    state: State,
    version: u32,
    expect: Expect,
    last_key: Option<Key>,
    pending: Vec<u8>,
    /// The offset of `pending` in the snapshot.
    offset: u64,
}

#[derive(Clone, Copy, Default)]
enum Expect {
    #[default]
    Header,
    /// At least one record is left.
    Records {
        left: u64,
    },
    Checksum,
    End,
}

impl RestoreWriter<Kv> for Restore {
    fn write(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        self.pending.extend_from_slice(chunk);
        let mut pending = std::mem::take(&mut self.pending);
        let mut taken = 0;
        loop {
            let rest = pending.get(taken..).unwrap_or_default();
            let piece = self.take(rest).map_err(|failure| at(self.offset, &failure.message))?;
            let Some(bytes) = piece else { break };
            taken += bytes;
            self.offset += bytes as u64;
        }
        pending.drain(..taken);
        self.pending = pending;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Kv, Failure> {
        match self.expect {
            Expect::End => Ok(Kv { state: self.state }),
            Expect::Header => Err(at(self.offset, "it ends within its header")),
            Expect::Checksum => Err(at(self.offset, "it ends before its checksum")),
            Expect::Records { left } => {
                Err(at(self.offset, &format!("it ends {left} records too early")))
            }
        }
    }
}

impl Restore {
    /// Decodes one item at the front of `bytes` and returns its length, or `None` if it is incomplete.
    fn take(&mut self, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        match self.expect {
            Expect::Header => {
                let Some(header) = bytes.get(..HEADER_BYTES) else { return Ok(None) };
                self.header(header)?;
                Ok(Some(HEADER_BYTES))
            }
            Expect::Records { left } => {
                let Some((mut prefix, rest)) = bytes.split_at_checked(4) else { return Ok(None) };
                let body_bytes = u32::from_be_bytes(take_array(&mut prefix)?) as usize;
                within("the record", body_bytes, RECORD_BYTES_MAX, "bytes")?;
                let Some(body) = rest.get(..body_bytes) else { return Ok(None) };
                self.record(body)?;
                self.expect = self.after(left - 1);
                Ok(Some(4 + body_bytes))
            }
            Expect::Checksum if bytes.len() < CHECKSUM_BYTES => Ok(None),
            Expect::Checksum => {
                self.expect = Expect::End;
                Ok(Some(CHECKSUM_BYTES))
            }
            Expect::End if bytes.is_empty() => Ok(None),
            Expect::End => Err(Failure::invalid_argument("there are bytes after its end")),
        }
    }

    fn header(&mut self, mut header: &[u8]) -> Result<(), Failure> {
        if take_array(&mut header)? != MAGIC {
            return Err(Failure::invalid_argument("it is not a snapshot of this state machine"));
        }
        self.version = u32::from_be_bytes(take_array(&mut header)?);
        if ![FORMAT_WITH_CHECKSUM, FORMAT_VERSION].contains(&self.version) {
            return Err(Failure::invalid_argument(format!(
                "unknown format version {}; this component restores {FORMAT_WITH_CHECKSUM} and {FORMAT_VERSION}",
                self.version
            )));
        }
        self.state = State::new(u64::from_be_bytes(take_array(&mut header)?));
        self.expect = self.after(u64::from_be_bytes(take_array(&mut header)?));
        Ok(())
    }

    /// Returns the item that follows when `left` records are left.
    fn after(&self, left: u64) -> Expect {
        match left {
            0 if self.version == FORMAT_WITH_CHECKSUM => Expect::Checksum,
            0 => Expect::End,
            left => Expect::Records { left },
        }
    }

    fn record(&mut self, mut body: &[u8]) -> Result<(), Failure> {
        let key_bytes = u16::from_be_bytes(take_array(&mut body)?);
        let key = text("the key", take(&mut body, key_bytes.into())?)?;
        check_key(key)?;
        let key = Key::from(key);
        if self.last_key.as_ref().is_some_and(|last| *last >= key) {
            return Err(Failure::invalid_argument(format!("the key {key:?} is out of order")));
        }
        let [kind] = take_array(&mut body)?;
        let create_revision = u64::from_be_bytes(take_array(&mut body)?);
        let mod_revision = u64::from_be_bytes(take_array(&mut body)?);
        let version = u64::from_be_bytes(take_array(&mut body)?);
        let expires_at_ms = u64::from_be_bytes(take_array(&mut body)?);
        within("the value", body.len(), VALUE_BYTES_MAX, "bytes")?;
        let content = match kind {
            KIND_VALUE => Content::Value(body.to_vec()),
            KIND_TEXT => Content::Text(text("the text", body)?.to_owned()),
            other => return Err(Failure::invalid_argument(format!("unknown kind {other}"))),
        };
        let ordered = 1 <= create_revision
            && create_revision <= mod_revision
            && mod_revision <= self.state.revision()
            && 1 <= version;
        if !ordered {
            return Err(Failure::invalid_argument(format!(
                "the key {key:?} has create revision {create_revision}, revision {mod_revision} and \
                 version {version} in a store of revision {}",
                self.state.revision()
            )));
        }
        self.last_key = Some(key.clone());
        let record = Record { content, create_revision, mod_revision, version, expires_at_ms };
        self.state.insert(key, record);
        Ok(())
    }
}

fn at(offset: u64, what: &str) -> Failure {
    Failure::invalid_argument(format!("the snapshot is damaged at byte {offset}: {what}"))
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Failure> {
    let (taken, rest) = bytes
        .split_at_checked(count)
        .ok_or_else(|| Failure::invalid_argument("the record is shorter than its fields"))?;
    *bytes = rest;
    Ok(taken)
}

fn take_array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Failure> {
    let taken = take(bytes, N)?;
    taken.try_into().map_err(|_| Failure::internal("internal error: a slice has the wrong length"))
}

fn text<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, Failure> {
    std::str::from_utf8(bytes)
        .map_err(|error| Failure::invalid_argument(format!("{what} is not UTF-8: {error}")))
}
