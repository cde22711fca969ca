//! `wasi:clocks`: both clocks show the entry's time.
//!
//! The monotonic clock does not go back from entry to entry, because the log's time does not.

use wasmtime::component::Resource;

use super::{
    provide::{Context, Definitions, provide},
    wire::{Datetime, Pollable},
};

const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

pub(super) fn define(
    to: &mut Definitions<'_>,
    interface: &str,
    name: &str,
) -> wasmtime::Result<bool> {
    match (interface, name) {
        ("monotonic-clock", "now") => {
            provide(to, name, |context, ()| Ok((nanoseconds(time_ms(context)),)))?;
        }
        ("monotonic-clock", "resolution") => {
            provide(to, name, |_, ()| Ok((NANOSECONDS_PER_MILLISECOND,)))?;
        }
        // Waiting takes no time: every pollable is ready at once.
        ("monotonic-clock", "subscribe-instant" | "subscribe-duration") => {
            provide(to, name, |_, (_,): (u64,)| Ok((Resource::<Pollable>::new_own(0),)))?;
        }
        ("wall-clock", "now") => {
            provide(to, name, |context, ()| Ok((datetime(time_ms(context)),)))?;
        }
        ("wall-clock", "resolution") => provide(to, name, |_, ()| Ok((datetime(1),)))?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn time_ms(context: &Context<'_>) -> u64 {
    context.data().wasi.context.time_ms
}

fn nanoseconds(time_ms: u64) -> u64 {
    time_ms.saturating_mul(NANOSECONDS_PER_MILLISECOND)
}

fn datetime(time_ms: u64) -> Datetime {
    // Fits 32 bits, because it is less than one second.
    let nanoseconds = (time_ms % 1000) as u32 * NANOSECONDS_PER_MILLISECOND as u32;
    Datetime { seconds: time_ms / 1000, nanoseconds }
}
