//! WASI 0.2 for state machines, without access to the outside world.
//!
//! # Purpose
//! Toolchains that include a runtime (Python, Go, JavaScript, Rust for wasm32-wasip2) produce
//! components that import WASI, even if the state machine does not use it. A state machine gets the
//! part of WASI that can be a function of the log.
//!
//! # Contract
//! | interface | behaviour |
//! |---|---|
//! | `wasi:clocks` | both clocks show the entry's time, which does not pass within a call |
//! | `wasi:random` | a stream derived from the entry's `seed`, restarted for each call; not a secret |
//! | `wasi:random/insecure-seed` | a constant, so that hash tables have the same seed everywhere |
//! | `wasi:cli/stdout`, `stderr` | lines of the node's log, limited like those of `conclave:fsm/log` |
//! | `wasi:cli/stdin` | at its end |
//! | `wasi:cli/environment` | no variables, no arguments |
//! | `wasi:cli/exit` | a trap |
//! | `wasi:cli/terminal-*` | no terminal |
//! | `wasi:io/poll` | every pollable is ready at once |
//! | `wasi:filesystem` | no directory, so no file can be opened |
//! | `wasi:sockets` | no socket can be created, no name can be resolved |
//!
//! 1. A query gets the time and the seed of the last applied entry, as its `context` does.
//!    All other calls (instantiation, `describe`, snapshots and restores) get the constant
//!    context [`EntryContext::STILL`](super::entry_context::EntryContext::STILL).
//! 2. `describe` is called before anything else. So the state that a runtime initializes in its
//!    first call is the same in an instance that has applied the log and in a restored one.
//! 3. A component that imports a function missing from the table is rejected when it is loaded. The
//!    error names the function.
//!
//! # Caveats
//! - Files and sockets are defined, although none can be opened, because toolchains link them into
//!   every component. A state machine that tries to open one gets the usual error of its language.
//! - A state machine that waits for the clock to move waits until its fuel is used up.
//! - Some state is in no snapshot: random generators that are seeded once and continue from call to
//!   call, and hash tables that count how many were created before. Their order and their numbers
//!   must not affect an answer. The SDK for Python seeds `random` for each entry.
//! - The stream must never change, because replays depend on it ([`random`] has the test).
//!
//! # Why not `wasmtime-wasi`
//! It serves the same interfaces from real clocks, sockets and directories, and from a tokio
//! executor. All of that would have to be disabled, and kept disabled through its releases.
//! Anything overlooked would be an outcome that differs between nodes. The part of WASI that
//! remains is small enough to implement here.

mod absent;
mod cli;
mod clocks;
mod io;
mod provide;
mod random;
mod wire;

use wasmtime::component::{
    Linker, ResourceType,
    types::{ComponentInstance, ComponentItem},
};

use self::provide::Definitions;
use super::{
    error::{FatalError, LoadError},
    state::State,
};

/// The version of this implementation. It must change with every change here or in `state.rs` that
/// affects outcomes, and is part of the engine's fingerprint.
pub(super) const VERSION: u32 = 1;

/// Defines the functions that a component imports from `import`, an interface of WASI.
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
            // Records and similar types are checked where functions use them.
            ComponentItem::Type(_) => Ok(true),
            _ => Ok(false),
        };
        if !known.map_err(fatal_error)? {
            return Err(LoadError::foreign(&format!("{import}#{name}")));
        }
    }
    Ok(())
}

/// Returns the interface, such as `cli/stdout`, if the import is of a package and a version
/// that are served.
fn interface(import: &str) -> Result<&str, LoadError> {
    let named = import.strip_prefix("wasi:").unwrap_or(import);
    let (interface, version) = named.split_once('@').unwrap_or((named, ""));
    let package = interface.split_once('/').map_or("", |(package, _)| package);
    if !["cli", "clocks", "filesystem", "io", "random", "sockets"].contains(&package) {
        return Err(LoadError::foreign(import));
    }
    // Only releases are served, not drafts.
    let released = version.strip_prefix("0.2.").is_some_and(|patch| patch.parse::<u32>().is_ok());
    if !released {
        return Err(LoadError::WasiVersion { found: import.to_owned() });
    }
    Ok(interface)
}

/// Defines one function. Returns whether it is known.
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

/// Defines a resource type. Returns whether it is known. No handle refers to any data in the host.
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
