//! The host's data of one instance, which its imports use: memory limits, log lines and WASI.

use wasmtime::StoreContextMut;

use super::{
    bindings::conclave::fsm::log::Level, entry_context::EntryContext, guest_log::GuestLog,
    limits::Limiter,
};

/// The numbers of the two output streams.
pub(super) const STDOUT: u32 = 0;
pub(super) const STDERR: u32 = 1;
/// The number of output streams.
const STREAMS: usize = 2;

/// The host's data in the wasmtime store, beside the guest.
pub(super) struct State {
    pub(super) limiter: Limiter,
    pub(super) log: GuestLog,
    pub(super) wasi: Wasi,
}

/// The WASI state of one instance.
pub(super) struct Wasi {
    pub(super) context: EntryContext,
    /// Created when a call first requests bytes.
    pub(super) random: Option<blake3::OutputReader>,
    /// The beginnings of unfinished lines, one per stream. Empty between calls.
    pub(super) lines: [Vec<u8>; STREAMS],
}

impl Wasi {
    pub(super) fn new() -> Self {
        Self { context: EntryContext::STILL, random: None, lines: Default::default() }
    }

    /// Sets the context at the beginning of a call.
    pub(super) fn begin(&mut self, context: EntryContext) {
        self.context = context;
        self.random = None;
    }
}

impl State {
    /// Ends a call. Output without an end of line becomes a line.
    pub(super) fn end_call(&mut self) {
        self.wasi.begin(EntryContext::STILL);
        for stream in 0..STREAMS {
            if !self.wasi.lines[stream].is_empty() {
                self.end_line(stream);
            }
        }
    }

    /// Passes a line to the node's log.
    pub(super) fn end_line(&mut self, stream: usize) {
        let line = std::mem::take(&mut self.wasi.lines[stream]);
        let level = if stream == STDERR as usize { Level::Warn } else { Level::Info };
        self.log.line(level, &String::from_utf8_lossy(&line));
    }
}

/// Charges the fuel of the host's work. If none is left, the guest traps at its next fuel check.
pub(super) fn charge(store: &mut StoreContextMut<'_, State>, cost: u64) -> wasmtime::Result<()> {
    let left = store.get_fuel()?.saturating_sub(cost);
    store.set_fuel(left)
}
