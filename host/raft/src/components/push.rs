//! Push of a component: from the client's pieces into the log.
//!
//! The leader collects the pieces in memory. Once they are complete, it loads the component as any
//! node would, so that a component that cannot run never reaches the log. Then it proposes the
//! component piece by piece, each after the previous piece was applied, so that clients' writes
//! come in between. If the leader is lost, the client sends the pieces again to the next leader,
//! which continues in the log where the first one stopped.

use std::{sync::Mutex, time::Duration};

use bytes::{Bytes, BytesMut};
use prost::Message;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{about, lock};
use crate::{Replica, registry::PartApplied};
use conclave_machine::{Component, LoadError};
use conclave_proto::raft::ComponentPartApplied;
use conclave_types::{
    CommandKind, ComponentId, Outcome,
    components::{COMPONENT_BYTES_MAX, ComponentCommand, ComponentPart, PART_BYTES_MAX, Pushed},
    error::Error,
};

/// The maximum size of one request's piece.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// The time without a request after which a push makes room for another.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// The buffer in which a component is collected before it goes into the log.
#[derive(Default)]
pub(super) struct Stage {
    collected: Mutex<Option<Collected>>,
    /// Held while a component is loaded and proposed. A client that retries after its timeout waits here.
    finishing: tokio::sync::Mutex<()>,
}

struct Collected {
    component: ComponentId,
    total_bytes: u64,
    bytes: BytesMut,
    heard: Instant,
}

impl Stage {
    /// Adds a piece. Returns the offset of the next piece, or, as the inner error, the complete bytes.
    fn collect(&self, piece: &ComponentPart) -> Result<Result<u64, Bytes>, Error> {
        let ComponentPart { component, total_bytes, at, bytes, .. } = piece;
        let mut stage = lock(&self.collected);
        match &*stage {
            Some(other) if other.component != *component && other.heard.elapsed() < IDLE_MAX => {
                return Err(Error::busy(format!(
                    "component {} is being pushed: components are pushed one at a time, try again when it is done",
                    other.component
                )));
            }
            Some(same) if same.component == *component && same.total_bytes == *total_bytes => {}
            _ => {
                *stage = Some(Collected {
                    component: *component,
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

    /// Returns the component that is being collected, loaded or proposed.
    pub(super) fn component(&self) -> Option<ComponentId> {
        lock(&self.collected).as_ref().map(|collected| collected.component)
    }

    fn clear(&self, component: ComponentId) {
        let mut stage = lock(&self.collected);
        if stage.as_ref().is_some_and(|collected| collected.component == component) {
            *stage = None;
        }
    }
}

fn check(piece: &ComponentPart) -> Result<(), Error> {
    let ComponentPart { total_bytes, at, bytes, .. } = piece;
    if *total_bytes > COMPONENT_BYTES_MAX as u64 {
        return Err(Error::limit(format!(
            "the component has {total_bytes} bytes; the limit is {COMPONENT_BYTES_MAX}: build it in \
             release mode and strip it of debug information"
        )));
    }
    if *total_bytes == 0 {
        return Err(Error::invalid("the component is empty"));
    }
    if bytes.len() > PIECE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "the piece has {} bytes; the limit is {PIECE_BYTES_MAX}",
            bytes.len()
        )));
    }
    let end = at.checked_add(bytes.len() as u64);
    if bytes.is_empty() || end.is_none_or(|end| end > *total_bytes) {
        return Err(Error::invalid(format!(
            "a piece of {} bytes at {at} does not fit into a component of {total_bytes} bytes",
            bytes.len()
        )));
    }
    Ok(())
}

impl Replica {
    /// Accepts a piece of a component. With the last piece, the component goes into the log.
    pub async fn push_component(
        &self,
        piece: ComponentPart,
        deadline: Instant,
    ) -> Result<Pushed, Error> {
        self.check_leader()?;
        check(&piece)?;
        let id = piece.component;
        let done = async || {
            let status = self.component_status(id).await;
            Pushed { next_at: piece.total_bytes, component: Some(status) }
        };
        if self.registry().get(&id).is_some() {
            return Ok(done().await);
        }
        let bytes = match self.0.components.stage.collect(&piece)? {
            Ok(next_at) => return Ok(Pushed { next_at, component: None }),
            Err(bytes) => bytes,
        };
        let turn = timeout_at(deadline, self.0.components.stage.finishing.lock());
        let _turn = turn.await.map_err(|_| Error::deadline())?;
        if self.fresh_registry(deadline).await?.get(&id).is_none() {
            let loaded = self.load_pushed(id, bytes.clone()).await;
            let loaded = loaded.inspect_err(|_| self.0.components.stage.clear(id))?;
            self.propose_component(&loaded, &bytes, deadline).await?;
        }
        self.0.components.stage.clear(id);
        Ok(done().await)
    }

    /// Checks that a node could run the component.
    async fn load_pushed(&self, id: ComponentId, bytes: Bytes) -> Result<Component, Error> {
        let components = self.0.components.clone();
        let loading = spawn_blocking(move || {
            if ComponentId::of(&bytes) != id {
                return Err(Error::invalid(format!(
                    "the pieces do not add up to component {id}, because the file may have changed meanwhile: push it again"
                )));
            }
            components.compile(id, &bytes).map_err(|error| match error {
                LoadError::Fatal(fatal_error) => Error::caused_by(Error::fatal, fatal_error),
                LoadError::TooLarge { .. } => Error::caused_by(Error::limit, error),
                error => Error::caused_by(Error::invalid, error),
            })
        });
        loading.await.map_err(|error| Error::caused_by(Error::fatal, error))?
    }

    async fn propose_component(
        &self,
        component: &Component,
        bytes: &Bytes,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut at = self.registry().next_at(&component.id());
        let mut begun = false;
        tracing::info!(component = %component.id(), bytes = bytes.len(), at, "proposing a component");
        loop {
            let from = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            let to = (from + PART_BYTES_MAX).min(bytes.len());
            let part = ComponentPart {
                component: component.id(),
                total_bytes: bytes.len() as u64,
                at,
                bytes: bytes.slice(from..to),
                about: (at == 0).then(|| about(component)),
            };
            let command = CommandKind::Component(ComponentCommand::Part(part));
            let applied = self.propose_kind(command, deadline).await?;
            let PartApplied { next_at, whole } = match applied.outcome {
                Some(Outcome::Reply(reply)) => part_from_wire(&reply.response)?,
                Some(Outcome::Failure(failure)) => {
                    return Err(Error::failure(failure).at_index(applied.index));
                }
                Some(Outcome::Trap(_)) | None => {
                    return Err(Error::fatal("the piece of a component has no outcome"));
                }
            };
            if whole {
                return Ok(());
            }
            if next_at == 0 && begun {
                return Err(Error::refused(
                    "another component was pushed meanwhile and replaced this one: push it again",
                ));
            }
            (at, begun) = (next_at, true);
        }
    }
}

/// Encodes the result of a piece as the bytes of a response.
pub(crate) fn part_to_wire(applied: PartApplied) -> Bytes {
    let PartApplied { next_at, whole } = applied;
    ComponentPartApplied { next_at, whole }.encode_to_vec().into()
}

fn part_from_wire(bytes: &Bytes) -> Result<PartApplied, Error> {
    let applied = ComponentPartApplied::decode(bytes.clone());
    let applied = applied
        .map_err(|error| Error::fatal("the response to a piece is malformed").with_source(error))?;
    Ok(PartApplied { next_at: applied.next_at, whole: applied.whole })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn piece(component: u8, at: u64, bytes: &'static [u8]) -> ComponentPart {
        let (component, bytes) = (ComponentId([component; 32]), Bytes::from_static(bytes));
        ComponentPart { component, total_bytes: 6, at, bytes, about: None }
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
    fn one_component_is_pushed_at_a_time() {
        let stage = Stage::default();
        stage.collect(&piece(1, 0, b"abc")).unwrap().unwrap();
        let error = stage.collect(&piece(2, 0, b"abc")).unwrap_err();
        assert!(error.to_string().contains("one at a time"), "{error}");
        stage.clear(ComponentId([2; 32]));
        assert!(stage.collect(&piece(2, 0, b"abc")).is_err());
        stage.clear(ComponentId([1; 32]));
        assert_eq!(stage.collect(&piece(2, 0, b"abc")).unwrap(), Ok(3));
    }

    #[test]
    fn what_cannot_be_a_piece_is_refused() {
        assert!(check(&piece(1, 0, b"abc")).is_ok());
        let huge = ComponentPart { total_bytes: 200 << 20, ..piece(1, 0, b"abc") };
        let error = check(&huge).unwrap_err().to_string();
        assert!(error.contains("209715200 bytes; the limit is 67108864"), "{error}");
        for bad in [piece(1, 4, b"abc"), piece(1, u64::MAX, b"abc"), piece(1, 0, b"")] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
