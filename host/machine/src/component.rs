//! A component that has been checked, compiled and described, and can be instantiated as a state machine.

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
    error::{Broken, FatalError, LoadError},
    instance::Instance,
    log_import,
    state::State,
    thread, wasi,
};
use conclave_types::{
    ComponentId,
    limits::{ClusterLimits, MEMORY_BYTES_MAX},
};

/// The description that a state machine gives of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The name, for display.
    pub name: String,
    /// The version of the state machine, for display.
    pub version: String,
    /// The version of the format of the snapshots that it writes.
    pub state_version: u32,
    /// The versions of snapshots that it can restore. They include `state_version`.
    pub restores: Vec<u32>,
}

/// The linear memory of one instance, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The memory held after instantiation and `describe`.
    pub started_bytes: usize,
    /// The sum of the maxima that its memories declare. A memory without a maximum counts 4 GiB. A
    /// node grants at most [`ClusterLimits::memory_bytes_max`].
    pub declared_bytes_max: usize,
}

/// A component that can be instantiated as a state machine. Cheap to clone.
///
/// Invariants:
/// - It imports only `conclave:fsm/log` and the served part of WASI.
/// - It exports the whole contract.
/// - Its description and descriptor set have been checked.
/// - It has been instantiated once without a trap.
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

/// The maximum length in bytes of a state machine's name, and of its version. Set by the
/// contract in `wit/`.
const NAME_BYTES_MAX: usize = 64;
/// The maximum number of state versions that a component restores. Each is a format that its author
/// still supports.
const RESTORES_MAX: usize = 1024;

impl Component {
    /// Validates, compiles, instantiates and describes a component. Takes seconds for a large
    /// component, on this thread and the compiler's.
    ///
    /// # Errors
    /// Fails if the component cannot be served. The error tells its author the reason.
    pub fn load(engine: &Engine, component: Bytes) -> Result<Self, LoadError> {
        Self::load_with(engine, component, Compiling::default())
    }

    /// Loads a component with options, for example with a store of compiled code.
    ///
    /// # Errors
    /// Fails as [`Component::load`] does.
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

    /// Stores the compiled code in `kept`, for a later [`Component::load_with`].
    pub fn keep_code(&self, kept: &dyn CompiledCode) {
        compiled::keep(
            self.0.engine.code_name(),
            self.id(),
            self.0.pre.instance_pre().component(),
            kept,
        );
    }

    /// Returns the component's id, which is its hash.
    pub fn id(&self) -> ComponentId {
        self.0.id
    }

    /// Returns the bytes of the component.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// Returns the interfaces that it imports, such as `conclave:fsm/log@0.1.0`.
    pub fn imports(&self) -> &[String] {
        &self.0.imports
    }

    /// Returns the memory that an instance holds after its start, and the memory that it declares.
    pub fn memory(&self) -> Memory {
        self.0.memory
    }

    /// Returns the description that the state machine gives of itself.
    pub fn description(&self) -> &Description {
        &self.0.description
    }

    /// Returns the methods of its services, in the order of the descriptor set. An empty list means
    /// that it is called with raw bytes.
    pub fn methods(&self) -> &[MethodSpec] {
        &self.0.methods
    }

    /// Returns the serialized `FileDescriptorSet`, which may be empty.
    pub fn descriptor_set(&self) -> &Bytes {
        &self.0.descriptor_set
    }

    /// Returns the version of the snapshots that it writes.
    pub fn state_version(&self) -> u32 {
        self.0.description.state_version
    }

    /// Returns the engine that compiled it.
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Creates an instance in the initial state. Setting `stop` interrupts its calls,
    /// see [`Instance::new`].
    pub(super) fn instance(
        &self,
        role: &'static str,
        limits: ClusterLimits,
        stop: &Arc<AtomicBool>,
    ) -> Result<Instance, Broken> {
        let stop = Arc::clone(stop);
        self.interruptible(role, limits, move || stop.load(Ordering::Relaxed))
    }

    /// Creates an instance in the initial state. `interrupted` ends its calls, see [`Instance::new`].
    pub(super) fn interruptible(
        &self,
        role: &'static str,
        limits: ClusterLimits,
        interrupted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Instance, Broken> {
        let mut instance = Instance::new(&self.0.engine, &self.0.pre, role, limits, interrupted)?;
        // The last error line is part of the trap report.
        instance.keep_errors();
        Ok(instance)
    }

    /// Returns the reason why the component cannot restore a state of this version, if it cannot.
    pub(super) fn refuses(&self, state_version: u32) -> Option<String> {
        let restores = &self.0.description.restores;
        (!restores.contains(&state_version)).then(|| {
            format!(
                "the state has version {state_version}, and {} restores {restores:?} only",
                self.name()
            )
        })
    }

    /// Returns its name and version, for display.
    pub(super) fn name(&self) -> String {
        let Description { name, version, .. } = &self.0.description;
        if version.is_empty() { name.clone() } else { format!("{name} {version}") }
    }
}

/// Two components are equal if their bytes are.
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

/// Checks that the bytes are a component, before the compiler gets them.
fn check_kind(component: &[u8], bytes_max: usize) -> Result<(), LoadError> {
    // The magic number, then the version and the layer, of 16 bits each.
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

/// Returns the imports, and fails with the name of an import that is not served. Defines the
/// imported parts of WASI in the linker.
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

/// Returns the name of an interface of the contract, and whether this host serves its version.
fn contract_interface(name: &str) -> Option<(&str, bool)> {
    let (interface, version) =
        name.strip_prefix("conclave:fsm/")?.split_once('@').unwrap_or((name, ""));
    Some((interface, version.starts_with("0.1.")))
}

fn link(
    linker: &mut Linker<State>,
    component: &WasmComponent,
) -> Result<MachinePre<State>, LoadError> {
    log_import::link(linker)
        .map_err(|error| LoadError::Fatal(FatalError::new(format!("{error:#}"))))?;
    linker
        .instantiate_pre(component)
        .and_then(MachinePre::new)
        .map_err(|error| LoadError::NotAMachine(format!("{error:#}")))
}

/// Calls `describe` on a temporary instance, and measures its memory.
fn describe(
    engine: &Engine,
    pre: &MachinePre<State>,
) -> Result<(WireDescription, Memory), LoadError> {
    let (engine, pre) = (engine.clone(), pre.clone());
    let described = thread::run("load", engine.limits().thread_stack_bytes(), move || {
        // The cluster's limits may be higher than at its beginning, so the instance gets the
        // highest. The rehearsal finds out whether the component can be activated under the
        // actual limits.
        let most =
            ClusterLimits { memory_bytes_max: MEMORY_BYTES_MAX.max, ..engine.limits().cluster };
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
        Broken::Ended(_) => {
            LoadError::Fatal(broken.ended("the component could not be described").into())
        }
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
            return refuse(format!("its {what} contains control characters"));
        }
    }
    if wire.name.is_empty() {
        return refuse("it has no name".to_owned());
    }
    if wire.restores.len() > RESTORES_MAX {
        return refuse(format!(
            "it lists {} state versions in `restores`; the limit is {RESTORES_MAX}",
            wire.restores.len()
        ));
    }
    if !wire.restores.contains(&wire.state_version) {
        return refuse(format!(
            "it writes snapshots of state version {}, but restores only {:?}: `restores` must include the version itself",
            wire.state_version, wire.restores
        ));
    }
    let WireDescription { name, version, state_version, restores, descriptor_set } = wire;
    Ok((Description { name, version, state_version, restores }, Bytes::from(descriptor_set)))
}
