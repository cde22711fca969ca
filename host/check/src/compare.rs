//! Comparisons of two runs that must give the same results. A difference is a finding.

use super::{
    calls::Step,
    finding::{Finding, Stop},
    player::{Answer, Played},
    vocabulary::Vocabulary,
};
use conclave_types::{Failure, Outcome};

/// Maximum number of characters of an answer that are shown.
const SHOWN_CHARACTERS: usize = 300;
/// Maximum number of bytes of a state that are shown around the first difference.
const SHOWN_BYTES: usize = 24;

/// Compares the answers of two runs, and returns the first difference as an error. The answers are
/// those of the steps from `from` on.
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

/// Compares the fuel of two runs that must execute the same instructions.
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

/// Formats two snapshots around the first byte that differs.
pub(super) fn state_sides<'a>(
    (left_name, left): (&'a str, &[u8]),
    (right_name, right): (&'a str, &[u8]),
) -> [(&'a str, String); 2] {
    // Includes some bytes before the difference for orientation.
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

/// Formats an answer for messages.
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
