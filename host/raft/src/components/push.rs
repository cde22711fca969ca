//! Push of a component: from the client's pieces into the log.
//!
//! The leader collects the pieces in memory. Once they are complete, it loads the component as any
//! node would, so that a component that cannot run never reaches the log. Then it proposes the
//! component piece by piece, each after the previous piece was applied, so that clients' writes
//! come in between. If the leader is lost, the client sends the pieces again to the next leader,
//! which continues in the log where the first one stopped.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{Components, about, catalog::Catalog, part_wire::part_from_wire};
use crate::{limits_proposer::LimitsProposer, node::Node, registry::PartApplied};
use conclave_machine::{Component, LoadError};
use conclave_types::{
    CommandKind, ComponentId, Outcome,
    components::{COMPONENT_BYTES_MAX, ComponentCommand, ComponentPart, PART_BYTES_MAX, Pushed},
    error::Error,
};

/// The maximum size of one request's piece.
const PIECE_BYTES_MAX: usize = 1 << 20;

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

/// Puts pushed components into the log as the leader.
pub(crate) struct Push {
    node: Arc<Node>,
    components: Arc<Components>,
    catalog: Arc<Catalog>,
    limits: Arc<LimitsProposer>,
}

impl Push {
    pub(crate) fn new(
        node: Arc<Node>,
        components: Arc<Components>,
        catalog: Arc<Catalog>,
        limits: Arc<LimitsProposer>,
    ) -> Self {
        Self { node, components, catalog, limits }
    }

    /// Accepts a piece of a component. With the last piece, the component goes into the log.
    pub(crate) async fn piece(
        &self,
        piece: ComponentPart,
        deadline: Instant,
    ) -> Result<Pushed, Error> {
        self.node.check_leader()?;
        check(&piece)?;
        let id = piece.component;
        let done = async || {
            let status = self.catalog.status(id).await;
            Pushed { next_at: piece.total_bytes, component: Some(status) }
        };
        if self.catalog.registry().get(&id).is_some() {
            return Ok(done().await);
        }
        let bytes = match self.components.stage.collect(&piece)? {
            Ok(next_at) => return Ok(Pushed { next_at, component: None }),
            Err(bytes) => bytes,
        };
        let turn = timeout_at(deadline, self.components.stage.finishing.lock());
        let _turn = turn.await.map_err(|_| Error::deadline())?;
        if self.catalog.fresh_registry(deadline).await?.get(&id).is_none() {
            let loaded = self.load_pushed(id, bytes.clone()).await;
            let loaded = loaded.inspect_err(|_| self.components.clear_stage(id))?;
            self.propose_component(&loaded, &bytes, deadline).await?;
        }
        self.components.clear_stage(id);
        Ok(done().await)
    }

    /// Checks that a node could run the component.
    async fn load_pushed(&self, id: ComponentId, bytes: Bytes) -> Result<Component, Error> {
        let components = self.components.clone();
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
        let mut at = self.catalog.registry().next_at(&component.id());
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
            let applied = self.limits.propose_settled(command, deadline).await?;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn piece(component: u8, at: u64, bytes: &'static [u8]) -> ComponentPart {
        let (component, bytes) = (ComponentId([component; 32]), Bytes::from_static(bytes));
        ComponentPart { component, total_bytes: 6, at, bytes, about: None }
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
