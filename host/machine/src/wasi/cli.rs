//! `wasi:cli`: a program without arguments, variables or a terminal, whose output goes to the node's log.

use wasmtime::component::Resource;

use super::{
    provide::{Definitions, provide},
    wire::{Input, Output, TerminalInput, TerminalOutput},
};
use crate::{
    state::{STDERR, STDOUT},
    trap::Refusal,
};
use conclave_types::TrapKind;

pub(super) fn define(
    to: &mut Definitions<'_>,
    interface: &str,
    name: &str,
) -> wasmtime::Result<bool> {
    match (interface, name) {
        ("environment", "get-environment") => {
            provide(to, name, |_, ()| Ok((Vec::<(String, String)>::new(),)))?;
        }
        ("environment", "get-arguments") => {
            provide(to, name, |_, ()| Ok((Vec::<String>::new(),)))?;
        }
        ("environment", "initial-cwd") => provide(to, name, |_, ()| Ok((None::<String>,)))?,
        ("exit", "exit") => {
            provide(to, name, |_, (status,): (Result<(), ()>,)| exit(u8::from(status.is_err())))?;
        }
        ("exit", "exit-with-code") => provide(to, name, |_, (code,): (u8,)| exit(code))?,
        ("stdin", "get-stdin") => {
            provide(to, name, |_, ()| Ok((Resource::<Input>::new_own(0),)))?;
        }
        ("stdout", "get-stdout") => {
            provide(to, name, |_, ()| Ok((Resource::<Output>::new_own(STDOUT),)))?;
        }
        ("stderr", "get-stderr") => {
            provide(to, name, |_, ()| Ok((Resource::<Output>::new_own(STDERR),)))?;
        }
        ("terminal-stdin", "get-terminal-stdin") => {
            provide(to, name, |_, ()| Ok((None::<Resource<TerminalInput>>,)))?;
        }
        ("terminal-stdout", "get-terminal-stdout") | ("terminal-stderr", "get-terminal-stderr") => {
            provide(to, name, |_, ()| Ok((None::<Resource<TerminalOutput>>,)))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// An exit is a trap: it leaves the state machine's memory as it was in the middle of the call.
fn exit(code: u8) -> wasmtime::Result<()> {
    let message = format!("the state machine exited with code {code}");
    Err(Refusal { kind: TrapKind::Panic, message }.into())
}
