//! Compares the largest responses and events with the limits of a node.
//!
//! A generated log has small values. So successful requests are repeated with large ones: texts and
//! byte strings are enlarged, and lists of messages are extended, up to the request limit. The
//! first field of a message keeps its value, because it usually is a name, and names are short. It
//! is enlarged only if the request has no other field to enlarge.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};

use super::{
    bench::Bench,
    calls::{Action, Clock, Step},
    finding::Stop,
    player::{Answer, Player},
    report::{Checked, Verdict, size},
    survey::Survey,
    vocabulary::Method,
};
use conclave_machine::{AnswerSize, MethodKind};
use conclave_types::{Call, limits::REQUEST_BYTES_MAX};

const NAME: &str = "answers";
const MEANING: &str =
    "answers stay within the limits, even for requests as large as a node accepts";
/// Number of enlarged requests per method.
const REQUESTS_A_METHOD: usize = 4;
/// Total numbers of items in a list.
const ITEMS: [usize; 3] = [1, 4, 128];
/// Maximum sizes of one text in bytes: small, as large as fits, and slightly below a limit that
/// many state machines have. The last size comes last so that large values remain stored.
const TEXT_BYTES: [usize; 3] = [1 << 10, REQUEST_BYTES_MAX.default, (1 << 20) - 64];
/// Maximum number of queries after each enlarged request.
const QUESTIONS_MAX: usize = 16;
/// Approximate size of the rest of a request, in bytes.
const REST_BYTES: usize = 64 << 10;
/// Maximum number of traps to collect. After each trap the log is played again.
const TRAPS_MAX: usize = 4;

/// The largest answer to one method.
#[derive(Default)]
struct Largest {
    bytes: usize,
    method: String,
}

impl Largest {
    fn note(&mut self, bytes: usize, method: &str) {
        if bytes > self.bytes {
            (self.bytes, self.method) = (bytes, method.to_owned());
        }
    }

    fn said(&self, what: &str, limit: usize) -> String {
        match self.bytes {
            0 => format!("no {what}"),
            bytes => {
                format!("{what} of {} at most ({}), of {}", size(bytes), self.method, size(limit))
            }
        }
    }

    /// Returns true if the size is in the last tenth of the limit.
    fn is_near(&self, limit: usize) -> bool {
        self.bytes > limit - limit / 10
    }
}

/// Checks the sizes of responses and events.
pub(super) fn answers(bench: &Bench<'_>, survey: &Survey) -> Result<Checked, Stop> {
    let limits = bench.component.engine().limits();
    let mut probe = Probe::new(bench, survey)?;
    for method in bench.vocabulary.methods() {
        for request in well(survey, method) {
            probe.enlarge(method, &request)?;
            probe.ask()?;
        }
        // Stored large values must not cause refusals of the next method's requests.
        probe.start()?;
    }
    let (responses, events) = (&probe.responses, &probe.events);
    let near = responses.is_near(limits.cluster.response_bytes_max)
        || events.is_near(limits.cluster.event_bytes_max);
    let trapped = probe.trapped.first();
    let mut said = vec![
        responses.said("a response", limits.cluster.response_bytes_max),
        events.said("events", limits.cluster.event_bytes_max),
        format!("{} calls with large values", probe.calls),
    ];
    said.extend(trapped.map(|trapped| format!("one trapped: {trapped}")));
    let verdict = if near || trapped.is_some() { Verdict::Warned } else { Verdict::Ok };
    let mut checked = Checked::new(NAME, MEANING, verdict, said.join("; "));
    if verdict == Verdict::Warned {
        checked.advice = "A command whose answer is too large is rolled back, and a query fails. Count the \
                          bytes of the response and of the events, and fail with RESOURCE_EXHAUSTED before \
                          the state changes. Return long lists in pages."
            .to_owned();
    }
    Ok(checked)
}

/// Different requests of a method that succeeded.
fn well(survey: &Survey, method: &Method) -> Vec<Bytes> {
    let mut requests = Vec::new();
    for (step, answer) in survey.calm.iter().zip(&survey.answers) {
        if let Some(call) = step.call()
            && call.method == method.name
            && !answer.refused()
            && !requests.contains(&call.request)
        {
            requests.push(call.request.clone());
        }
    }
    // Longer requests have more fields to enlarge.
    requests.sort_by_key(|request| std::cmp::Reverse(request.len()));
    requests.truncate(REQUESTS_A_METHOD);
    requests
}

/// Extends lists to `items` items and texts to at most `text_bytes` bytes. Returns `None` if the
/// result is larger than a request may be.
fn enlarged(method: &Method, request: &[u8], items: usize, text_bytes: usize) -> Option<Vec<u8>> {
    let mut message = method.request_message(request)?;
    repeat(&mut message, items);
    let only_first = texts(&message, false) == 0;
    let texts = texts(&message, only_first);
    let room = REQUEST_BYTES_MAX.default.saturating_sub(message.encoded_len() + REST_BYTES);
    if let Some(share) = room.checked_div(texts) {
        enlarge(&mut message, only_first, share.min(text_bytes));
    }
    Some(message.encode_to_vec()).filter(|bytes| bytes.len() <= REQUEST_BYTES_MAX.default)
}

/// Extends the lists of messages in a message to `items` items.
fn repeat(message: &mut DynamicMessage, items: usize) {
    let fields: Vec<_> = message.descriptor().fields().collect();
    for field in fields {
        let is_messages = field.is_list() && matches!(field.kind(), Kind::Message(_));
        if is_messages
            && let Value::List(values) = message.get_field_mut(&field)
            && !values.is_empty()
        {
            let more = items.saturating_sub(values.len());
            values.extend(values.clone().into_iter().cycle().take(more).collect::<Vec<_>>());
        }
    }
}

/// The text and byte fields of a message that are enlarged. Leaves out the other fields of a oneof
/// of which one is set. Includes the first field only if `with_first` is set.
fn large_fields(message: &DynamicMessage, with_first: bool) -> Vec<FieldDescriptor> {
    let is_free = |field: &FieldDescriptor| match field.containing_oneof() {
        Some(group) => {
            let other_is_set = group.fields().any(|other| message.has_field(&other));
            message.has_field(field) || !other_is_set
        }
        None => true,
    };
    let mut groups = BTreeSet::new();
    message
        .descriptor()
        .fields()
        .filter(|field| {
            let is_text = matches!(field.kind(), Kind::String | Kind::Bytes);
            is_text && field.cardinality() != prost_reflect::Cardinality::Repeated
        })
        .filter(|field| (with_first || field.number() != 1) && is_free(field))
        // Only one field of each oneof can be set.
        .filter(|field| match field.containing_oneof() {
            Some(group) => groups.insert(group.full_name().to_owned()),
            None => true,
        })
        .collect()
}

/// Counts the values that would be enlarged.
fn texts(message: &DynamicMessage, with_first: bool) -> usize {
    let of = |message: &DynamicMessage| texts(message, with_first);
    let inner = message.fields().map(|(_, value)| match value {
        Value::Message(inner) => of(inner),
        Value::List(values) => values.iter().filter_map(Value::as_message).map(of).sum(),
        _ => 0,
    });
    large_fields(message, with_first).len() + inner.sum::<usize>()
}

fn enlarge(message: &mut DynamicMessage, with_first: bool, bytes: usize) {
    for field in large_fields(message, with_first) {
        let value = match field.kind() {
            Kind::String => Value::String("x".repeat(bytes)),
            _ => Value::Bytes(vec![b'x'; bytes].into()),
        };
        let _ = message.try_set_field(&field, value);
    }
    for (_, value) in message.fields_mut() {
        match value {
            Value::Message(inner) => enlarge(inner, with_first, bytes),
            Value::List(values) => {
                values
                    .iter_mut()
                    .filter_map(Value::as_message_mut)
                    .for_each(|inner| enlarge(inner, with_first, bytes));
            }
            _ => {}
        }
    }
}

/// An instance in the state after the log, with the sizes observed so far.
struct Probe<'a> {
    bench: &'a Bench<'a>,
    survey: &'a Survey,
    player: Player,
    clock: Clock,
    time_ms: u64,
    responses: Largest,
    events: Largest,
    trapped: Vec<String>,
    calls: usize,
}

impl<'a> Probe<'a> {
    fn new(bench: &'a Bench<'a>, survey: &'a Survey) -> Result<Self, Stop> {
        let mut probe = Self {
            bench,
            survey,
            player: Player::start(bench.component)?,
            clock: Clock::default(),
            time_ms: survey.calm.last().map_or(0, |step| step.time_ms),
            responses: Largest::default(),
            events: Largest::default(),
            trapped: Vec::new(),
            calls: 0,
        };
        probe.start()?;
        Ok(probe)
    }

    /// Plays the log on a new instance.
    fn start(&mut self) -> Result<(), Stop> {
        self.player = Player::start(self.bench.component)?;
        self.clock = Clock::default();
        for step in &self.survey.calm {
            let context = self.clock.advance(step);
            let answer = self.player.step(step, context)?;
            self.note(step.name());
            // Other checks report this trap.
            if let Answer::Trapped(_) = answer {
                break;
            }
        }
        Ok(())
    }

    /// Repeats a request once in each size.
    fn enlarge(&mut self, method: &Method, request: &[u8]) -> Result<(), Stop> {
        let mut lengths = BTreeSet::new();
        for items in ITEMS {
            for text_bytes in TEXT_BYTES {
                let enlarged = enlarged(method, request, items, text_bytes);
                if let Some(request) = enlarged.filter(|request| lengths.insert(request.len())) {
                    self.call(method, request)?;
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, method: &Method, request: Vec<u8>) -> Result<(), Stop> {
        let call =
            Call { method: method.name.clone(), request: request.into(), principal: "".into() };
        let is_query = method.kind == MethodKind::Query;
        let action = if is_query { Action::Query(call) } else { Action::Apply(call) };
        self.step(&Step { time_ms: self.time_ms, action })
    }

    /// Makes the log's queries.
    fn ask(&mut self) -> Result<(), Stop> {
        for question in self.bench.questions.iter().take(QUESTIONS_MAX) {
            self.step(&Step { time_ms: self.time_ms, ..question.clone() })?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), Stop> {
        if self.trapped.len() >= TRAPS_MAX {
            return Ok(());
        }
        let context = self.clock.advance(step);
        let answer = self.player.step(step, context)?;
        self.calls += 1;
        self.note(step.name());
        if let Answer::Trapped(trap) = &answer {
            self.trapped.push(trap.message.clone());
            self.start()?;
        }
        Ok(())
    }

    fn note(&mut self, method: &str) {
        let AnswerSize { response_bytes, event_bytes } = self.player.answer_size();
        self.responses.note(response_bytes, method);
        self.events.note(event_bytes, method);
    }
}
