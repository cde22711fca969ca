//! Compiled code in the node's storage, as the machine needs it.

use std::any::Any;

use conclave_machine::{CompiledCode, Compiling};
use conclave_storage::CompiledStore;
use conclave_types::ComponentId;

/// The compiled code that a node keeps. Cloning shares.
#[derive(Clone)]
pub struct KeptCode(CompiledStore);

impl KeptCode {
    /// Code that is kept in this store.
    pub fn new(store: CompiledStore) -> Self {
        Self(store)
    }

    /// How a component is compiled that is looked for here first.
    pub fn compiling(&self, beside_a_node: bool) -> Compiling<'_> {
        Compiling { kept: Some(self), beside_a_node }
    }

    /// Removes the code of all components but these.
    pub(super) fn retain(&self, keep: impl Fn(&ComponentId) -> bool) {
        self.0.retain(keep);
    }
}

#[allow(unsafe_code, reason = "the store vouches for code that is run as it is")]
// SAFETY: the store returns a file only if each of its pieces opens under this node's data keys, or those of its
// cluster for a shared directory, and is bound to this file, component and engine, to its number and to the number of all
// pieces. So these are the bytes that a process with these keys has put.
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
