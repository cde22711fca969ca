//! Functions that write lines to the node's log. The lines are meant for people and are not part of
//! the state.

#[cfg(target_family = "wasm")]
use crate::bindings::conclave::fsm::log as host;

macro_rules! levels {
    ($($(#[$doc:meta])* $name:ident => $level:ident;)*) => {
        $($(#[$doc])* pub fn $name(message: &str) {
            #[cfg(target_family = "wasm")]
            host::write(host::Level::$level, message);
            #[cfg(not(target_family = "wasm"))]
            native(stringify!($level), message);
        })*
    };
}

levels! {
    /// Writes details for the author of the state machine.
    trace => Trace;
    /// Writes information that helps to find a bug.
    debug => Debug;
    /// Writes information for operators.
    info => Info;
    /// Writes a warning that an operator should look at eventually.
    warn => Warn;
    /// Writes an error that an operator should look at now.
    error => Error;
}

#[cfg(not(target_family = "wasm"))]
#[allow(clippy::print_stderr, reason = "outside a host there is no log; a test captures stderr")]
fn native(level: &str, message: &str) {
    eprintln!("{level}: {message}");
}
