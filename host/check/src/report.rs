//! Results of the checks of a state machine.

use super::{
    calls::{self, Step},
    finding::Finding,
    vocabulary::Vocabulary,
};
use conclave_machine::Component;
use conclave_types::components::Change;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The check found nothing.
    Ok,
    /// The state machine keeps the contract, but its author should know of a problem.
    Warned,
    /// The state machine breaks the contract.
    Failed,
    /// The check was skipped.
    Skipped,
}

impl Verdict {
    /// The verdict in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warned => "warned",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The check's name, in one word.
    pub name: &'static str,
    /// The property that holds if the check passes.
    pub meaning: &'static str,
    /// The verdict.
    pub verdict: Verdict,
    /// A summary of the work done, or of the problem.
    pub said: String,
    /// The finding, if the check failed.
    pub finding: Option<Finding>,
    /// Advice on how to fix the problem. Empty if there is none.
    pub advice: String,
    /// The smallest log that shows the problem.
    pub log: Vec<Step>,
}

impl Checked {
    pub(super) fn new(
        name: &'static str,
        meaning: &'static str,
        verdict: Verdict,
        said: String,
    ) -> Self {
        Self { name, meaning, verdict, said, finding: None, advice: String::new(), log: Vec::new() }
    }
}

/// The component to upgrade from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The state machine's name, for display.
    pub machine: String,
    /// The state machine's version, for display.
    pub version: String,
    /// The component's hash.
    pub component: String,
    /// The version of its snapshot format.
    pub state_version: u32,
}

impl Origin {
    pub(super) fn of(component: &Component) -> Self {
        let description = component.description();
        Self {
            machine: description.name.clone(),
            version: description.version.clone(),
            component: component.id().to_string(),
            state_version: component.state_version(),
        }
    }
}

/// The results of all checks of a state machine, or of an upgrade to it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The state machine's name, for display.
    pub machine: String,
    /// The state machine's version, for display.
    pub version: String,
    /// The component's hash.
    pub component: String,
    /// For an upgrade: the component to upgrade from.
    pub from: Option<Origin>,
    /// For an upgrade: the changes of the services, breaking changes first.
    pub changes: Vec<Change>,
    /// Numbers of commands, queries and ticks in the log.
    pub calls: (usize, usize, usize),
    /// Number of commands and queries that failed. Failed calls test little.
    pub refused: usize,
    /// The seed of the generated calls. `None` if the calls were given.
    pub seed: Option<u64>,
    /// Number of streaming methods, which are not called.
    pub subscriptions: usize,
    /// The results, in the order of the checks.
    pub checks: Vec<Checked>,
    pub(super) vocabulary: Vocabulary,
}

impl Report {
    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Checked> {
        self.checks.iter().filter(|checked| checked.verdict == Verdict::Failed)
    }

    /// Formats a log for use with `--calls`, one line per step.
    pub fn lines(&self, log: &[Step]) -> Vec<String> {
        log.iter().map(|step| calls::line(step, &self.vocabulary)).collect()
    }
}

/// Formats a number of bytes.
pub(super) fn size(bytes: usize) -> String {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    match bytes {
        0..KIB => format!("{bytes} bytes"),
        KIB..MIB => format!("{:.1} KiB", bytes as f64 / KIB as f64),
        _ => format!("{:.1} MiB", bytes as f64 / MIB as f64),
    }
}
