//! A component: a component that was found to be a machine, compiled and described.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use wasmtime::component::{Component as WasmComponent, Linker, types::ComponentItem};

use super::{
    bindings::{MachinePre, conclave::fsm::types::Description as WireDescription},
    compiled::{self, CompiledCode, Compiling},
    composition,
    descriptors::{self, MethodSpec},
    engine::Engine,
    error::{FatalError, LoadError},
    guest_log,
    instance::{Instance, State},
    thread,
    trap::Broken,
    wasi,
};
use conclave_types::{
    ComponentId,
    limits::{ClusterLimits, MEMORY_BYTES_MOST},
};

/// What a machine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// For people.
    pub name: String,
    /// The machine's own version, for people.
    pub version: String,
    /// The version of the format that it writes snapshots in.
    pub state_version: u32,
    /// The versions that it restores. Holds `state_version`.
    pub restores: Vec<u32>,
}

/// The linear memory of one instance, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What it holds once it was started and described.
    pub started_bytes: usize,
    /// What its memories declare as their maximum, together; 4 GiB for one that declares none. A node
    /// allows at most [`ClusterLimits::memory_bytes_max`] of it.
    pub declared_bytes_max: usize,
}

/// A machine that can be started. Cheap to clone.
///
/// Invariants: it imports nothing but `conclave:fsm/log` and what it gets of WASI; it exports the whole contract; its
/// description and descriptor set have been checked; it was instantiated once without a trap.
#[derive(Clone)]
pub struct Component(Arc<Inner>);

struct Inner {
    engine: Engine,
    id: ComponentId,
    bytes: Bytes,
    pre: MachinePre<State>,
    imports: Vec<String>,
    memory: Memory,
    description: Description,
    descriptor_set: Bytes,
    methods: Vec<MethodSpec>,
}

/// A machine's name and its version, in bytes each. From the contract in `wit/`.
const NAME_BYTES_MAX: usize = 64;
/// State versions that a machine restores. Each is a format that its author still knows.
const RESTORES_MAX: usize = 1024;

impl Component {
    /// Validates, compiles, starts and describes a component. Takes seconds for a large one, on this
    /// thread and the compiler's.
    ///
    /// # Errors
    /// Why it is not served, for its author.
    pub fn load(engine: &Engine, component: Bytes) -> Result<Self, LoadError> {
        Self::load_with(engine, component, Compiling::default())
    }

    /// The same, with a place where compiled code is kept, for example.
    ///
    /// # Errors
    /// As for [`Component::load`].
    pub fn load_with(
        engine: &Engine,
        component: Bytes,
        how: Compiling<'_>,
    ) -> Result<Self, LoadError> {
        check_kind(&component, engine.limits().component_bytes_max)?;
        composition::check(&component)?;
        let id = ComponentId::of(&component);
        let compiled = engine.compile(id, &component, how)?;
        let mut linker = Linker::new(engine.inner());
        let imports = check_imports(engine, &compiled, &mut linker)?;
        let pre = link(&mut linker, &compiled)?;
        let (described, memory) = describe(engine, &pre)?;
        let (description, descriptor_set) = check_description(described)?;
        let methods = descriptors::methods(&descriptor_set)?;
        let engine = engine.clone();
        Ok(Self(Arc::new(Inner {
            engine,
            id,
            bytes: component,
            pre,
            imports,
            memory,
            description,
            descriptor_set,
            methods,
        })))
    }

    /// Keeps its compiled code, for [`Component::load_with`].
    pub fn keep_code(&self, kept: &dyn CompiledCode) {
        compiled::keep(
            self.0.engine.code_name(),
            self.id(),
            self.0.pre.instance_pre().component(),
            kept,
        );
    }

    /// The component's name: its hash.
    pub fn id(&self) -> ComponentId {
        self.0.id
    }

    /// The component itself.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// The interfaces that it imports, such as `conclave:fsm/log@0.1.0`.
    pub fn imports(&self) -> &[String] {
        &self.0.imports
    }

    /// What an instance needs and may need of memory.
    pub fn memory(&self) -> Memory {
        self.0.memory
    }

    /// What the machine says of itself.
    pub fn description(&self) -> &Description {
        &self.0.description
    }

    /// The methods of its services, in the order of the descriptor set. Empty: called with raw bytes.
    pub fn methods(&self) -> &[MethodSpec] {
        &self.0.methods
    }

    /// The serialized `FileDescriptorSet`; may be empty.
    pub fn descriptor_set(&self) -> &Bytes {
        &self.0.descriptor_set
    }

    /// The version of the snapshots it writes.
    pub fn state_version(&self) -> u32 {
        self.0.description.state_version
    }

    /// The engine that compiled it.
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// An instance in the machine's initial state. See [`Instance::new`]; `stop` interrupts.
    pub(super) fn instance(
        &self,
        role: &'static str,
        limits: ClusterLimits,
        stop: &Arc<AtomicBool>,
    ) -> Result<Instance, Broken> {
        let stop = Arc::clone(stop);
        self.interruptible(role, limits, move || stop.load(Ordering::Relaxed))
    }

    /// An instance in the initial state that `interrupted` ends, see [`Instance::new`].
    pub(super) fn interruptible(
        &self,
        role: &'static str,
        limits: ClusterLimits,
        interrupted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Instance, Broken> {
        let mut instance = Instance::new(&self.0.engine, &self.0.pre, role, limits, interrupted)?;
        // For whoever looks into a trap.
        instance.keep_errors();
        Ok(instance)
    }

    /// Why it cannot go on with a state of this version.
    pub(super) fn refuses(&self, state_version: u32) -> Option<String> {
        let restores = &self.0.description.restores;
        (!restores.contains(&state_version)).then(|| {
            format!(
                "the state has version {state_version}, and {} restores {restores:?} only",
                self.name()
            )
        })
    }

    /// Its name and version, for people.
    pub(super) fn name(&self) -> String {
        let Description { name, version, .. } = &self.0.description;
        if version.is_empty() { name.clone() } else { format!("{name} {version}") }
    }
}

/// Components are equal if their bytes are.
impl PartialEq for Component {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Component {}

impl std::fmt::Debug for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Component({} {} {})",
            self.0.description.name, self.0.description.version, self.0.id
        )
    }
}

/// Tells a component from everything else that people hand in, before the compiler sees it.
fn check_kind(component: &[u8], bytes_max: usize) -> Result<(), LoadError> {
    // The magic number, then a version and a layer of 16 bits each.
    const CORE: [u8; 8] = *b"\0asm\x01\0\0\0";
    if component.len() > bytes_max {
        return Err(LoadError::TooLarge { bytes: component.len(), bytes_max });
    }
    if component.starts_with(&CORE) {
        return Err(LoadError::CoreModule);
    }
    if component.starts_with(b"\0asm") {
        return Ok(());
    }
    let hint = if component.trim_ascii_start().starts_with(b"(") {
        "; it looks like WebAssembly text: turn it into binary with `wasm-tools parse`"
    } else if component.starts_with(b"\x7fELF") {
        "; it is a native program: build for wasm32-unknown-unknown"
    } else if component.is_empty() {
        "; it is empty"
    } else {
        ""
    };
    Err(LoadError::NotWasm { hint })
}

/// The imports, without any that no machine gets: such a one is refused by its name. What there is of WASI
/// is defined on the way.
fn check_imports(
    engine: &Engine,
    component: &WasmComponent,
    linker: &mut Linker<State>,
) -> Result<Vec<String>, LoadError> {
    let ty = component.component_type();
    let mut imports = Vec::new();
    for (name, import) in ty.imports(engine.inner()) {
        match contract_interface(name) {
            Some(("log" | "types", true)) => {}
            Some(("log" | "types", false)) => {
                return Err(LoadError::WrongVersion { found: name.to_owned() });
            }
            _ => match &import.ty {
                ComponentItem::ComponentInstance(wanted) if name.starts_with("wasi:") => {
                    wasi::link(linker, name, wanted)?;
                }
                _ => return Err(LoadError::foreign(name)),
            },
        }
        imports.push(name.to_owned());
    }
    let mut exported = None;
    for (name, _) in ty.exports(engine.inner()) {
        match contract_interface(name) {
            Some(("fsm", true)) => return Ok(imports),
            Some(("fsm", false)) => exported = Some(name.to_owned()),
            _ => {}
        }
    }
    Err(match exported {
        Some(found) => LoadError::WrongVersion { found },
        None => LoadError::NotAMachine("it does not export conclave:fsm/fsm@0.1.0".to_owned()),
    })
}

/// The name of an interface of the contract, and whether its version is one that this host serves.
fn contract_interface(name: &str) -> Option<(&str, bool)> {
    let (interface, version) =
        name.strip_prefix("conclave:fsm/")?.split_once('@').unwrap_or((name, ""));
    Some((interface, version.starts_with("0.1.")))
}

fn link(
    linker: &mut Linker<State>,
    component: &WasmComponent,
) -> Result<MachinePre<State>, LoadError> {
    guest_log::link(linker)
        .map_err(|error| LoadError::Fatal(FatalError::new(format!("{error:#}"))))?;
    linker
        .instantiate_pre(component)
        .and_then(MachinePre::new)
        .map_err(|error| LoadError::NotAMachine(format!("{error:#}")))
}

/// Asks a throwaway instance what the machine is, and looks at its memory.
fn describe(
    engine: &Engine,
    pre: &MachinePre<State>,
) -> Result<(WireDescription, Memory), LoadError> {
    let (engine, pre) = (engine.clone(), pre.clone());
    let described =
        thread::run("conclave-load", engine.limits().thread_stack_bytes(), move || {
            // The cluster's limits may be higher than at its beginning. Whether the component can be activated under
            // them is found out by its rehearsal.
            let most =
                ClusterLimits { memory_bytes_max: MEMORY_BYTES_MOST, ..engine.limits().cluster };
            let mut instance = Instance::new(&engine, &pre, "load", most, || false)?;
            let description = instance.describe()?;
            let memory = Memory {
                started_bytes: instance.memory_bytes(),
                declared_bytes_max: instance.memory_bytes_declared(),
            };
            Ok((description, memory))
        })?;
    described.map_err(|broken| match broken {
        Broken::Trap(trap) => LoadError::Traps(trap),
        other => LoadError::Fatal(other.into_fatal("the component could not be described")),
    })
}

fn check_description(wire: WireDescription) -> Result<(Description, Bytes), LoadError> {
    let refuse = |why: String| Err(LoadError::Description(why));
    for (what, text) in [("name", &wire.name), ("version", &wire.version)] {
        if text.len() > NAME_BYTES_MAX {
            return refuse(format!(
                "its {what} has {} bytes; the limit is {NAME_BYTES_MAX}",
                text.len()
            ));
        }
        if text.chars().any(char::is_control) {
            return refuse(format!("its {what} holds control characters"));
        }
    }
    if wire.name.is_empty() {
        return refuse("it has no name".to_owned());
    }
    if wire.restores.len() > RESTORES_MAX {
        return refuse(format!(
            "it restores {} state versions; the limit is {RESTORES_MAX}",
            wire.restores.len()
        ));
    }
    if !wire.restores.contains(&wire.state_version) {
        return refuse(format!(
            "it writes snapshots of state version {}, but restores {:?} only: `restores` must hold the version itself",
            wire.state_version, wire.restores
        ));
    }
    let WireDescription { name, version, state_version, restores, descriptor_set } = wire;
    Ok((Description { name, version, state_version, restores }, Bytes::from(descriptor_set)))
}
