//! Logs of calls, and their file format.
//!
//! # Format
//! One JSON object per line. Empty lines and lines that begin with `#` are skipped.
//!
//! | field | means |
//! |---|---|
//! | `method` | `package.Service/Method` |
//! | `request` | the request message as protobuf JSON, according to the state machine's descriptor |
//! | `request_base64` | the request's bytes instead, for state machines without a descriptor |
//! | `kind` | `command`, `query` or `tick` (no method). Default: the descriptor's kind, or `command` |
//! | `time_ms` | milliseconds since the Unix epoch, never decreasing. Default: that of the line before |
//! | `principal` | the caller's identity. Default: none |
//!
//! Log indexes follow from the order of the lines, so a file describes a log completely.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    error::{CallError, CheckError, JsonError},
    vocabulary::Vocabulary,
};
use conclave_machine::{EntryContext, MethodKind};
use conclave_types::Call;

/// Default time of a log, close to the present.
pub(super) const TIME_MS: u64 = 1_750_000_000_000;
/// Maximum number of calls in a file. Far more than a check can play in a minute.
const STEPS_MAX: usize = 1_000_000;
/// Maximum size of a method's full name, in bytes. Defined by the contract in `wit/`.
const METHOD_BYTES_MAX: usize = 256;

/// One step of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Time in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The action of this step.
    pub action: Action,
}

/// The action of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A log entry with a call.
    Apply(Call),
    /// A log entry that signals that the requested wake-up time has passed.
    Tick,
    /// A query between two entries. Queries are not part of the log.
    Query(Call),
}

impl Step {
    /// The call of this step, unless the step is a tick.
    pub(super) fn call(&self) -> Option<&Call> {
        match &self.action {
            Action::Apply(call) | Action::Query(call) => Some(call),
            Action::Tick => None,
        }
    }

    /// Returns true for queries.
    pub(super) fn is_query(&self) -> bool {
        matches!(self.action, Action::Query(_))
    }

    /// The method's name, or "tick", for messages.
    pub(super) fn name(&self) -> &str {
        self.call().map_or("tick", |call| &call.method)
    }
}

/// A line of the file.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<Kind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    principal: String,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Command,
    Query,
    Tick,
}

/// Reads a file of calls.
pub(super) fn parse(text: &[u8], vocabulary: &Vocabulary) -> Result<Vec<Step>, CheckError> {
    let mut steps: Vec<Step> = Vec::new();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let refuse = |why| CheckError::Calls { line: number, why };
        let time_ms = steps.last().map_or(TIME_MS, |step| step.time_ms);
        let line: Line = serde_json::from_slice(line)
            .map_err(|error| refuse(CallError::Json(JsonError(error))))?;
        steps.push(step(line, time_ms, vocabulary).map_err(refuse)?);
        if steps.len() > STEPS_MAX {
            let rule = format!("there are more than {STEPS_MAX} calls; split the file");
            return Err(refuse(rule.into()));
        }
    }
    Ok(steps)
}

fn step(line: Line, time_ms: u64, vocabulary: &Vocabulary) -> Result<Step, CallError> {
    let Line { method, request, request_base64, kind, time_ms: stamped, principal } = line;
    let time_ms = stamped.unwrap_or(time_ms).max(time_ms);
    if kind == Some(Kind::Tick) {
        if method.is_some() || request.is_some() || request_base64.is_some() {
            return Err("a tick has neither method nor request".into());
        }
        return Ok(Step { time_ms, action: Action::Tick });
    }
    let method = method.ok_or("`method` is missing: \"package.Service/Method\"")?;
    if method.len() > METHOD_BYTES_MAX {
        return Err(format!("`method` has more than {METHOD_BYTES_MAX} bytes").into());
    }
    let known = vocabulary.method(&method);
    let bytes = match (request, request_base64) {
        (Some(_), Some(_)) => return Err("give `request` or `request_base64`, not both".into()),
        (None, None) => Vec::new(),
        (None, Some(text)) => BASE64.decode(text).map_err(CallError::Base64)?,
        (Some(json), None) => match known {
            Some(known) => known.request_bytes(json).map_err(CallError::Request)?,
            None => {
                return Err(format!(
                    "the state machine describes no method {method}, so `request` cannot be encoded: \
                     correct the name, or give `request_base64`"
                )
                .into());
            }
        },
    };
    let call = Call {
        method: known.map_or_else(|| method.into(), |known| Arc::clone(&known.name)),
        request: bytes.into(),
        principal: principal.into(),
    };
    let query = match kind {
        Some(kind) => kind == Kind::Query,
        None => known.is_some_and(|known| known.kind == MethodKind::Query),
    };
    let action = if query { Action::Query(call) } else { Action::Apply(call) };
    Ok(Step { time_ms, action })
}

/// Formats a step as a line that [`parse`] can read.
pub(super) fn line(step: &Step, vocabulary: &Vocabulary) -> String {
    let mut line = Line {
        method: None,
        request: None,
        request_base64: None,
        kind: Some(Kind::Tick),
        time_ms: Some(step.time_ms),
        principal: String::new(),
    };
    if let Some(call) = step.call() {
        let known = vocabulary.method(&call.method);
        line.method = Some(call.method.to_string());
        line.principal = call.principal.to_string();
        line.request = known.and_then(|known| known.request_json(&call.request));
        if line.request.is_none() {
            line.request_base64 = Some(BASE64.encode(&call.request));
        }
        let kind = if step.is_query() { Kind::Query } else { Kind::Command };
        let described = known.map(|known| match known.kind {
            MethodKind::Query => Kind::Query,
            _ => Kind::Command,
        });
        line.kind = (described != Some(kind)).then_some(kind);
    }
    serde_json::to_string(&line).unwrap_or_default()
}

/// The entry context of each step. A query gets the context of the last entry, so removing queries
/// changes nothing for the entries.
pub(super) fn contexts(steps: &[Step]) -> Vec<EntryContext> {
    let mut clock = Clock::default();
    steps.iter().map(|step| clock.advance(step)).collect()
}

/// Assigns entry contexts to steps.
#[derive(Clone, Copy)]
pub(super) struct Clock(EntryContext);

impl Default for Clock {
    fn default() -> Self {
        Self(EntryContext { index: 0, time_ms: 0, seed: seed(0) })
    }
}

impl Clock {
    /// Returns the context of the next step.
    pub(super) fn advance(&mut self, step: &Step) -> EntryContext {
        if !step.is_query() {
            // As in a real log, indexes begin after the first entries and are not contiguous: the
            // log also holds entries that no state machine receives.
            let index = match self.0.index {
                0 => 3,
                before if before.is_multiple_of(5) => before + 2,
                before => before + 1,
            };
            let time_ms = self.0.time_ms.max(step.time_ms);
            self.0 = EntryContext { index, time_ms, seed: seed(index) };
        }
        self.0
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014). Looks random, but is a function of the index alone.
fn seed(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
