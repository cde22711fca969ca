//! Reduces a log that shows a finding to a small log that still shows it.
//!
//! Method: first, the steps after the finding are removed. Then delta debugging (Zeller and
//! Hildebrandt 2002) without its second half removes parts of the log, in halves, quarters, and so
//! on down to single steps, as long as there still is a finding. Last, requests are simplified
//! field by field. The search returns the smallest log found within the given time.

use std::time::{Duration, Instant};

use prost::Message;
use prost_reflect::{DynamicMessage, Value};

use super::{
    calls::{Action, Step},
    finding::{Finding, Stop},
    vocabulary::Vocabulary,
};
use conclave_machine::FatalError;
use conclave_types::Call;

/// A log and its finding.
pub(super) struct Smallest {
    pub(super) steps: Vec<Step>,
    pub(super) finding: Finding,
}

/// A probe returns a finding as an error.
pub(super) type Probe<'a> = dyn FnMut(&[Step]) -> Result<(), Stop> + 'a;

struct Shrinker<'a, 'b> {
    probe: &'a mut Probe<'b>,
    smallest: Smallest,
    deadline: Instant,
}

/// Shrinks a log for which `probe` returns a finding.
pub(super) fn shrink(
    steps: &[Step],
    finding: Finding,
    vocabulary: &Vocabulary,
    time: Duration,
    probe: &mut Probe<'_>,
) -> Result<Smallest, FatalError> {
    let smallest = Smallest { steps: steps.to_vec(), finding };
    let mut shrinker = Shrinker { probe, smallest, deadline: Instant::now() + time };
    shrinker.cut_end()?;
    let mut part = shrinker.smallest.steps.len().div_ceil(2);
    while part > 0 {
        let left_out = shrinker.leave_out(part)?;
        // Single steps are tried until none can be removed: a step may have been needed only by a
        // step that was removed later.
        part = if left_out && part == 1 { 1 } else { part / 2 };
    }
    shrinker.simplify(vocabulary)?;
    Ok(shrinker.smallest)
}

impl Shrinker<'_, '_> {
    /// Probes these steps. If there is a finding, they are the smallest log so far. Returns whether
    /// there is one.
    fn try_out(&mut self, steps: Vec<Step>) -> Result<bool, FatalError> {
        if Instant::now() >= self.deadline {
            return Ok(false);
        }
        match (self.probe)(&steps) {
            Ok(()) => Ok(false),
            Err(Stop::Fatal(fatal_error)) => Err(fatal_error),
            Err(Stop::Found(finding)) => {
                self.smallest = Smallest { steps, finding };
                Ok(true)
            }
        }
    }

    fn cut_end(&mut self) -> Result<(), FatalError> {
        let needed = self.smallest.finding.steps;
        if let Some(steps) = self.smallest.steps.get(..needed)
            && needed < self.smallest.steps.len()
        {
            let steps = steps.to_vec();
            self.try_out(steps)?;
        }
        Ok(())
    }

    /// Removes each part of `part` steps that is not needed. Returns whether any was removed.
    fn leave_out(&mut self, part: usize) -> Result<bool, FatalError> {
        let mut spared = false;
        // Starts at the end: the steps there need those before them.
        let mut end = self.smallest.steps.len();
        while end > 0 {
            let from = end.saturating_sub(part);
            let mut steps = self.smallest.steps.clone();
            steps.drain(from..end.min(steps.len()));
            spared |= self.try_out(steps)?;
            end = from.min(self.smallest.steps.len());
        }
        Ok(spared)
    }

    fn simplify(&mut self, vocabulary: &Vocabulary) -> Result<(), FatalError> {
        for at in 0..self.smallest.steps.len() {
            // Each round makes the request smaller, so the loop terminates.
            loop {
                let Some(step) = self.smallest.steps.get(at).cloned() else { break };
                let mut simpler = false;
                for step in simpler_steps(&step, vocabulary) {
                    let mut steps = self.smallest.steps.clone();
                    if let Some(place) = steps.get_mut(at) {
                        *place = step;
                    }
                    if self.try_out(steps)? {
                        simpler = true;
                        break;
                    }
                }
                if !simpler {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Variants of the step with a smaller request.
fn simpler_steps(step: &Step, vocabulary: &Vocabulary) -> Vec<Step> {
    let Some(call) = step.call() else { return Vec::new() };
    let message =
        vocabulary.method(&call.method).and_then(|method| method.request_message(&call.request));
    let mut requests = Vec::new();
    if let Some(message) = message {
        simpler_messages(&message, &mut |simpler| requests.push(simpler.encode_to_vec()));
    }
    let shorter = |request: &Vec<u8>| request.len() < call.request.len();
    let calls = requests
        .into_iter()
        .filter(shorter)
        .map(|request| Call { request: request.into(), ..call.clone() });
    let anonymous =
        (!call.principal.is_empty()).then(|| Call { principal: "".into(), ..call.clone() });
    calls
        .chain(anonymous)
        .map(|call| Step {
            time_ms: step.time_ms,
            action: match &step.action {
                Action::Query(_) => Action::Query(call),
                Action::Apply(_) | Action::Tick => Action::Apply(call),
            },
        })
        .collect()
}

/// Passes simpler variants of the message to `give`: each without one field, or with a simpler
/// value in one field.
fn simpler_messages(message: &DynamicMessage, give: &mut dyn FnMut(DynamicMessage)) {
    for (field, value) in message.fields() {
        let mut without = message.clone();
        without.clear_field(&field);
        give(without);
        simpler_values(value, &mut |simpler| {
            let mut message = message.clone();
            if message.try_set_field(&field, simpler).is_ok() {
                give(message);
            }
        });
    }
}

fn simpler_values(value: &Value, give: &mut dyn FnMut(Value)) {
    match value {
        Value::String(text) if text.chars().count() > 1 => {
            give(Value::String(text.chars().take(1).collect()));
            let half = text.floor_char_boundary(text.len() / 2);
            give(Value::String(text.get(..half).unwrap_or_default().to_owned()));
        }
        Value::Bytes(bytes) if bytes.len() > 1 => {
            give(Value::Bytes(bytes.slice(..1)));
            give(Value::Bytes(bytes.slice(..bytes.len() / 2)));
        }
        Value::List(values) if values.len() > 1 => {
            let (left, right) = values.split_at(values.len() / 2);
            give(Value::List(left.to_vec()));
            give(Value::List(right.to_vec()));
            for at in 0..values.len() {
                let mut values = values.clone();
                values.remove(at);
                give(Value::List(values));
            }
        }
        Value::List(values) => {
            for value in values {
                simpler_values(value, &mut |simpler| give(Value::List(vec![simpler])));
            }
        }
        Value::Message(message) => {
            simpler_messages(message, &mut |simpler| give(Value::Message(simpler)));
        }
        _ => {}
    }
}
