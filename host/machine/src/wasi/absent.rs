//! `wasi:filesystem` and `wasi:sockets`: all functions are defined, but no file or socket can be opened.
//!
//! Functions that act on a file or a socket need a handle, and no function returns one. So they are
//! never called; if a hand-made component manages to call one, it traps.

use wasmtime::component::{Resource, WasmStr};

use super::{
    provide::{Definitions, provide},
    wire::{AddressFamily, Addresses, Descriptor, Network, NetworkError, TcpSocket, UdpSocket},
};
use crate::{state::charge, trap::Refusal};
use conclave_types::TrapKind;

/// The resources of which no function returns a handle.
const NEVER_OPENED: [&str; 7] = [
    "descriptor",
    "directory-entry-stream",
    "tcp-socket",
    "udp-socket",
    "incoming-datagram-stream",
    "outgoing-datagram-stream",
    "resolve-address-stream",
];

pub(super) fn define(
    to: &mut Definitions<'_>,
    interface: &str,
    name: &str,
) -> wasmtime::Result<bool> {
    match (interface, name) {
        ("preopens", "get-directories") => {
            provide(to, name, |_, ()| Ok((Vec::<(Resource<Descriptor>, String)>::new(),)))?;
        }
        ("instance-network", "instance-network") => {
            provide(to, name, |_, ()| Ok((Resource::<Network>::new_own(0),)))?;
        }
        ("tcp-create-socket", "create-tcp-socket") => {
            provide(to, name, |_, (_,): (AddressFamily,)| {
                Ok((Err::<Resource<TcpSocket>, _>(NetworkError::NotSupported),))
            })?;
        }
        ("udp-create-socket", "create-udp-socket") => {
            provide(to, name, |_, (_,): (AddressFamily,)| {
                Ok((Err::<Resource<UdpSocket>, _>(NetworkError::NotSupported),))
            })?;
        }
        ("ip-name-lookup", "resolve-addresses") => {
            provide(to, name, |context, (_, name): (Resource<Network>, WasmStr)| {
                // Text that is not Unicode traps, as everywhere.
                let bytes = name.to_str(&*context)?.len();
                charge(context, bytes as u64)?;
                Ok((Err::<Resource<Addresses>, _>(NetworkError::NameUnresolvable),))
            })?;
        }
        // These two describe an error that a stream returned. No stream returns one.
        ("types", "filesystem-error-code") | ("network", "network-error-code") => {
            unreachable(to, name)?;
        }
        ("types" | "tcp" | "udp" | "ip-name-lookup", _) => {
            let handle = name.strip_prefix("[method]").and_then(|name| name.split_once('.'));
            let Some((handle, _)) = handle else { return Ok(false) };
            if !NEVER_OPENED.contains(&handle) {
                return Ok(false);
            }
            unreachable(to, name)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Defines a function that needs a handle which no component can have.
pub(super) fn unreachable(to: &mut Definitions<'_>, name: &str) -> wasmtime::Result<()> {
    let message =
        format!("the state machine called {name}, which needs a handle that no function returns");
    to.func_new(name, move |_, _, _, _| {
        Err(Refusal { kind: TrapKind::BadAnswer, message: message.clone() }.into())
    })
}
