//! The components of a cluster, as the log has them.
//!
//! [`stored`] has the registry's bytes in a snapshot.
//!
//! # Contract
//! The registry is a function of the log alone: the same entries give the same registry, and the same
//! answers, on every node and after every restart. Nothing here compiles, blocks, or knows of time.
//!
//! # Caveats
//! The bytes of all components are held in memory, up to [`BYTES_MAX`] together, and are part of each
//! snapshot. Whether a component can run is not known here: `components` finds that out before it
//! proposes an activation.

mod stored;

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use conclave_types::{
    Code, ComponentId, Failure, NodeId,
    components::{About, Activation, COMPONENT_BYTES_MAX, ComponentPart},
};

pub use self::stored::Unreadable;

/// Components that a cluster has at once. When there is no room the oldest one gives way that is neither active
/// nor the one before.
pub const COMPONENTS_MAX: usize = 8;

/// Their bytes together: the active one, the one before and a new one always fit, whatever their sizes.
pub const BYTES_MAX: u64 = 3 * COMPONENT_BYTES_MAX as u64;

/// The components of a cluster, as the log has it.
///
/// Invariants: the active component and the one before are known, and differ; a known component's bytes have the
/// hash that it is named by; there are at most [`COMPONENTS_MAX`] and [`BYTES_MAX`] bytes; of an upload less
/// than all has come.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(super) known: BTreeMap<ComponentId, Known>,
    pub(super) active: ComponentId,
    pub(super) previous: Option<ComponentId>,
    pub(super) upload: Option<Upload>,
}

/// A component that the cluster has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The component.
    pub bytes: Bytes,
    /// What it says of itself.
    pub about: About,
    /// The index of its last piece; 0: the cluster was begun with it.
    pub index: u64,
    /// The index at which it was last activated; 0: never, or the cluster was begun with it.
    pub activated_index: u64,
}

/// A component of which a part has come.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pub(super) component: ComponentId,
    pub(super) total_bytes: u64,
    pub(super) about: About,
    pub(super) pieces: Vec<Bytes>,
    pub(super) received_bytes: u64,
    hasher: Sha256,
}

/// What a piece led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartApplied {
    /// Where the next piece is to begin.
    pub next_at: u64,
    /// The cluster has the component.
    pub whole: bool,
}

impl Upload {
    pub(super) fn new(component: ComponentId, total_bytes: u64, about: About) -> Self {
        let (pieces, hasher) = (Vec::new(), Sha256::new());
        Self { component, total_bytes, about, pieces, received_bytes: 0, hasher }
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        self.hasher.update(&piece);
        self.received_bytes += piece.len() as u64;
        self.pieces.push(piece);
    }

    fn finish(self) -> Option<Bytes> {
        let hash: [u8; 32] = self.hasher.finalize().into();
        if ComponentId(hash) != self.component {
            return None;
        }
        let mut bytes = BytesMut::with_capacity(self.received_bytes as usize);
        self.pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
        Some(bytes.freeze())
    }
}

fn invalid(message: String) -> Failure {
    Failure { code: Code::InvalidArgument, message }
}

fn not_activated(why: impl std::fmt::Display) -> Failure {
    Failure { code: Code::FailedPrecondition, message: format!("not activated: {why}") }
}

impl Registry {
    /// Of a cluster that begins with this component.
    pub fn begin(component: ComponentId, bytes: Bytes, about: About) -> Self {
        let known = Known { bytes, about, index: 0, activated_index: 0 };
        let known = BTreeMap::from([(component, known)]);
        Self { known, active: component, previous: None, upload: None }
    }

    /// The component that the cluster runs.
    pub fn active(&self) -> ComponentId {
        self.active
    }

    /// The component that it ran before.
    pub fn previous(&self) -> Option<ComponentId> {
        self.previous
    }

    /// A component that the cluster has.
    pub fn get(&self, component: &ComponentId) -> Option<&Known> {
        self.known.get(component)
    }

    /// All components that the cluster has.
    pub fn components(&self) -> impl Iterator<Item = (ComponentId, &Known)> {
        self.known.iter().map(|(id, known)| (*id, known))
    }

    /// Where a component's next piece is to begin.
    pub fn next_at(&self, component: &ComponentId) -> u64 {
        let upload = self.upload.as_ref().filter(|upload| upload.component == *component);
        upload.map_or(0, |upload| upload.received_bytes)
    }

    /// Takes in a piece. One that does not follow what has come changes nothing and is told where to go on, so
    /// a piece that is proposed twice, or by two leaders, does no harm.
    ///
    /// One component comes at a time. The first piece of another takes its place: what was left half way is not
    /// waited for.
    ///
    /// # Errors
    /// The piece cannot be one, or the whole does not have the hash that it is named by.
    pub fn apply_part(&mut self, index: u64, part: &ComponentPart) -> Result<PartApplied, Failure> {
        let ComponentPart { component, total_bytes, at, bytes, about } = part;
        if self.known.contains_key(component) {
            return Ok(PartApplied { next_at: *total_bytes, whole: true });
        }
        if *total_bytes == 0 || *total_bytes > COMPONENT_BYTES_MAX as u64 {
            return Err(invalid(format!(
                "a component of {total_bytes} bytes: the limit is {COMPONENT_BYTES_MAX}"
            )));
        }
        let end = at.checked_add(bytes.len() as u64).filter(|end| end <= total_bytes);
        let (Some(end), false) = (end, bytes.is_empty()) else {
            return Err(invalid(format!("{part:?} does not lie in its {total_bytes} bytes")));
        };
        let continues = self.upload.as_ref().is_some_and(|upload| {
            upload.component == *component && upload.total_bytes == *total_bytes
        });
        if *at == 0 && !continues {
            let about = about.clone().ok_or_else(|| {
                invalid("the first piece of a component does not say what it is".to_owned())
            })?;
            self.upload = Some(Upload::new(*component, *total_bytes, about));
        }
        let Some(upload) = self.upload.as_mut().filter(|upload| upload.component == *component)
        else {
            return Ok(PartApplied { next_at: 0, whole: false });
        };
        if *at != upload.received_bytes {
            return Ok(PartApplied { next_at: upload.received_bytes, whole: false });
        }
        upload.push(bytes.clone());
        if end < *total_bytes {
            return Ok(PartApplied { next_at: end, whole: false });
        }
        self.take_in(index)?;
        Ok(PartApplied { next_at: end, whole: true })
    }

    /// The upload is whole.
    fn take_in(&mut self, index: u64) -> Result<(), Failure> {
        let Some(upload) = self.upload.take() else { return Ok(()) };
        let (component, about) = (upload.component, upload.about.clone());
        let bytes = upload.finish().ok_or_else(|| {
            invalid(format!("the pieces do not make component {component}: push it again"))
        })?;
        self.insert(component, Known { bytes, about, index, activated_index: 0 });
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.known.values().map(|known| known.bytes.len() as u64).sum()
    }

    /// Forgets the oldest component that may be forgotten.
    fn give_way(&mut self) -> bool {
        let may_go =
            self.known.iter().filter(|(id, _)| **id != self.active && Some(**id) != self.previous);
        let oldest = may_go.min_by_key(|(_, known)| known.index).map(|(id, _)| *id);
        oldest.is_some_and(|oldest| self.known.remove(&oldest).is_some())
    }

    /// Whether everything is as it was when the activation was proposed. What it needs beside that, that the
    /// state can be carried over, the machine finds out.
    ///
    /// # Errors
    /// Why it is not activated, the same on every node.
    pub fn check(
        &self,
        activation: &Activation,
        voters: &BTreeSet<NodeId>,
    ) -> Result<&Known, Failure> {
        let Activation { component, from, voters: ready } = activation;
        let known = self.known.get(component).ok_or_else(|| {
            not_activated(format!("the cluster does not have component {component}: push it first"))
        })?;
        if *from != self.active {
            return Err(not_activated(format!(
                "component {from} was to be replaced, but {} is active by now: look at the \
                 difference to that one and activate again",
                self.active
            )));
        }
        if *component == self.active {
            return Err(not_activated(format!("component {component} is active already")));
        }
        if ready != voters {
            return Err(not_activated(format!(
                "the voters were {ready:?} when it was proposed, and are {voters:?} by now: activate \
                 it again"
            )));
        }
        Ok(known)
    }

    /// Another component is the active one, as if it had been brought and activated at this index. By an operator's word,
    /// on a stopped node.
    pub fn replace(&mut self, index: u64, component: ComponentId, bytes: Bytes, about: About) {
        if !self.known.contains_key(&component) {
            self.insert(component, Known { bytes, about, index, activated_index: 0 });
        }
        self.activate(index, component);
    }

    /// Takes in a component, and forgets others to make room.
    fn insert(&mut self, component: ComponentId, known: Known) {
        while self.known.len() >= COMPONENTS_MAX
            || self.bytes() + known.bytes.len() as u64 > BYTES_MAX
        {
            if !self.give_way() {
                break;
            }
        }
        self.known.insert(component, known);
    }

    /// The state has been carried over: the component is active from this index on. It must be known.
    pub fn activate(&mut self, index: u64, component: ComponentId) {
        if let Some(known) = self.known.get_mut(&component)
            && component != self.active
        {
            known.activated_index = index;
            self.previous = Some(std::mem::replace(&mut self.active, component));
        }
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
