//! What was found wrong.

use super::{calls::Step, player::Answer, player::Played, vocabulary::Vocabulary};
use conclave_machine::FatalError;
use conclave_types::{Failure, Outcome};

/// Characters of an answer that are shown.
const SHOWN_CHARACTERS: usize = 300;
/// Bytes of a state that are shown from the first difference on.
const SHOWN_BYTES: usize = 24;

/// Why a check ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// It found what it was looking for.
    Found(Finding),
    /// This computer's fault.
    Fatal(FatalError),
}

impl Stop {
    /// Where nothing is looked for, a finding is as good as a fault.
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

/// A difference between two ways to the same place, or another breach of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A sentence. Steps are counted from 1.
    pub what: String,
    /// What the one way gave, and what the other, each under its name.
    pub sides: Vec<(String, String)>,
    /// How many steps of the log are needed to see it. 0: of a mild one, no log shows it.
    pub(super) steps: usize,
    /// No breach of the contract, but worth a warning.
    pub(super) mild: bool,
}

impl Finding {
    /// A breach that needs no comparison.
    pub(super) fn new(what: impl Into<String>, steps: usize) -> Self {
        Self { what: what.into(), sides: Vec::new(), steps, mild: false }
    }

    /// With what each side gave.
    pub(super) fn with(mut self, sides: [(&str, String); 2]) -> Self {
        self.sides = sides.map(|(name, text)| (name.to_owned(), text)).into();
        self
    }
}

/// Compares what two ways of playing gave, and finds the first difference. The answers are those of
/// the steps from `from` on.
pub(super) fn compare(
    (steps, vocabulary): (&[Step], &Vocabulary),
    from: usize,
    (left_name, left): (&str, &[Answer]),
    (right_name, right): (&str, &[Answer]),
) -> Result<(), Stop> {
    for at in 0..left.len().max(right.len()) {
        let (left, right) = (left.get(at), right.get(at));
        let number = from + at;
        if left == right {
            continue;
        }
        let Some(step) = steps.get(number) else { break };
        let show = |answer: Option<&Answer>| match answer {
            Some(answer) => show(answer, step, vocabulary),
            None => "not reached".to_owned(),
        };
        let what = format!("step {} ({}) is answered differently", number + 1, step.name());
        return Err(Stop::Found(
            Finding::new(what, number + 1)
                .with([(left_name, show(left)), (right_name, show(right))]),
        ));
    }
    Ok(())
}

/// Compares the fuel of two plays that must run the same instructions.
pub(super) fn compare_fuel(
    steps: &[Step],
    (left_name, left): (&str, &Played),
    (right_name, right): (&str, &Played),
) -> Result<(), Stop> {
    for (at, (left, right)) in left.fuel.iter().zip(&right.fuel).enumerate() {
        if left != right {
            let name = steps.get(at).map_or("tick", Step::name);
            let what = format!("step {} ({name}) takes different amounts of fuel", at + 1);
            return Err(Stop::Found(
                Finding::new(what, at + 1)
                    .with([(left_name, left.to_string()), (right_name, right.to_string())]),
            ));
        }
    }
    Ok(())
}

/// Compares two snapshots.
pub(super) fn compare_states(
    what: impl FnOnce() -> String,
    steps: usize,
    (left_name, left): (&str, &[u8]),
    (right_name, right): (&str, &[u8]),
) -> Result<(), Stop> {
    if left == right {
        return Ok(());
    }
    let what = format!("{} (from byte {} on)", what(), same_bytes(left, right));
    let sides = state_sides((left_name, left), (right_name, right));
    Err(Stop::Found(Finding::new(what, steps).with(sides)))
}

/// Two snapshots around the first byte that differs.
pub(super) fn state_sides<'a>(
    (left_name, left): (&'a str, &[u8]),
    (right_name, right): (&'a str, &[u8]),
) -> [(&'a str, String); 2] {
    // Some bytes before, to show the place.
    let from = same_bytes(left, right).saturating_sub(SHOWN_BYTES / 2);
    let around = |bytes: &[u8]| {
        let shown = bytes.get(from..).unwrap_or_default();
        let shown = shown.get(..SHOWN_BYTES).unwrap_or(shown);
        format!("{} bytes, from byte {from}: {}", bytes.len(), shown.escape_ascii())
    };
    [(left_name, around(left)), (right_name, around(right))]
}

fn same_bytes(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// For people: where in the log, by how many of its steps were made.
pub(super) fn place(made: usize) -> String {
    match made {
        0 => "before step 1".to_owned(),
        _ => format!("after step {made}"),
    }
}

/// An answer for people.
pub(super) fn show(answer: &Answer, step: &Step, vocabulary: &Vocabulary) -> String {
    let text = match answer {
        Answer::Applied(Outcome::Reply(reply)) => {
            let mut text = show_response(&reply.response, step, vocabulary);
            if !reply.events.is_empty() {
                text.push_str(&format!(", {} events", reply.events.len()));
                if let Some(event) = reply.events.first() {
                    text.push_str(&format!(" from {}", event.topic.escape_ascii()));
                }
            }
            if let Some(wake_at_ms) = reply.wake_at_ms {
                text.push_str(&format!(", wake at {wake_at_ms}"));
            }
            text
        }
        Answer::Applied(Outcome::Failure(failure)) | Answer::Told(Err(failure)) => {
            show_failure(failure)
        }
        Answer::Told(Ok(response)) => show_response(response, step, vocabulary),
        Answer::Applied(Outcome::Trap(trap)) | Answer::Trapped(trap) => {
            format!("trap: {}", trap.message)
        }
    };
    cut(text)
}

fn show_failure(failure: &Failure) -> String {
    format!("{:?}: {}", failure.code, failure.message)
}

fn show_response(bytes: &[u8], step: &Step, vocabulary: &Vocabulary) -> String {
    let message = step
        .call()
        .and_then(|call| vocabulary.method(&call.method))
        .and_then(|method| method.response(bytes))
        .and_then(|message| serde_json::to_string(&message).ok());
    message.unwrap_or_else(|| {
        let shown = bytes.get(..SHOWN_CHARACTERS).unwrap_or(bytes);
        format!("{} bytes: {}", bytes.len(), shown.escape_ascii())
    })
}

fn cut(text: String) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or(&text)),
        None => text,
    }
}
