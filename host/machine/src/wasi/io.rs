//! `wasi:io`: output streams into the node's log, and polling that takes no time.

use wasmtime::component::{Resource, WasmList};

use super::{
    absent,
    provide::{Context, Definitions, provide},
    wire::{Input, Output, Pollable, StreamError},
};
use crate::{
    guest_log::{FUEL_PER_BYTE, FUEL_PER_LINE, LINE_BYTES_MAX},
    state::{STDERR, STDOUT, charge},
};

/// The number of bytes that a stream reports as writable, and the part of one write that is logged.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// The fuel of each pollable in a call of `poll`.
const FUEL_PER_POLLABLE: u64 = 20;

pub(super) fn define(
    to: &mut Definitions<'_>,
    interface: &str,
    name: &str,
) -> wasmtime::Result<bool> {
    match (interface, name.strip_prefix("[method]").unwrap_or(name)) {
        ("error", "error.to-debug-string") => absent::unreachable(to, name)?,
        ("poll", "poll") => provide(to, name, |context, (all,): (Vec<Resource<Pollable>>,)| {
            charge(context, FUEL_PER_POLLABLE * all.len() as u64)?;
            let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
            Ok(((0..count).collect::<Vec<u32>>(),))
        })?,
        ("poll", "pollable.ready") => {
            provide(to, name, |_, (_,): (Resource<Pollable>,)| Ok((true,)))?;
        }
        ("poll", "pollable.block") => provide(to, name, |_, (_,): (Resource<Pollable>,)| Ok(()))?,
        ("streams", method) => match method.split_once('.') {
            Some(("input-stream", method)) => return input(to, name, method),
            Some(("output-stream", method)) => return output(to, name, method),
            _ => return Ok(false),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

/// Defines the functions of an input stream, which is always at its end.
fn input(to: &mut Definitions<'_>, name: &str, method: &str) -> wasmtime::Result<bool> {
    type End<T> = (Result<T, StreamError>,);
    match method {
        "read" | "blocking-read" => provide(to, name, |_, _: (Resource<Input>, u64)| {
            Ok::<End<Vec<u8>>, _>((Err(StreamError::Closed),))
        })?,
        "skip" | "blocking-skip" => provide(to, name, |_, _: (Resource<Input>, u64)| {
            Ok::<End<u64>, _>((Err(StreamError::Closed),))
        })?,
        "subscribe" => provide(to, name, |_, (_,): (Resource<Input>,)| ready())?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn output(to: &mut Definitions<'_>, name: &str, method: &str) -> wasmtime::Result<bool> {
    type Done<T> = (Result<T, StreamError>,);
    match method {
        "check-write" => provide(to, name, |_, (_,): (Resource<Output>,)| {
            Ok::<Done<u64>, _>((Ok(WRITE_BYTES_MAX as u64),))
        })?,
        "write" | "blocking-write-and-flush" => {
            provide(to, name, |context, (stream, bytes): (Resource<Output>, WasmList<u8>)| {
                write(context, &stream, &bytes)?;
                Ok::<Done<()>, _>((Ok(()),))
            })?;
        }
        "flush" | "blocking-flush" => {
            provide(to, name, |_, (_,): (Resource<Output>,)| Ok::<Done<()>, _>((Ok(()),)))?
        }
        // Zeroes are accepted but not logged.
        "write-zeroes" | "blocking-write-zeroes-and-flush" => {
            provide(to, name, |_, _: (Resource<Output>, u64)| Ok::<Done<()>, _>((Ok(()),)))?;
        }
        // The only input stream is at its end, so nothing is copied.
        "splice" | "blocking-splice" => {
            provide(to, name, |_, _: (Resource<Output>, Resource<Input>, u64)| {
                Ok::<Done<u64>, _>((Err(StreamError::Closed),))
            })?;
        }
        "subscribe" => provide(to, name, |_, (_,): (Resource<Output>,)| ready())?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn ready() -> wasmtime::Result<(Resource<Pollable>,)> {
    Ok((Resource::new_own(0),))
}

/// Writes bytes to the node's log. The fuel charged does not depend on whether a line is logged.
fn write(
    context: &mut Context<'_>,
    stream: &Resource<Output>,
    bytes: &WasmList<u8>,
) -> wasmtime::Result<()> {
    charge(context, FUEL_PER_LINE + FUEL_PER_BYTE * bytes.len() as u64)?;
    if context.data().log.muted() {
        return Ok(());
    }
    let bytes = bytes.as_le_slice(&*context);
    let bytes = bytes[..bytes.len().min(WRITE_BYTES_MAX)].to_vec();
    let stream = if stream.rep() == STDERR { STDERR } else { STDOUT } as usize;
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
        let state = context.data_mut();
        let line = &mut state.wasi.lines[stream];
        let room = LINE_BYTES_MAX.saturating_sub(line.len());
        line.extend_from_slice(&text[..text.len().min(room)]);
        if ends {
            state.end_line(stream);
        }
    }
    Ok(())
}
