//! The life of an upgrade on a node: bring a component to all nodes, try it there, activate it.
//!
//! What the log says of components is [`crate::registry::Registry`]; this is what a node makes of it.
//! [`push`] puts a component into the log, [`rehearsals`] tries each on this node's state, [`ask`] hears how
//! far the others are, [`activate`] proposes the change, once all are ready. [`Components`] has what they
//! share: the compiled components, which activations there were, and what the rehearsals found.
//!
//! # Contract
//! - **An activation that is in the log can be applied by every node** that has the log up to it: the bytes
//!   are in the log or in a snapshot before it, and it was proposed only after every voter had compiled
//!   them and tried them on its own state.
//! - Whether it succeeds is decided when it is applied, by the registry and the machine, the same on every
//!   node. What was found before is a courtesy to operators and no part of the state.
//! - **The history knows every component that it meets**: the snapshot's is in the snapshot, and which entries
//!   activated what is kept here until no replay begins before them.
//!
//! # Caveats
//! A component that was ready and does not compile when it is activated is a fault of this node, and it stops
//! applying: the others have gone on with the component. A start loads the compiled code that the run before
//! kept; without it, it compiles what it needs.

mod activate;
mod ask;
mod kept;
mod push;
mod rehearsals;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

pub use self::kept::KeptCode;
pub(super) use self::{ask::status_to_wire, push::part_to_wire, rehearsals::run};
use self::{push::Stage, rehearsals::Tried};
use crate::registry::Registry;
use conclave_machine as machine;
use conclave_machine::{Component, Engine, FatalError, LoadError, Work};
use conclave_storage::raft_types::{Entry, Payload};
use conclave_types::{
    CommandKind, ComponentId,
    components::{About, ComponentCommand},
};

/// What a node knows of components beside the registry.
pub struct Components {
    engine: Engine,
    /// For the machine's randomness: the same on every node.
    seed: [u8; 32],
    /// The component that the log begins with.
    initial_component: Component,
    /// Where compiled code is kept for the next start.
    kept: KeptCode,
    compiled: Mutex<BTreeMap<ComponentId, Component>>,
    /// One component is compiled at a time: it takes all processors as it is.
    compiling: Mutex<()>,
    activations: Mutex<Activations>,
    tried: Mutex<BTreeMap<ComponentId, Tried>>,
    /// One rehearsal at a time: each needs the memory of one more state.
    rehearsing: Mutex<()>,
    stage: Stage,
    /// Notified when the registry has changed.
    pub(super) changed: Notify,
    stopping: AtomicBool,
}

/// Which entries were handed to the machine as activations. Those that the registry refused were not, and a
/// replay must not try them.
#[derive(Default)]
struct Activations {
    by_index: BTreeMap<u64, Component>,
    newest_snapshot: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a component says of itself, for the log.
pub(super) fn about(component: &Component) -> About {
    let description = component.description();
    About {
        name: Arc::from(&*description.name),
        version: Arc::from(&*description.version),
        state_version: description.state_version,
    }
}

impl Components {
    /// Of a node whose log begins with this component.
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
            changed: Notify::new(),
            stopping: AtomicBool::new(false),
        })
    }

    /// What the log begins with.
    pub fn begin(&self) -> Registry {
        let initial_component = &self.initial_component;
        Registry::begin(
            initial_component.id(),
            initial_component.bytes().clone(),
            about(initial_component),
        )
    }

    /// How often this node compiled a component since it started, and how often it loaded kept code instead.
    pub(super) fn compilations(&self) -> [u64; 2] {
        self.engine.compilations()
    }

    /// The component with these bytes, compiled now if it was not before: blocking, for seconds.
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
            let fatal_error =
                FatalError::new(format!("component {} was to be {id}", component.id()));
            return Err(LoadError::Fatal(fatal_error));
        }
        lock(&self.compiled).insert(id, component.clone());
        Ok(component)
    }

    /// Notes that an entry is handed to the machine as an activation. Before it is handed over.
    pub fn note_activation(&self, index: u64, component: Component) {
        lock(&self.activations).by_index.insert(index, component);
    }

    /// What the machine sees of an entry that was applied before.
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

    /// Notes that there is a new snapshot, and forgets the activations that the one before it covers: a
    /// replay may have begun from that one.
    pub(super) fn snapshot_taken(&self, index: u64, registry: &Registry) {
        {
            let mut activations = lock(&self.activations);
            let covered = std::mem::replace(&mut activations.newest_snapshot, index);
            activations.by_index = activations.by_index.split_off(&(covered + 1));
        }
        self.forget(registry);
    }

    /// The components whose code is needed: the cluster's, the one that the log begins with, and one that is being pushed.
    fn needed(&self, registry: &Registry) -> BTreeSet<ComponentId> {
        let known = registry.components().map(|(id, _)| id);
        known.chain([self.initial_component.id()]).chain(self.stage.component()).collect()
    }

    /// Drops the compiled code of what the cluster has forgotten.
    fn forget(&self, registry: &Registry) {
        let needed = self.needed(registry);
        lock(&self.compiled).retain(|id, _| needed.contains(id));
        lock(&self.tried).retain(|id, _| registry.get(id).is_some());
    }

    /// Ends what is under way.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
