//! Upgrades on a node: push a component to all nodes, rehearse it there, activate it.
//!
//! The components in the log are in [`crate::registry::Registry`]; this module acts on them.
//! [`push`] puts a component into the log, [`rehearsals`] tries each component on this node's
//! state, [`catalog`] requests the progress of the other nodes, and [`activate`] proposes the change
//! once all are ready. [`Components`] holds the data that they share: the compiled components, the
//! past activations and the results of rehearsals.
//!
//! # Contract
//! - **An activation in the log can be applied by every node** that has the log up to it. The
//!   component's bytes are in the log or in a snapshot before it, and the activation was proposed
//!   only after every voter had compiled the component and rehearsed it on its own state.
//! - The outcome of an activation is decided when it is applied, by the registry and the state
//!   machine, and is the same on every node. The results of rehearsals inform operators and
//!   are not part of the state.
//! - **Every component that a replay needs is known.** The component of a snapshot is in the
//!   snapshot. The activations in the log are kept here until no replay begins before them.
//!
//! # Caveats
//! If a component that was ready does not compile when it is activated, that is a fault of this
//! node, and the node stops applying entries: the other nodes have continued with the component. A
//! start loads the compiled code that the previous run kept. Without kept code it compiles the
//! components that it needs.

mod activate;
mod catalog;
mod kept;
mod part_wire;
mod push;
mod rehearsals;
mod stage;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::watch;

pub use self::kept::KeptCode;
use self::stage::Stage;
pub(super) use self::{
    activate::Activate,
    catalog::{Catalog, status_to_wire},
    part_wire::part_to_wire,
    push::Push,
    rehearsals::Rehearsals,
};
use crate::registry::Registry;
use conclave_machine as machine;
use conclave_machine::{Component, Engine, FatalError, LoadError, Work};
use conclave_storage::raft_types::{Entry, Payload};
use conclave_types::{
    CommandKind, ComponentId,
    components::{About, ComponentCommand, Rehearsed},
};

/// A node's data about components, apart from the registry.
pub struct Components {
    engine: Engine,
    /// The seed of the state machine's randomness: the same on every node.
    seed: [u8; 32],
    /// The component that the log starts with.
    initial_component: Component,
    /// The compiled code that is kept for the next start.
    kept: KeptCode,
    compiled: Mutex<BTreeMap<ComponentId, Component>>,
    /// Held while a component is compiled: one compilation already uses all processors.
    compiling: Mutex<()>,
    activations: Mutex<Activations>,
    tried: Mutex<BTreeMap<ComponentId, Tried>>,
    /// Held during a rehearsal: each needs the memory of one more state.
    rehearsing: Mutex<()>,
    stage: Stage,
    /// Changes with the registry, and with the components that are needed.
    changed: watch::Sender<()>,
    stopping: AtomicBool,
}

/// The entries that were fed to the worker as activations. Activations that the registry rejected
/// are not among them, and a replay must not run them.
#[derive(Default)]
struct Activations {
    by_index: BTreeMap<u64, Component>,
    newest_snapshot: u64,
}

/// The result of a rehearsal.
#[derive(Clone, Debug)]
struct Tried {
    /// The component that was active then, and whose state was used.
    from: ComponentId,
    result: Result<Rehearsed, String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a component's description of itself, for the log.
pub(super) fn about(component: &Component) -> About {
    let description = component.description();
    About {
        name: Arc::from(&*description.name),
        version: Arc::from(&*description.version),
        state_version: description.state_version,
    }
}

impl Components {
    /// Creates the components of a node whose log starts with this component.
    pub fn new(initial_component: Component, seed: [u8; 32], kept: KeptCode) -> Arc<Self> {
        let compiled = BTreeMap::from([(initial_component.id(), initial_component.clone())]);
        Arc::new(Self {
            engine: initial_component.engine().clone(),
            seed,
            initial_component,
            kept,
            compiled: Mutex::new(compiled),
            compiling: Mutex::default(),
            activations: Mutex::default(),
            tried: Mutex::default(),
            rehearsing: Mutex::default(),
            stage: Stage::default(),
            changed: watch::Sender::new(()),
            stopping: AtomicBool::new(false),
        })
    }

    /// Returns the registry that the log starts with.
    pub fn begin(&self) -> Registry {
        let initial_component = &self.initial_component;
        Registry::begin(
            initial_component.id(),
            initial_component.bytes().clone(),
            about(initial_component),
        )
    }

    /// Returns the component with these bytes, and compiles it if necessary.
    /// Blocks, possibly for seconds.
    pub fn compile(&self, id: ComponentId, bytes: &Bytes) -> Result<Component, LoadError> {
        let known = || lock(&self.compiled).get(&id).cloned();
        if let Some(component) = known() {
            return Ok(component);
        }
        let _turn = lock(&self.compiling);
        if let Some(component) = known() {
            return Ok(component);
        }
        let component =
            Component::load_with(&self.engine, bytes.clone(), self.kept.compiling(true))?;
        if component.id() != id {
            let fatal_error = FatalError::new(format!(
                "the component's id is {} instead of {id}",
                component.id()
            ));
            return Err(LoadError::Fatal(fatal_error));
        }
        lock(&self.compiled).insert(id, component.clone());
        Ok(component)
    }

    /// Records an activation. Called before the entry is fed to the worker.
    pub fn note_activation(&self, index: u64, component: Component) {
        lock(&self.activations).by_index.insert(index, component);
    }

    /// Returns the part of an applied entry that the state machine receives.
    pub fn machine_entry(&self, entry: Entry) -> Option<machine::Entry> {
        let index = entry.log_id.index;
        let Payload::Normal(command) = entry.payload else { return None };
        let work = match command.kind {
            CommandKind::Call(call) => Work::Call(call),
            CommandKind::Tick | CommandKind::SetTime => Work::Tick,
            CommandKind::SetLimits(limits) => Work::SetLimits(limits),
            CommandKind::Component(ComponentCommand::Part(_))
            | CommandKind::ConsistencyCheck(_)
            | CommandKind::Verify => return None,
            CommandKind::Component(ComponentCommand::Activate(_)) => {
                Work::Activate(lock(&self.activations).by_index.get(&index).cloned()?)
            }
        };
        Some(machine::Entry { index, time_ms: command.time_ms, work })
    }

    /// Records a new snapshot, and drops the activations that the previous snapshot covers. A
    /// replay may have started from the previous one.
    pub(super) fn snapshot_taken(&self, index: u64, registry: &Registry) {
        {
            let mut activations = lock(&self.activations);
            let covered = std::mem::replace(&mut activations.newest_snapshot, index);
            activations.by_index = activations.by_index.split_off(&(covered + 1));
        }
        self.forget(registry);
    }

    /// Returns the components whose code is needed: the cluster's, the initial one, and
    /// one that is being pushed.
    fn needed(&self, registry: &Registry) -> BTreeSet<ComponentId> {
        let known = registry.components().map(|(id, _)| id);
        known.chain([self.initial_component.id()]).chain(self.stage.component()).collect()
    }

    /// Drops the compiled code of components that the cluster no longer has.
    fn forget(&self, registry: &Registry) {
        let needed = self.needed(registry);
        lock(&self.compiled).retain(|id, _| needed.contains(id));
        lock(&self.tried).retain(|id, _| registry.get(id).is_some());
    }

    /// Records that the registry has changed.
    pub(super) fn note_change(&self) {
        self.changed.send_replace(());
    }

    /// Returns the changes of the registry, and of the components that are needed.
    fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Discards a component that is no longer being pushed.
    fn clear_stage(&self, component: ComponentId) {
        self.stage.clear(component);
        self.note_change();
    }

    /// Stops rehearsals.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
