//! A state that has been restored beside the running instances, before the worker continues from it.

use crate::{clock::Clock, component::Component, instance::Instance};
use conclave_types::Digest;

/// A state that two new instances have accepted. See `restore.rs`.
pub struct Restored {
    pub(super) primary: Instance,
    pub(super) standby: Instance,
    pub(super) component: Component,
    pub(super) clock: Clock,
    pub(super) digest: Option<Digest>,
}

impl std::fmt::Debug for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Restored {{ component: {:?}, index: {} }}", self.component, self.clock.index())
    }
}
