//! Findings: breaches of the contract, and the places of the log at which they show.

use conclave_machine::FatalError;

/// The reason why a check ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The check found a breach.
    Found(Finding),
    /// The host failed, not the state machine.
    Fatal(FatalError),
}

impl Stop {
    /// Converts a finding to a fatal error, for places where no findings are expected.
    pub(super) fn into_fatal(self) -> FatalError {
        match self {
            Self::Found(finding) => FatalError::new(finding.what),
            Self::Fatal(fatal_error) => fatal_error,
        }
    }
}

impl From<FatalError> for Stop {
    fn from(fatal_error: FatalError) -> Self {
        Self::Fatal(fatal_error)
    }
}

/// A difference between two runs that must give the same results, or another breach of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A sentence. Steps are counted from 1.
    pub what: String,
    /// The names and results of the two runs.
    pub sides: Vec<(String, String)>,
    /// Number of steps of the log that are needed to show the finding. 0: no particular steps show it.
    pub(super) steps: usize,
    /// Whether the finding is only a warning, not a breach of the contract.
    pub(super) mild: bool,
}

impl Finding {
    /// A breach without compared results.
    pub(super) fn new(what: impl Into<String>, steps: usize) -> Self {
        Self { what: what.into(), sides: Vec::new(), steps, mild: false }
    }

    /// Adds the results of the two runs.
    pub(super) fn with(mut self, sides: [(&str, String); 2]) -> Self {
        self.sides = sides.map(|(name, text)| (name.to_owned(), text)).into();
        self
    }
}

/// Describes a place in the log, given the number of steps before it.
pub(super) fn place(made: usize) -> String {
    match made {
        0 => "before step 1".to_owned(),
        _ => format!("after step {made}"),
    }
}
