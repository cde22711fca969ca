//! The registry: the components of a cluster, as the log determines them.
//!
//! [`stored`] encodes the registry in a snapshot.
//!
//! # Contract
//! The registry is a function of the log alone. The same entries give the same registry and
//! the same outcomes on every node and after every restart. No function here compiles,
//! blocks or reads a clock.
//!
//! # Caveats
//! The bytes of all components are held in memory, up to [`BYTES_MAX`] in total, and are part of
//! each snapshot. The registry does not check that a component can run: `components` does that
//! before it proposes an activation.

mod stored;

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use conclave_types::{
    Code, ComponentId, Failure, NodeId,
    components::{About, Activation, COMPONENT_BYTES_MAX, ComponentPart},
};

pub use self::stored::Unreadable;

/// The maximum number of components in a cluster. When there is no space, the oldest component is
/// removed that is neither the active nor the previous one.
pub const COMPONENTS_MAX: usize = 8;

/// The maximum total size of the components. The active, the previous and a new one always fit.
pub const BYTES_MAX: u64 = 3 * COMPONENT_BYTES_MAX as u64;

/// The components of a cluster, as the log determines them.
///
/// Invariants:
/// - The active and the previous component are known, and differ.
/// - The bytes of a known component have the hash that is its id.
/// - There are at most [`COMPONENTS_MAX`] components. They have at most [`BYTES_MAX`] bytes, unless
///   one of them is larger than a component that can be pushed. Only an operator can provide such a
///   component.
/// - An upload is incomplete.
///
/// The hashes are checked where the bytes come in. The rest is asserted after each change.
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
    /// The bytes of the component.
    pub bytes: Bytes,
    /// The component's description of itself.
    pub about: About,
    /// The index of the component's last piece; 0 for the initial component.
    pub index: u64,
    /// The index of the last activation; 0 if it was never activated, or for the initial component.
    pub activated_index: u64,
}

/// A component of which some pieces have been applied.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pub(super) component: ComponentId,
    pub(super) total_bytes: u64,
    pub(super) about: About,
    pub(super) pieces: Vec<Bytes>,
    pub(super) received_bytes: u64,
    hasher: Sha256,
}

/// The result of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartApplied {
    /// The offset of the next piece.
    pub next_at: u64,
    /// Set if the cluster has the whole component.
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

    /// Returns whether the part belongs to this upload.
    fn is_of(&self, part: &ComponentPart) -> bool {
        self.component == part.component && self.total_bytes == part.total_bytes
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
    /// Creates the registry of a cluster that starts with this component.
    pub fn begin(component: ComponentId, bytes: Bytes, about: About) -> Self {
        let known = Known { bytes, about, index: 0, activated_index: 0 };
        let known = BTreeMap::from([(component, known)]);
        let registry = Self { known, active: component, previous: None, upload: None };
        registry.assert_invariants();
        registry
    }

    /// Returns the component that the cluster runs.
    pub fn active(&self) -> ComponentId {
        self.active
    }

    /// Returns the component that the cluster ran before.
    pub fn previous(&self) -> Option<ComponentId> {
        self.previous
    }

    /// Returns a component of the cluster.
    pub fn get(&self, component: &ComponentId) -> Option<&Known> {
        self.known.get(component)
    }

    /// Returns all components of the cluster.
    pub fn components(&self) -> impl Iterator<Item = (ComponentId, &Known)> {
        self.known.iter().map(|(id, known)| (*id, known))
    }

    /// Returns the offset of a component's next piece.
    pub fn next_at(&self, component: &ComponentId) -> u64 {
        let upload = self.upload.as_ref().filter(|upload| upload.component == *component);
        upload.map_or(0, |upload| upload.received_bytes)
    }

    /// Applies a piece. A piece that does not follow the previous one changes nothing, and the
    /// result is the offset of the expected piece. So a piece that is proposed twice, or by
    /// two leaders, is harmless.
    ///
    /// There is one upload at a time. The first piece of another component replaces an unfinished upload.
    ///
    /// # Errors
    /// Fails if the piece is invalid, or if the complete component does not have the hash that is its id.
    pub fn apply_part(&mut self, index: u64, part: &ComponentPart) -> Result<PartApplied, Failure> {
        let ComponentPart { component, total_bytes, at, bytes, about } = part;
        if self.known.contains_key(component) {
            return Ok(PartApplied { next_at: *total_bytes, whole: true });
        }
        if *total_bytes == 0 || *total_bytes > COMPONENT_BYTES_MAX as u64 {
            return Err(invalid(format!(
                "the component has {total_bytes} bytes; the limit is {COMPONENT_BYTES_MAX}"
            )));
        }
        let end = at.checked_add(bytes.len() as u64).filter(|end| end <= total_bytes);
        let (Some(end), false) = (end, bytes.is_empty()) else {
            return Err(invalid(format!("{part:?} does not fit into its {total_bytes} bytes")));
        };
        let continues = self.upload.as_ref().is_some_and(|upload| upload.is_of(part));
        if *at == 0 && !continues {
            let about = about.clone().ok_or_else(|| {
                invalid("the first piece of a component has no description".to_owned())
            })?;
            self.upload = Some(Upload::new(*component, *total_bytes, about));
        }
        let Some(upload) = self.upload.as_mut().filter(|upload| upload.is_of(part)) else {
            return Ok(PartApplied { next_at: 0, whole: false });
        };
        if *at != upload.received_bytes {
            return Ok(PartApplied { next_at: upload.received_bytes, whole: false });
        }
        upload.push(bytes.clone());
        let whole = end == *total_bytes;
        if whole {
            self.take_in(index)?;
        }
        self.assert_invariants();
        Ok(PartApplied { next_at: end, whole })
    }

    /// Completes the upload.
    fn take_in(&mut self, index: u64) -> Result<(), Failure> {
        let Some(upload) = self.upload.take() else { return Ok(()) };
        let (component, about) = (upload.component, upload.about.clone());
        let bytes = upload.finish().ok_or_else(|| {
            invalid(format!("the pieces do not add up to component {component}: push it again"))
        })?;
        self.insert(component, Known { bytes, about, index, activated_index: 0 });
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.known.values().map(|known| known.bytes.len() as u64).sum()
    }

    /// Removes the oldest component that is neither active nor previous.
    fn give_way(&mut self) -> bool {
        let may_go =
            self.known.iter().filter(|(id, _)| **id != self.active && Some(**id) != self.previous);
        let oldest = may_go.min_by_key(|(_, known)| known.index).map(|(id, _)| *id);
        oldest.is_some_and(|oldest| self.known.remove(&oldest).is_some())
    }

    /// Checks that the registry and the voters are as they were when the activation was proposed.
    /// The state machine checks the other condition, that the state can be migrated.
    ///
    /// # Errors
    /// Returns the reason why the component is not activated, the same on every node.
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
                "component {from} was to be replaced, but {} is active by now: check the \
                 differences from that component and activate again",
                self.active
            )));
        }
        if *component == self.active {
            return Err(not_activated(format!("component {component} is already active")));
        }
        if ready != voters {
            return Err(not_activated(format!(
                "the voters were {ready:?} when the activation was proposed, and are {voters:?} by now: activate \
                 the component again"
            )));
        }
        Ok(known)
    }

    /// Makes another component the active one, as if it had been pushed and activated at this
    /// index. An operator does this on a stopped node.
    pub fn replace(&mut self, index: u64, component: ComponentId, bytes: Bytes, about: About) {
        if !self.known.contains_key(&component) {
            self.insert(component, Known { bytes, about, index, activated_index: 0 });
        }
        self.activate(index, component);
    }

    /// Adds a component, and removes others to make space.
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

    /// Records that the state has been migrated: the component is active from this
    /// index on. It must be known.
    pub fn activate(&mut self, index: u64, component: ComponentId) {
        if let Some(known) = self.known.get_mut(&component)
            && component != self.active
        {
            known.activated_index = index;
            self.previous = Some(std::mem::replace(&mut self.active, component));
        }
        self.assert_invariants();
    }

    /// Asserts the invariants that need no hash of the bytes.
    fn assert_invariants(&self) {
        let is_known = |id: &ComponentId| self.known.contains_key(id);
        assert!(is_known(&self.active), "the active component is not known");
        assert!(self.previous.iter().all(is_known), "the previous component is not known");
        assert!(self.previous != Some(self.active), "the previous component is the active one");
        assert!(self.known.len() <= COMPONENTS_MAX, "there are too many components");
        let is_large = |known: &Known| known.bytes.len() > COMPONENT_BYTES_MAX;
        assert!(
            self.bytes() <= BYTES_MAX || self.known.values().any(is_large),
            "the components have too many bytes"
        );
        if let Some(upload) = &self.upload {
            assert!(upload.received_bytes < upload.total_bytes, "the upload is complete");
            assert!(upload.total_bytes <= COMPONENT_BYTES_MAX as u64, "the upload is too large");
        }
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
