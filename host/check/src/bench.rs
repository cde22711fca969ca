//! The bench: the subject of the checks, and the settings that they share.

use super::{calls::Step, vocabulary::Vocabulary};
use conclave_machine::Component;

/// The state machine in both engines, and settings.
pub(super) struct Bench<'a> {
    /// The state machine as a node runs it.
    pub(super) component: &'a Component,
    /// The state machine in the interpreter.
    pub(super) second: &'a Component,
    pub(super) vocabulary: &'a Vocabulary,
    /// The different queries and commands of the log, limited in number.
    pub(super) questions: Vec<Step>,
    pub(super) commands: Vec<Step>,
    /// Number of places tried in the log.
    pub(super) cuts_max: usize,
    /// False if a query was found to change something.
    pub(super) questions_are_harmless: bool,
}
