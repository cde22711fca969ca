//! Generates a log of calls from a state machine's descriptor while the state machine runs.

use bytes::Bytes;
use prost::Message;
use prost_reflect::DynamicMessage;

use super::{
    calls::{Action, Step, TIME_MS},
    finding::Stop,
    player::Answer,
    survey::Survey,
    values::Values,
    vocabulary::{Method, Vocabulary},
};
use conclave_machine::{Component, MethodKind};
use conclave_types::{Call, Outcome, TrapKind};

/// Maximum number of remembered requests. They are repeated unchanged or with one changed field.
const REMEMBERED_MAX: usize = 64;
/// Number of traps after which a method gets only requests that did not trap before.
const TRAPS_A_METHOD: usize = 12;

/// Generates `count` steps, and returns the results of playing them.
pub(super) fn generate(
    component: &Component,
    vocabulary: &Vocabulary,
    count: usize,
    seed: u64,
) -> Result<Survey, Stop> {
    let mut generator = Generator {
        values: Values::new(seed),
        vocabulary,
        time_ms: TIME_MS,
        wake_at_ms: None,
        ticked: false,
        requests: Vec::new(),
        trapped: Vec::new(),
    };
    let mut survey = Survey::new(component)?;
    for _ in 0..count {
        let Some(step) = generator.step().filter(|_| survey.goes_on()) else { break };
        let answer = survey.push(step.clone())?;
        generator.learn(&step, &answer);
    }
    Ok(survey)
}

struct Generator<'a> {
    values: Values,
    vocabulary: &'a Vocabulary,
    time_ms: u64,
    /// The wake-up time that the last reply requested.
    wake_at_ms: Option<u64>,
    /// Whether any reply requested a wake-up time. Only then are additional ticks generated, as
    /// after a restore.
    ticked: bool,
    /// Requests that have not trapped, each with the index of its method.
    requests: Vec<(usize, Bytes)>,
    trapped: Vec<(usize, TrapKind)>,
}

impl Generator<'_> {
    fn step(&mut self) -> Option<Step> {
        self.time_ms += self.wait_ms();
        let due = self.wake_at_ms.is_some_and(|wake_at_ms| wake_at_ms <= self.time_ms);
        let unasked = self.ticked && self.values.chance(2);
        let action = if due || unasked {
            self.wake_at_ms = None;
            Action::Tick
        } else {
            self.call()?
        };
        Some(Step { time_ms: self.time_ms, action })
    }

    fn wait_ms(&mut self) -> u64 {
        if let Some(wake_at_ms) = self.wake_at_ms
            && self.values.chance(10)
        {
            // Limited to an hour: a wait of a year would make everything else expire.
            let wait_ms = wake_at_ms.saturating_sub(self.time_ms);
            return if wait_ms < 3_600_000 { wait_ms } else { 0 };
        }
        match self.values.below(100) {
            0..70 => self.values.below(6) as u64,
            70..95 => self.values.below(1_000) as u64,
            _ => self.values.below(60_000) as u64,
        }
    }

    fn call(&mut self) -> Option<Action> {
        let number = self.method()?;
        let method = self.vocabulary.methods().get(number)?.clone();
        let request = self.request(number, &method);
        let principal = match self.values.below(10) {
            0..6 => "",
            6..8 => "alice",
            _ => "bob",
        };
        let call = Call { method: method.name, request, principal: principal.into() };
        Some(match method.kind {
            MethodKind::Query => Action::Query(call),
            _ => Action::Apply(call),
        })
    }

    /// Returns true if a method has trapped too often to try new requests.
    fn traps(&self, number: usize) -> bool {
        let traps = self.trapped.iter().filter(|(trapped, _)| *trapped == number);
        // An endless loop takes a second or more each time.
        let weight = |kind: TrapKind| match kind {
            TrapKind::FuelExhausted | TrapKind::MemoryExhausted => TRAPS_A_METHOD,
            _ => 1,
        };
        traps.map(|(_, kind)| weight(*kind)).sum::<usize>() >= TRAPS_A_METHOD
    }

    /// Chooses a method, with a query in one of four cases. Leaves out methods that only trap.
    fn method(&mut self) -> Option<usize> {
        let query = self.values.chance(25);
        let calm = |number: &usize| {
            !self.traps(*number) || self.requests.iter().any(|(calm, _)| calm == number)
        };
        let all = self.vocabulary.methods();
        let calm: Vec<_> = (0..all.len()).filter(calm).collect();
        let of_kind = |number: &usize| {
            all.get(*number).is_some_and(|method| (method.kind == MethodKind::Query) == query)
        };
        let wanted: Vec<_> = calm.iter().copied().filter(of_kind).collect();
        let choice = if wanted.is_empty() { &calm } else { &wanted };
        self.values.one_of(choice).copied()
    }

    fn request(&mut self, number: usize, method: &Method) -> Bytes {
        let earlier: Vec<_> = self
            .requests
            .iter()
            .filter(|(earlier, _)| *earlier == number)
            .map(|(_, request)| request.clone())
            .collect();
        let again = self.values.below(100);
        if let Some(request) = self.values.one_of(&earlier) {
            if again < 10 || self.traps(number) {
                return request.clone();
            }
            if again < 25
                && let Some(mut message) = method.request_message(request)
            {
                self.values.change(&mut message);
                return message.encode_to_vec().into();
            }
        }
        self.whole(method).into()
    }

    /// Remembers a request that did not trap.
    fn remember(&mut self, request: (usize, Bytes)) {
        if self.requests.contains(&request) {
            return;
        }
        let place = self.values.below(REMEMBERED_MAX);
        match self.requests.get_mut(place) {
            Some(old) => *old = request,
            None => self.requests.push(request),
        }
    }

    fn whole(&mut self, method: &Method) -> Vec<u8> {
        let mut bytes = self.values.message(method.request()).encode_to_vec();
        // A generated message has at most one entry per map. Protobuf merges concatenated messages,
        // so appending messages adds entries, in the same order in every run.
        let maps = method.request().fields().filter(|field| field.is_map());
        for map in maps {
            for _ in 0..self.values.below(4) {
                let message = self.values.message(method.request());
                let mut only = DynamicMessage::new(method.request().clone());
                if message.has_field(&map) {
                    let _ = only.try_set_field(&map, message.get_field(&map).into_owned());
                }
                bytes.extend(only.encode_to_vec());
            }
        }
        bytes
    }

    fn learn(&mut self, step: &Step, answer: &Answer) {
        let call = step.call();
        let is_called = |method: &Method| call.is_some_and(|call| call.method == method.name);
        let number = self.vocabulary.methods().iter().position(is_called);
        let request = number.zip(call.map(|call| call.request.clone()));
        if let Some(request) = request {
            match answer {
                Answer::Trapped(trap) => {
                    self.trapped.push((request.0, trap.kind));
                    self.requests.retain(|known| *known != request);
                }
                _ => self.remember(request),
            }
        }
        let method = number.and_then(|number| self.vocabulary.methods().get(number));
        let response = match answer {
            Answer::Applied(Outcome::Reply(reply)) => {
                self.wake_at_ms = reply.wake_at_ms;
                self.ticked |= reply.wake_at_ms.is_some();
                &reply.response
            }
            Answer::Told(Ok(response)) => response,
            _ => return,
        };
        if let Some(message) = method.and_then(|method| method.response(response)) {
            self.values.learn(&message);
        }
    }
}
