//! Compiles components with bounded resources, and keeps compiled code across processes.
//!
//! # Contract
//! 1. Compiled code is native code that is executed as it is. wasmtime's `Component::deserialize`
//!    is unsafe and checks little, so it is called only with bytes that a [`CompiledCode`]
//!    returned. That trait is unsafe to implement. Its implementation vouches that this node, or
//!    another that shares its keys, serialized these bytes, and that they are unchanged. Storage
//!    can vouch for that because it authenticates each file.
//! 2. Kept code is an optimization. If there is none, or if wasmtime rejects it (another version,
//!    target, processor or set of options), the component is compiled.
//! 3. While a node serves, compiling uses at most half of the processors, but at least one. Its
//!    threads have a low priority, so that heartbeats, the log and applying come first.
//!
//! # Caveats
//! Compiling cannot be interrupted. The component's size bounds the time that it takes.

use std::{any::Any, num::NonZeroUsize, thread};

use wasmtime::component::Component;

use super::{error::LoadError, metrics::Metrics};
use conclave_types::ComponentId;

/// The nice value of compiler threads: they yield to all other threads on the host. 19 is the
/// lowest priority.
const NICE: i32 = 10;

/// A store of compiled code, for the next start or for other nodes on the same host.
///
/// `engine` names everything that compiled code depends on except the component.
///
/// # Safety
/// [`CompiledCode::get`] must return the bytes that [`CompiledCode::put`] was given for the same
/// component and engine, by a process that holds the same secret. They must be complete and
/// unchanged, whatever happened to the storage medium. The bytes are executed.
#[allow(unsafe_code, reason = "the implementation vouches for code that is run as it is")]
pub unsafe trait CompiledCode: Send + Sync {
    /// Waits until no other process compiles this component, and keeps others waiting until the
    /// result is dropped.
    fn turn(&self, component: ComponentId) -> Option<Box<dyn Any>>;

    /// Returns the code of a component, if it is kept.
    fn get(&self, component: ComponentId, engine: &str) -> Option<Vec<u8>>;

    /// Keeps the code of a component.
    fn put(&self, component: ComponentId, engine: &str, code: &[u8]);
}

/// Options for compiling a component.
#[derive(Clone, Copy, Default)]
pub struct Compiling<'a> {
    /// The store in which compiled code is kept.
    pub kept: Option<&'a dyn CompiledCode>,
    /// Whether a node serves at the same time. If so, at most half of the processors are used.
    pub beside_a_node: bool,
}

/// Loads the kept code of a component, or compiles it. `name` is the engine's name, see [`CompiledCode`].
pub(super) fn component(
    engine: &wasmtime::Engine,
    name: &str,
    (id, bytes): (ComponentId, &[u8]),
    how: Compiling<'_>,
    metrics: &Metrics,
) -> Result<Component, LoadError> {
    // Held until the code is loaded or compiled.
    let _turn = how.kept.and_then(|kept| kept.turn(id));
    if let Some(component) = how.kept.and_then(|kept| load(engine, name, id, kept)) {
        metrics.loaded.inc();
        return Ok(component);
    }
    let component = compile(engine, bytes, how.beside_a_node)?;
    metrics.compiled.inc();
    if let Some(kept) = how.kept {
        keep(name, id, &component, kept);
    }
    Ok(component)
}

/// Serializes a compiled component into the store.
pub(super) fn keep(name: &str, id: ComponentId, component: &Component, kept: &dyn CompiledCode) {
    match component.serialize() {
        Ok(code) => kept.put(id, name, &code),
        Err(error) => tracing::warn!(component = %id, %error, "compiled code cannot be kept"),
    }
}

fn load(
    engine: &wasmtime::Engine,
    name: &str,
    id: ComponentId,
    kept: &dyn CompiledCode,
) -> Option<Component> {
    let code = kept.get(id, name)?;
    #[allow(unsafe_code, reason = "wasmtime has no safe way to load compiled code")]
    // SAFETY: `CompiledCode` vouches that these are the bytes that `Component::serialize` returned
    // for this component, complete and unchanged. wasmtime itself rejects code of another version,
    // target, processor or set of options.
    let component = unsafe { Component::deserialize(engine, code) };
    component
        .inspect_err(|error| {
            tracing::info!(component = %id, error = format!("{error:#}"), "the kept code is for another engine; compiling the component again");
        })
        .ok()
}

/// Compiles a component on a temporary pool of threads.
fn compile(
    engine: &wasmtime::Engine,
    bytes: &[u8],
    beside_a_node: bool,
) -> Result<Component, LoadError> {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = if beside_a_node { (processors / 2).max(1) } else { processors };
    let compile =
        || Component::new(engine, bytes).map_err(|error| LoadError::Compile(format!("{error:#}")));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|number| format!("compile-{number}"))
        .start_handler(|_| lower_priority())
        .build();
    match pool {
        // wasmtime's parallel loops run in the pool of the thread that calls it.
        Ok(pool) => pool.install(compile),
        Err(error) => {
            tracing::warn!(%error, "cannot start compiler threads; compiling on the calling thread");
            compile()
        }
    }
}

/// Lowers the priority of this thread: on Linux, each thread has its own nice value. A priority
/// that is already lower is kept.
fn lower_priority() {
    use rustix::process::{getpriority_process, setpriority_process};
    let lower = |nice: i32| if nice < NICE { setpriority_process(None, NICE) } else { Ok(()) };
    if cfg!(target_os = "linux")
        && let Err(error) = getpriority_process(None).and_then(lower)
    {
        tracing::debug!(%error, "cannot lower the priority of a compiler thread");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::{collections::HashMap, sync::Mutex};

    use super::*;
    use crate::{Engine, Limits};

    const ID: ComponentId = ComponentId([1; 32]);

    /// A store of compiled code in memory.
    #[derive(Default)]
    struct Memory(Mutex<HashMap<(ComponentId, String), Vec<u8>>>);

    #[allow(unsafe_code, reason = "see `CompiledCode`")]
    // SAFETY: `get` returns exactly the bytes that `put` was given.
    unsafe impl CompiledCode for Memory {
        fn turn(&self, _: ComponentId) -> Option<Box<dyn Any>> {
            None
        }

        fn get(&self, component: ComponentId, engine: &str) -> Option<Vec<u8>> {
            self.0.lock().unwrap().get(&(component, engine.to_owned())).cloned()
        }

        fn put(&self, component: ComponentId, engine: &str, code: &[u8]) {
            self.0.lock().unwrap().insert((component, engine.to_owned()), code.to_vec());
        }
    }

    /// Compiles or loads the component and returns how often each of the two was done.
    fn get(engine: &Engine, name: &str, kept: &Memory) -> [u64; 2] {
        let metrics = Metrics::default();
        let bytes = wat::parse_str("(component)").unwrap();
        let how = Compiling { kept: Some(kept), beside_a_node: true };
        component(engine.inner(), name, (ID, &bytes), how, &metrics).unwrap();
        [metrics.compiled.get(), metrics.loaded.get()]
    }

    #[test]
    fn kept_code_is_loaded_and_code_for_another_engine_is_compiled_again() {
        let kept = Memory::default();
        let new = || Engine::new(&Limits::default()).unwrap();
        assert_eq!(get(&new(), "a", &kept), [1, 0]);
        assert_eq!(get(&new(), "a", &kept), [0, 1], "another process");
        assert_eq!(get(&new(), "b", &kept), [1, 0], "another engine");
        // wasmtime itself rejects code that another engine has stored under this name. The new
        // code replaces it.
        let other = Engine::interpreter(&Limits::default()).unwrap();
        assert_eq!(get(&other, "a", &kept), [1, 0]);
        assert_eq!(get(&other, "a", &kept), [0, 1]);
    }

    /// Returns the kernel's nice value of this thread.
    #[cfg(target_os = "linux")]
    fn nice_of_this_thread() -> i64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_threads_that_compile_have_a_low_priority() {
        let before = nice_of_this_thread();
        let lowered = thread::spawn(|| {
            lower_priority();
            nice_of_this_thread()
        });
        assert_eq!(lowered.join().unwrap(), i64::from(NICE).max(before));
        assert_eq!(nice_of_this_thread(), before);
    }
}
