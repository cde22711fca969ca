//! The machine's one import: lines for the node's log.
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
const FUEL_PER_LINE: u64 = 1_000;
/// The fuel of one of its bytes, which the host may copy and check.
const FUEL_PER_BYTE: u64 = 1;
/// What is kept of a line.
const LINE_BYTES_MAX: usize = 4096;

/// Where one instance's lines go.
pub(super) struct GuestLog {
    role: &'static str,
    /// The reader applies what the head has applied; its lines would be the same ones again.
    muted: bool,
    lines_per_second: u32,
    tokens: u32,
    refilled: Instant,
    dropped: u64,
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
        }
    }

    pub(super) fn mute(&mut self, muted: bool) {
        self.muted = muted;
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
            charge(&mut store, bytes)?;
            if store.data_mut().log.admit() {
                let line = super::cut(&message.to_str(&store)?, LINE_BYTES_MAX).to_owned();
                store.data_mut().log.write(level, &line);
            }
            Ok(())
        },
    )
}

/// Takes the fuel of a line. With none left, the guest traps at its next check.
fn charge(store: &mut StoreContextMut<'_, State>, bytes: usize) -> wasmtime::Result<()> {
    let cost = FUEL_PER_LINE + FUEL_PER_BYTE * bytes as u64;
    let left = store.get_fuel()?.saturating_sub(cost);
    store.set_fuel(left)
}
