//! Errors that prevent a check.

use thiserror::Error;

use conclave_machine::{Error as EngineError, FatalError, LoadError};

/// An error that prevents a check. Each message says what to do.
#[derive(Debug, Error)]
pub enum CheckError {
    /// No node would load the component.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No node would load the component to upgrade from.
    #[error("the component to upgrade from: {0}")]
    From(#[source] LoadError),
    /// The engine failed to start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A line of the file of calls is invalid.
    #[error("line {line}: {why}")]
    Calls {
        /// Line number, starting at 1.
        line: usize,
        /// Description of the error.
        why: String,
    },
    /// The state machine describes no methods to generate calls for.
    #[error(
        "the state machine describes no unary methods, so no calls can be generated: provide calls with \
         --calls, or a node's log with --data-dir"
    )]
    NothingToCall,
    /// The input contains no calls.
    #[error("there are no calls to check with")]
    NoCalls,
    /// No check has this name.
    #[error("there is no check {name}; the checks are {known}")]
    NoSuchCheck {
        /// The requested name.
        name: String,
        /// All names of checks.
        known: String,
    },
    /// The check failed because of this host, not because of the state machine.
    #[error("the state machine could not be checked: {0}")]
    Fatal(#[from] FatalError),
}
