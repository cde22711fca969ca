//! Lines in the node's log. They are for people and are no part of the state.

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
    /// What only the machine's author wants to see.
    trace => Trace;
    /// What helps in finding a fault.
    debug => Debug;
    /// What an operator may want to know.
    info => Info;
    /// What an operator should look at some time.
    warn => Warn;
    /// What an operator should look at now.
    error => Error;
}

#[cfg(not(target_family = "wasm"))]
#[allow(clippy::print_stderr, reason = "outside a host there is no log; a test captures stderr")]
fn native(level: &str, message: &str) {
    eprintln!("{level}: {message}");
}
