//! The import `log` of a state machine: its lines in the node's log.

use wasmtime::{
    StoreContextMut,
    component::{Linker, WasmStr},
};

use super::{
    bindings::conclave::fsm::log::Level,
    guest_log::{FUEL_PER_BYTE, FUEL_PER_LINE, LINE_BYTES_MAX},
    state::{State, charge},
};

/// Defines the import `log`.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.instance("conclave:fsm/log@0.1.0")?.func_wrap(
        "write",
        |mut store: StoreContextMut<'_, State>, (level, message): (Level, WasmStr)| {
            // Text that is not Unicode is an error here and a trap for the guest. It is always
            // checked, also when no line is written, so that all nodes behave the same.
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
