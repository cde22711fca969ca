//! The store of compiled code, as the engine uses it.

use std::any::Any;

use conclave_machine::{CompiledCode, Compiling};
use conclave_storage::CompiledStore;
use conclave_types::ComponentId;

/// The compiled code that a node keeps. Clones share it.
#[derive(Clone)]
pub struct KeptCode(CompiledStore);

impl KeptCode {
    /// Wraps the code in this store.
    pub fn new(store: CompiledStore) -> Self {
        Self(store)
    }

    /// Returns the settings for compiling a component. Kept code is used instead if there is any.
    pub fn compiling(&self, beside_a_node: bool) -> Compiling<'_> {
        Compiling { kept: Some(self), beside_a_node }
    }

    /// Removes the code of all components for which `keep` returns `false`.
    pub(super) fn retain(&self, keep: impl Fn(&ComponentId) -> bool) {
        self.0.retain(keep);
    }
}

#[allow(unsafe_code, reason = "the store authenticates the code before it is run")]
// SAFETY: the store returns a file only if each of its pieces opens under this node's data keys, or
// under those of its cluster for a shared directory. Each piece is bound to this file, component
// and engine, to its number and to the number of all pieces. So these are the bytes that a process
// with these keys has stored.
unsafe impl CompiledCode for KeptCode {
    fn turn(&self, component: ComponentId) -> Option<Box<dyn Any>> {
        Some(Box::new(self.0.turn(component)?))
    }

    fn get(&self, component: ComponentId, engine: &str) -> Option<Vec<u8>> {
        self.0.get(component, engine)
    }

    fn put(&self, component: ComponentId, engine: &str, code: &[u8]) {
        self.0.put(component, engine, code);
    }
}
