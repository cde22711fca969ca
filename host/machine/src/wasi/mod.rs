//! WASI 0.2 for machines, without a world behind it.
//!
//! # Purpose
//! Toolchains that bring a runtime along (Python, Go, JavaScript, Rust for wasm32-wasip2) make components
//! that import WASI, whether the machine uses it or not. A machine gets as much of it as can be a function
//! of the log.
//!
//! # Contract
//! | interface | what a machine finds |
//! |---|---|
//! | `wasi:clocks` | both clocks show the entry's time; it does not pass within a call |
//! | `wasi:random` | a stream that the entry's `seed` begins, anew with each call; not a secret |
//! | `wasi:random/insecure-seed` | one constant: what hash tables are seeded with is the same everywhere |
//! | `wasi:cli/stdout`, `stderr` | lines of the node's log, limited like those of `conclave:fsm/log` |
//! | `wasi:cli/stdin` | is at its end |
//! | `wasi:cli/environment` | no variables, no arguments |
//! | `wasi:cli/exit` | a trap |
//! | `wasi:cli/terminal-*` | there is none |
//! | `wasi:io/poll` | everything is ready at once: nothing waits |
//! | `wasi:filesystem` | no directory, so no file can be opened |
//! | `wasi:sockets` | no socket can be made, no name be resolved |
//!
//! 1. A query sees the time and the seed of the last entry applied, as its `context` does. Every other call
//!    (instantiation, `describe`, snapshots and restores) sees [`EntryContext::STILL`]: one moment, for ever.
//! 2. An instance is described before anything else, so that what a runtime initializes with its first call
//!    is the same in an instance that lives through the log and in a restored one.
//! 3. What is not in the table is refused when a component is loaded, by the name of the function.
//!
//! # Caveats
//! - Files and sockets are there, with nothing to open, because toolchains link them into every component;
//!   a machine that tries gets its language's ordinary error.
//! - A machine that waits for the clock to move waits until its fuel is used up.
//! - Generators that are seeded once and go on from call to call, and hash tables that count how many were
//!   made before them, are state that no snapshot holds: their order and their numbers must not reach an
//!   answer. The SDK for Python seeds `random` with each entry.
//! - The stream is fixed for ever: replays depend on it ([`random`] has the test).
//!
//! # Why not `wasmtime-wasi`
//! It serves the same interfaces from real clocks, sockets, directories and an executor of tokio's. All of it
//! would have to be turned off and held off through its releases, and what it forgets to ask us for would be
//! an outcome that differs between nodes. What is left of WASI without a world fits on these pages.

mod absent;
mod cli;
mod clocks;
mod io;
mod random;
mod wire;

use wasmtime::{
    StoreContextMut,
    component::{
        ComponentNamedList, Lift, Linker, LinkerInstance, Lower, ResourceType,
        types::{ComponentInstance, ComponentItem},
    },
};

use super::{
    bench,
    error::{FatalError, LoadError},
    guest_log::charge,
    instance::{EntryContext, State},
};

/// Changes with everything here that outcomes depend on; part of the engine's fingerprint.
pub(super) const VERSION: u32 = 1;

/// The fuel of a call into the host, by about the time that it takes.
const FUEL_PER_CALL: u64 = 100;

/// Two streams are written to.
const STREAMS: usize = 2;

/// What one instance's WASI remembers.
pub(super) struct Wasi {
    context: EntryContext,
    /// Begun with the first byte that a call asks for.
    random: Option<blake3::OutputReader>,
    /// The beginnings of lines, one for each stream. Empty between calls.
    lines: [Vec<u8>; STREAMS],
}

impl EntryContext {
    /// What calls see that no entry brings about: the first second of the year 2000. Not zero, since
    /// Go's runtime takes a clock that shows zero for a broken one.
    pub(super) const STILL: Self = Self { index: 0, time_ms: 946_684_800_000, seed: 0 };
}

impl Wasi {
    pub(super) fn new() -> Self {
        Self { context: EntryContext::STILL, random: None, lines: Default::default() }
    }

    /// A call begins.
    pub(super) fn begin(&mut self, context: EntryContext) {
        if bench::bare() {
            return;
        }
        self.context = context;
        self.random = None;
    }
}

impl State {
    /// A call has ended. What it has printed without an end of line is a line.
    pub(super) fn end_call(&mut self) {
        self.wasi.begin(EntryContext::STILL);
        for stream in 0..STREAMS {
            if !self.wasi.lines[stream].is_empty() {
                io::end_line(self, stream);
            }
        }
    }
}

type Context<'a> = StoreContextMut<'a, State>;
type Definitions<'a> = LinkerInstance<'a, State>;

/// Defines what a component asks for of `import`, an interface of WASI.
pub(super) fn link(
    linker: &mut Linker<State>,
    import: &str,
    wanted: &ComponentInstance,
) -> Result<(), LoadError> {
    let interface = interface(import)?;
    let engine = linker.engine().clone();
    let fatal_error =
        |error: wasmtime::Error| LoadError::Fatal(FatalError::new(format!("{error:#}")));
    let mut to = linker.instance(import).map_err(fatal_error)?;
    for (name, wanted) in wanted.exports(&engine) {
        let known = match wanted.ty {
            ComponentItem::ComponentFunc(_) => function(&mut to, interface, name),
            ComponentItem::Resource(_) => resource(&mut to, name),
            // Records and the like are compared with ours where functions use them.
            ComponentItem::Type(_) => Ok(true),
            _ => Ok(false),
        };
        if !known.map_err(fatal_error)? {
            return Err(LoadError::foreign(&format!("{import}#{name}")));
        }
    }
    Ok(())
}

/// `cli/stdout`, if the import is of a package and a version that a machine gets.
fn interface(import: &str) -> Result<&str, LoadError> {
    let named = import.strip_prefix("wasi:").unwrap_or(import);
    let (interface, version) = named.split_once('@').unwrap_or((named, ""));
    let package = interface.split_once('/').map_or("", |(package, _)| package);
    if !["cli", "clocks", "filesystem", "io", "random", "sockets"].contains(&package) {
        return Err(LoadError::foreign(import));
    }
    // A release, not a draft of one.
    let released = version.strip_prefix("0.2.").is_some_and(|patch| patch.parse::<u32>().is_ok());
    if !released {
        return Err(LoadError::WasiVersion { found: import.to_owned() });
    }
    Ok(interface)
}

/// Defines one function, if it is known.
fn function(to: &mut Definitions<'_>, interface: &str, name: &str) -> wasmtime::Result<bool> {
    match interface.split_once('/') {
        Some(("cli", interface)) => cli::define(to, interface, name),
        Some(("clocks", interface)) => clocks::define(to, interface, name),
        Some(("io", interface)) => io::define(to, interface, name),
        Some(("random", interface)) => random::define(to, interface, name),
        Some(("filesystem" | "sockets", interface)) => absent::define(to, interface, name),
        _ => Ok(false),
    }
}

/// Defines a type of handles, if it is known. None of them holds anything in the host.
fn resource(to: &mut Definitions<'_>, name: &str) -> wasmtime::Result<bool> {
    let ty = match name {
        "pollable" => ResourceType::host::<wire::Pollable>(),
        "input-stream" => ResourceType::host::<wire::Input>(),
        "output-stream" => ResourceType::host::<wire::Output>(),
        "network" => ResourceType::host::<wire::Network>(),
        "error" => ResourceType::host::<wire::IoError>(),
        "terminal-input" => ResourceType::host::<wire::TerminalInput>(),
        "terminal-output" => ResourceType::host::<wire::TerminalOutput>(),
        "descriptor" => ResourceType::host::<wire::Descriptor>(),
        "directory-entry-stream" => ResourceType::host::<wire::DirectoryEntries>(),
        "tcp-socket" => ResourceType::host::<wire::TcpSocket>(),
        "udp-socket" => ResourceType::host::<wire::UdpSocket>(),
        "incoming-datagram-stream" => ResourceType::host::<wire::IncomingDatagrams>(),
        "outgoing-datagram-stream" => ResourceType::host::<wire::OutgoingDatagrams>(),
        "resolve-address-stream" => ResourceType::host::<wire::Addresses>(),
        _ => return Ok(false),
    };
    to.resource(name, ty, |_, _| Ok(()))?;
    Ok(true)
}

/// Defines one function, which costs its guest fuel.
fn provide<P, R>(
    to: &mut Definitions<'_>,
    name: &str,
    body: impl Fn(&mut Context<'_>, P) -> wasmtime::Result<R> + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lift + 'static,
    R: ComponentNamedList + Lower + 'static,
{
    to.func_wrap(name, move |mut context: Context<'_>, arguments: P| {
        charge(&mut context, FUEL_PER_CALL)?;
        body(&mut context, arguments)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_wasi_0_2_are_served_and_nothing_else() {
        for import in ["wasi:cli/stdout@0.2.0", "wasi:cli/stdout@0.2.19"] {
            assert!(matches!(interface(import), Ok("cli/stdout")), "{import}");
        }
        for import in [
            "wasi:cli/stdout",
            "wasi:cli/stdout@0.2.0-rc-2023-11-10",
            "wasi:cli/stdout@0.3.0",
            "wasi:cli/stdout@1.0.0",
        ] {
            assert!(matches!(interface(import), Err(LoadError::WasiVersion { .. })), "{import}");
        }
        for import in ["wasi:http/types@0.2.0", "wasi:cli", "wasi:keyvalue/store@0.2.0"] {
            assert!(matches!(interface(import), Err(LoadError::ForeignImport { .. })), "{import}");
        }
    }
}
