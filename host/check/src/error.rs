//! Errors that prevent a check.

use std::fmt;

use thiserror::Error;

use conclave_machine::{Error as EngineError, FatalError, LoadError};

/// An error that prevents a check. Each message says what to do.
#[derive(Debug, Error)]
pub enum CheckError {
    /// No node would load the component.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No node would load the component to upgrade from.
    #[error("the component to upgrade from cannot be loaded")]
    From(#[source] LoadError),
    /// The engine failed to start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A line of the file of calls is invalid.
    #[error("line {line}")]
    Calls {
        /// Line number, starting at 1.
        line: usize,
        /// The cause.
        #[source]
        why: CallError,
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
    #[error("the state machine could not be checked")]
    Fatal(#[from] FatalError),
}

/// The reason why a line of the file of calls is invalid.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// The line breaks a rule, which the text names.
    #[error("{0}")]
    Rule(String),
    /// The line is not JSON, or has other fields.
    #[error("the line does not parse")]
    Json(#[source] JsonError),
    /// `request_base64` is not base64.
    #[error("`request_base64`")]
    Base64(#[source] base64::DecodeError),
    /// `request` does not fit the method's request.
    #[error("`request`")]
    Request(#[source] serde_json::Error),
}

impl From<String> for CallError {
    fn from(rule: String) -> Self {
        Self::Rule(rule)
    }
}

impl From<&str> for CallError {
    fn from(rule: &str) -> Self {
        Self::Rule(rule.to_owned())
    }
}

/// An error in the JSON of one line. The text lacks the position that serde adds: serde sees each
/// line of the file as line 1.
#[derive(Debug)]
pub struct JsonError(pub(super) serde_json::Error);

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.split(" at line ").next().unwrap_or(&text))
    }
}

impl std::error::Error for JsonError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0)
    }
}
