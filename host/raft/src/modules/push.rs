//! A module's way into the log.
//!
//! The leader collects the pieces in memory. Once they are whole it loads the module as any node would, so
//! that what nobody could run never reaches the log, and then proposes it piece by piece, each after the one
//! before was applied: writes of clients come in between. If it is lost on the way, the next leader is sent
//! the pieces anew and goes on in the log where the first one stopped.

use std::{sync::Mutex, time::Duration};

use bytes::{Bytes, BytesMut};
use prost::Message;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{about, lock};
use crate::{Replica, registry::PartApplied};
use conclave_machine::{LoadError, Module};
use conclave_proto::raft::ModulePartApplied;
use conclave_types::{
    CommandKind, ModuleId, Outcome,
    error::Error,
    modules::{MODULE_BYTES_MAX, ModuleCommand, ModulePart, PART_BYTES_MAX, Pushed},
};

/// What a client may send at once.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// A push of which nothing was heard for so long makes room for another.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// Where a module is collected before it goes into the log.
#[derive(Default)]
pub(super) struct Stage {
    collected: Mutex<Option<Collected>>,
    /// Held by who loads and proposes a module. A client that lost its patience asks again, and waits here.
    finishing: tokio::sync::Mutex<()>,
}

struct Collected {
    module: ModuleId,
    total_bytes: u64,
    bytes: BytesMut,
    heard: Instant,
}

impl Stage {
    /// Takes in a piece. Where to go on, or all of it.
    fn collect(&self, piece: &ModulePart) -> Result<Result<u64, Bytes>, Error> {
        let ModulePart { module, total_bytes, at, bytes, .. } = piece;
        let mut stage = lock(&self.collected);
        match &*stage {
            Some(other) if other.module != *module && other.heard.elapsed() < IDLE_MAX => {
                return Err(Error::busy(format!(
                    "module {} is being pushed: one at a time, try again when it is done",
                    other.module
                )));
            }
            Some(same) if same.module == *module && same.total_bytes == *total_bytes => {}
            _ => {
                *stage = Some(Collected {
                    module: *module,
                    total_bytes: *total_bytes,
                    bytes: BytesMut::new(),
                    heard: Instant::now(),
                });
            }
        }
        let Some(collected) = stage.as_mut() else { return Ok(Ok(0)) };
        collected.heard = Instant::now();
        let have = collected.bytes.len() as u64;
        if *at == have {
            collected.bytes.extend_from_slice(bytes);
        }
        let have = collected.bytes.len() as u64;
        Ok(if have == *total_bytes {
            Err(Bytes::copy_from_slice(&collected.bytes))
        } else {
            Ok(have)
        })
    }

    /// The module that is being collected, or loaded and proposed.
    pub(super) fn module(&self) -> Option<ModuleId> {
        lock(&self.collected).as_ref().map(|collected| collected.module)
    }

    fn clear(&self, module: ModuleId) {
        let mut stage = lock(&self.collected);
        if stage.as_ref().is_some_and(|collected| collected.module == module) {
            *stage = None;
        }
    }
}

fn check(piece: &ModulePart) -> Result<(), Error> {
    let ModulePart { total_bytes, at, bytes, .. } = piece;
    if *total_bytes > MODULE_BYTES_MAX as u64 {
        return Err(Error::limit(format!(
            "the module has {total_bytes} bytes; the limit is {MODULE_BYTES_MAX}: build it in \
             release mode and strip it of debug information"
        )));
    }
    if *total_bytes == 0 {
        return Err(Error::invalid("the module is empty"));
    }
    if bytes.len() > PIECE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a piece of {} bytes; the limit is {PIECE_BYTES_MAX}",
            bytes.len()
        )));
    }
    let end = at.checked_add(bytes.len() as u64);
    if bytes.is_empty() || end.is_none_or(|end| end > *total_bytes) {
        return Err(Error::invalid(format!(
            "a piece of {} bytes at {at} does not lie in a module of {total_bytes}",
            bytes.len()
        )));
    }
    Ok(())
}

impl Replica {
    /// Takes in a piece of a module; with the last one the module goes into the log.
    pub async fn push_module(&self, piece: ModulePart, deadline: Instant) -> Result<Pushed, Error> {
        self.check_leader()?;
        check(&piece)?;
        let id = piece.module;
        let done = async || {
            let status = self.module_status(id).await;
            Pushed { next_at: piece.total_bytes, module: Some(status) }
        };
        if self.registry().get(&id).is_some() {
            return Ok(done().await);
        }
        let bytes = match self.0.modules.stage.collect(&piece)? {
            Ok(next_at) => return Ok(Pushed { next_at, module: None }),
            Err(bytes) => bytes,
        };
        let turn = timeout_at(deadline, self.0.modules.stage.finishing.lock());
        let _turn = turn.await.map_err(|_| Error::deadline())?;
        if self.fresh_registry(deadline).await?.get(&id).is_none() {
            let loaded = self.load_pushed(id, bytes.clone()).await;
            let loaded = loaded.inspect_err(|_| self.0.modules.stage.clear(id))?;
            self.propose_module(&loaded, &bytes, deadline).await?;
        }
        self.0.modules.stage.clear(id);
        Ok(done().await)
    }

    /// Finds out whether a node would run it.
    async fn load_pushed(&self, id: ModuleId, bytes: Bytes) -> Result<Module, Error> {
        let modules = self.0.modules.clone();
        let loading = spawn_blocking(move || {
            if ModuleId::of(&bytes) != id {
                return Err(Error::invalid(format!(
                    "the pieces do not make module {id}: was the file changed meanwhile? Push it again"
                )));
            }
            modules.compile(id, &bytes).map_err(|error| match error {
                LoadError::Fault(fault) => Error::fault(fault.to_string()),
                LoadError::TooLarge { .. } => Error::limit(error.to_string()),
                error => Error::invalid(error.to_string()),
            })
        });
        loading.await.map_err(|error| Error::fault(error.to_string()))?
    }

    async fn propose_module(
        &self,
        module: &Module,
        bytes: &Bytes,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut at = self.registry().next_at(&module.id());
        let mut begun = false;
        tracing::info!(module = %module.id(), bytes = bytes.len(), at, "a module goes into the log");
        loop {
            let from = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            let to = (from + PART_BYTES_MAX).min(bytes.len());
            let part = ModulePart {
                module: module.id(),
                total_bytes: bytes.len() as u64,
                at,
                bytes: bytes.slice(from..to),
                about: (at == 0).then(|| about(module)),
            };
            let command = CommandKind::Module(ModuleCommand::Part(part));
            let applied = self.propose_kind(command, deadline).await?;
            let PartApplied { next_at, whole } = match applied.outcome {
                Some(Outcome::Reply(reply)) => part_from_wire(&reply.response)?,
                Some(Outcome::Failure(failure)) => {
                    return Err(Error::failure(failure).at_index(applied.index));
                }
                Some(Outcome::Trap(_)) | None => {
                    return Err(Error::fault("a piece of a module was not answered as one"));
                }
            };
            if whole {
                return Ok(());
            }
            if next_at == 0 && begun {
                return Err(Error::refused(
                    "another module that was pushed meanwhile took its place: push it again",
                ));
            }
            (at, begun) = (next_at, true);
        }
    }
}

/// What a piece led to, as an answer's bytes.
pub(crate) fn part_to_wire(applied: PartApplied) -> Bytes {
    let PartApplied { next_at, whole } = applied;
    ModulePartApplied { next_at, whole }.encode_to_vec().into()
}

fn part_from_wire(bytes: &Bytes) -> Result<PartApplied, Error> {
    let applied = ModulePartApplied::decode(bytes.clone());
    let applied =
        applied.map_err(|error| Error::fault(format!("the answer to a piece: {error}")))?;
    Ok(PartApplied { next_at: applied.next_at, whole: applied.whole })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn piece(module: u8, at: u64, bytes: &'static [u8]) -> ModulePart {
        let (module, bytes) = (ModuleId([module; 32]), Bytes::from_static(bytes));
        ModulePart { module, total_bytes: 6, at, bytes, about: None }
    }

    #[test]
    fn pieces_are_collected_in_order_however_often_they_come() {
        let stage = Stage::default();
        let collect = |at, bytes| stage.collect(&piece(1, at, bytes)).unwrap();
        assert_eq!(collect(3, b"def"), Ok(0), "from the beginning, please");
        assert_eq!(collect(0, b"abc"), Ok(3));
        assert_eq!(collect(0, b"abc"), Ok(3));
        assert_eq!(collect(3, b"def"), Err(Bytes::from_static(b"abcdef")));
        assert_eq!(collect(3, b"def"), Err(Bytes::from_static(b"abcdef")), "asked again");
    }

    #[test]
    fn one_module_is_pushed_at_a_time() {
        let stage = Stage::default();
        stage.collect(&piece(1, 0, b"abc")).unwrap().unwrap();
        let error = stage.collect(&piece(2, 0, b"abc")).unwrap_err();
        assert!(error.to_string().contains("one at a time"), "{error}");
        stage.clear(ModuleId([2; 32]));
        assert!(stage.collect(&piece(2, 0, b"abc")).is_err());
        stage.clear(ModuleId([1; 32]));
        assert_eq!(stage.collect(&piece(2, 0, b"abc")).unwrap(), Ok(3));
    }

    #[test]
    fn what_cannot_be_a_piece_is_refused() {
        assert!(check(&piece(1, 0, b"abc")).is_ok());
        let huge = ModulePart { total_bytes: 200 << 20, ..piece(1, 0, b"abc") };
        let error = check(&huge).unwrap_err().to_string();
        assert!(error.contains("209715200 bytes; the limit is 67108864"), "{error}");
        for bad in [piece(1, 4, b"abc"), piece(1, u64::MAX, b"abc"), piece(1, 0, b"")] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
