//! What a check of a machine gave.

use super::{
    calls::{self, Step},
    finding::Finding,
    vocabulary::Vocabulary,
};
use conclave_machine::Component;
use conclave_types::components::Change;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was found.
    Ok,
    /// It holds the contract, but its author should know something.
    Warned,
    /// It breaks the contract.
    Failed,
    /// It was not asked for.
    Skipped,
}

impl Verdict {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warned => "warned",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One check.
#[derive(Clone, Debug)]
pub struct Checked {
    /// In one word.
    pub name: &'static str,
    /// What holds if it is ok.
    pub meaning: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was looked at, or seen.
    pub said: String,
    /// What was found, if it failed.
    pub finding: Option<Finding>,
    /// What to do about it. Empty where there is nothing to do.
    pub advice: String,
    /// The smallest log that shows it.
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

/// The component that an upgrade begins with.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The machine's name, for people.
    pub machine: String,
    /// Its version, for people.
    pub version: String,
    /// The component's hash.
    pub component: String,
    /// The format of its snapshots.
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

/// All checks of a machine, or of an upgrade to it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The machine's name, for people.
    pub machine: String,
    /// Its version, for people.
    pub version: String,
    /// The component's hash.
    pub component: String,
    /// Of an upgrade: the component that it begins with.
    pub from: Option<Origin>,
    /// Of an upgrade: the changes of the services, those that break clients first.
    pub changes: Vec<Change>,
    /// Commands, queries and ticks that it was checked with.
    pub calls: (usize, usize, usize),
    /// Commands and queries that the machine answered with a failure: they show little.
    pub refused: usize,
    /// The seed that they were made with. `None`: they were given.
    pub seed: Option<u64>,
    /// Streaming methods, which are not called.
    pub subscriptions: usize,
    /// In the order in which they were made.
    pub checks: Vec<Checked>,
    pub(super) vocabulary: Vocabulary,
}

impl Report {
    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Checked> {
        self.checks.iter().filter(|checked| checked.verdict == Verdict::Failed)
    }

    /// A log in the form in which it can be given to another check, a line a step.
    pub fn lines(&self, log: &[Step]) -> Vec<String> {
        log.iter().map(|step| calls::line(step, &self.vocabulary)).collect()
    }
}
