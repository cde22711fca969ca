//! Why a machine could not be checked at all.

use thiserror::Error;

use conclave_machine::{Error as EngineError, FatalError, LoadError};

/// Each message tells its reader what to do.
#[derive(Debug, Error)]
pub enum CheckError {
    /// No node would serve it.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No node would serve the component that an upgrade begins with.
    #[error("the component to upgrade from: {0}")]
    From(#[source] LoadError),
    /// The engine does not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A line of the calls is not one.
    #[error("line {line}: {why}")]
    Calls {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// There is nothing to call it with.
    #[error(
        "the machine describes no unary methods, so no calls can be generated: give some with --calls, or a \
         node's log with --data-dir"
    )]
    NothingToCall,
    /// The calls are none.
    #[error("there are no calls to check with")]
    NoCalls,
    /// There is no check of this name.
    #[error("there is no check {name}; there are {known}")]
    NoSuchCheck {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// This computer's fault, not the machine's.
    #[error("the machine could not be checked: {0}")]
    Fatal(#[from] FatalError),
}
