//! Lines of the machine's for the node's log: its import `log`, and what it prints through WASI.
//!
//! A line is no part of the state, so what happens to it here may differ between nodes; what it costs
//! may not. The host's work costs the guest nothing by itself, so the fuel is charged by hand.

use std::time::{Duration, Instant};

use wasmtime::{
    StoreContextMut,
    component::{Linker, WasmStr},
};

use super::{bindings::conclave::fsm::log::Level, instance::State};

/// The fuel of a line: about what the host's part of it takes, a microsecond.
pub(super) const FUEL_PER_LINE: u64 = 1_000;
/// The fuel of one of its bytes, which the host may copy and check.
pub(super) const FUEL_PER_BYTE: u64 = 1;
/// What is kept of a line.
pub(super) const LINE_BYTES_MAX: usize = 4096;

/// Where one instance's lines go.
pub(super) struct GuestLog {
    role: &'static str,
    /// The reader applies what the head has applied; its lines would be the same ones again.
    muted: bool,
    lines_per_second: u32,
    tokens: u32,
    refilled: Instant,
    dropped: u64,
    /// The last line of an error, where somebody wants it: what a machine says when it panics.
    last_error: Option<String>,
    keeps_errors: bool,
}

impl GuestLog {
    pub(super) fn new(role: &'static str, lines_per_second: u32) -> Self {
        Self {
            role,
            muted: false,
            lines_per_second,
            tokens: lines_per_second,
            refilled: Instant::now(),
            dropped: 0,
            last_error: None,
            keeps_errors: false,
        }
    }

    /// Keeps the last line of an error from here on.
    pub(super) fn keep_errors(&mut self) {
        self.keeps_errors = true;
    }

    /// What was kept since this was last asked.
    pub(super) fn take_error(&mut self) -> Option<String> {
        self.last_error.take()
    }

    pub(super) fn mute(&mut self, muted: bool) {
        self.muted = muted;
    }

    /// Whether nothing is written now.
    pub(super) fn muted(&self) -> bool {
        self.muted
    }

    /// Writes a line, if there is room for one.
    pub(super) fn line(&mut self, level: Level, line: &str) {
        if self.admit() {
            self.write(level, line);
        }
    }

    pub(super) fn set_role(&mut self, role: &'static str) {
        self.role = role;
    }

    /// Whether another line may be written now.
    fn admit(&mut self) -> bool {
        if self.muted {
            return false;
        }
        if self.tokens == 0 {
            let now = Instant::now();
            if now.duration_since(self.refilled) >= Duration::from_secs(1) {
                self.refilled = now;
                self.tokens = self.lines_per_second;
            }
        }
        if self.tokens == 0 {
            self.dropped += 1;
            return false;
        }
        self.tokens -= 1;
        true
    }

    fn write(&mut self, level: Level, line: &str) {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            tracing::warn!(target: "machine", instance = self.role, dropped, "the machine wrote more lines than its limit");
        }
        // One line stays one line, whatever the guest puts into it.
        let line = super::cut(line, LINE_BYTES_MAX).replace(char::is_control, " ");
        let instance = self.role;
        match level {
            Level::Trace => tracing::trace!(target: "machine", instance, "{line}"),
            Level::Debug => tracing::debug!(target: "machine", instance, "{line}"),
            Level::Info => tracing::info!(target: "machine", instance, "{line}"),
            Level::Warn => tracing::warn!(target: "machine", instance, "{line}"),
            Level::Error => tracing::error!(target: "machine", instance, "{line}"),
        }
    }
}

/// Defines the import.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.instance("conclave:fsm/log@0.1.0")?.func_wrap(
        "write",
        |mut store: StoreContextMut<'_, State>, (level, message): (Level, WasmStr)| {
            // Text that is not Unicode is an error here and a trap for the guest: always looked at, so
            // that it is the same on every node.
            let bytes = message.to_str(&store)?.len();
            charge(&mut store, FUEL_PER_LINE + FUEL_PER_BYTE * bytes as u64)?;
            if level == Level::Error && store.data().log.keeps_errors {
                let line = super::cut(&message.to_str(&store)?, LINE_BYTES_MAX).to_owned();
                store.data_mut().log.last_error = Some(line.replace(char::is_control, " "));
            }
            if store.data_mut().log.admit() {
                let line = super::cut(&message.to_str(&store)?, LINE_BYTES_MAX).to_owned();
                store.data_mut().log.write(level, &line);
            }
            Ok(())
        },
    )
}

/// Takes the fuel of what the host does. With none left, the guest traps at its next check.
pub(super) fn charge(store: &mut StoreContextMut<'_, State>, cost: u64) -> wasmtime::Result<()> {
    let left = store.get_fuel()?.saturating_sub(cost);
    store.set_fuel(left)
}
