//! The calls that a host would make.

use std::fmt;

use crate::{
    Call, Context, Event, Failure, Machine, Reply,
    limits::{EVENT_BYTES_MAX, RESPONSE_BYTES_MAX},
};

/// Commands of a log that are applied again after it.
const COMMANDS_AFTERWARDS: usize = 32;
/// A second, a minute, an hour, a day, a year.
const PAUSES_MS: [u64; 5] = [1_000, 60_000, 3_600_000, 86_400_000, 31_536_000_000];

/// What applying an entry gave.
pub type Outcome = Result<Reply, Failure>;

/// What an entry asks of the machine.
#[derive(Clone, Debug)]
pub enum Operation {
    /// A command.
    Apply(Call),
    /// The machine's wake-up time has come.
    Tick,
}

/// One entry of a log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What the entry brings along.
    pub context: Context,
    /// What it asks.
    pub operation: Operation,
}

impl Entry {
    /// Applies the entry.
    ///
    /// # Panics
    /// The reply is larger than hosts take ([`limits`](crate::limits)).
    pub fn apply_to<M: Machine>(&self, machine: &mut M) -> Outcome {
        let outcome = match &self.operation {
            Operation::Apply(call) => machine.apply(&self.context, call),
            Operation::Tick => Ok(machine.tick(&self.context)),
        };
        if let Ok(reply) = &outcome {
            let response = reply.response.len();
            assert!(
                response <= RESPONSE_BYTES_MAX,
                "{self}: the response has {response} bytes; hosts take {RESPONSE_BYTES_MAX}"
            );
            let events: usize = reply.events.iter().map(Event::counted_bytes).sum();
            assert!(
                events <= EVENT_BYTES_MAX,
                "{self}: the events count {events} bytes; hosts take {EVENT_BYTES_MAX}"
            );
        }
        outcome
    }
}

impl Entry {
    fn is_call(&self, call: &Call) -> bool {
        match &self.operation {
            Operation::Apply(own) => own.method == call.method && own.request == call.request,
            Operation::Tick => false,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.operation {
            Operation::Apply(call) => &call.method,
            Operation::Tick => "tick",
        };
        write!(f, "{what} at index {}", self.context.index)
    }
}

/// Entries in order, and the questions to ask after each of them.
#[derive(Clone, Debug)]
pub struct Log {
    entries: Vec<Entry>,
    queries: Vec<Call>,
    subscriptions: Vec<Call>,
    index: u64,
    time_ms: u64,
    principal: String,
}

impl Log {
    /// An empty log, at a time like today's.
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            queries: Vec::new(),
            subscriptions: Vec::new(),
            // As in a real log, the first entries are not the machine's.
            index: 2,
            time_ms: 1_750_000_000_000,
            principal: String::new(),
        }
    }

    /// Adds a command.
    pub fn apply(&mut self, call: Call) -> &mut Self {
        self.push(Operation::Apply(call))
    }

    /// Adds a tick. The kit adds none by itself: the log's author does, after the wake-up time has come.
    pub fn tick(&mut self) -> &mut Self {
        self.push(Operation::Tick)
    }

    /// Lets time pass before the next entry.
    pub fn wait_ms(&mut self, milliseconds: u64) -> &mut Self {
        self.time_ms += milliseconds;
        self
    }

    /// Makes the next entries those of `principal`.
    pub fn principal(&mut self, principal: &str) -> &mut Self {
        principal.clone_into(&mut self.principal);
        self
    }

    /// Adds a question that the checks ask again and again. What the answer is does not matter to
    /// them, only that it is the same when it should be.
    pub fn ask(&mut self, query: Call) -> &mut Self {
        self.queries.push(query);
        self
    }

    /// Makes the checks subscribe again and again, as [`Log::ask`] asks.
    pub fn watch(&mut self, subscription: Call) -> &mut Self {
        self.subscriptions.push(subscription);
        self
    }

    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The questions.
    pub fn queries(&self) -> &[Call] {
        &self.queries
    }

    /// The subscriptions.
    pub fn subscriptions(&self) -> &[Call] {
        &self.subscriptions
    }

    /// What a query brings along that is made after the first `applied` entries.
    pub fn query_context(&self, applied: usize) -> Context {
        match applied.checked_sub(1).and_then(|last| self.entries.get(last)) {
            Some(entry) => entry.context.clone(),
            None => Context { index: 0, time_ms: 0, seed: 0, principal: String::new() },
        }
    }

    /// Entries that may follow the first `cut` ones: ticks, at once and after pauses of up to a year, and the log's
    /// different commands once more, before and after the pauses.
    pub(super) fn afterwards(&self, cut: usize) -> Self {
        let mut more = self.clone();
        let rest = more.entries.split_off(cut);
        let last = more.entries.last().or(rest.first());
        more.time_ms = last.map_or(self.time_ms, |entry| entry.context.time_ms);
        let mut commands: Vec<&Entry> = Vec::new();
        // The last ones are about what is there.
        for entry in self.entries.iter().rev() {
            if let Operation::Apply(call) = &entry.operation
                && !commands.iter().any(|other| other.is_call(call))
                && commands.len() < COMMANDS_AFTERWARDS
            {
                commands.push(entry);
            }
        }
        more.entries.clear();
        let again = |more: &mut Self| {
            for entry in &commands {
                more.principal(&entry.context.principal);
                more.push(entry.operation.clone());
            }
        };
        more.tick();
        again(&mut more);
        for pause_ms in PAUSES_MS {
            more.wait_ms(pause_ms).tick();
        }
        again(&mut more);
        more.tick();
        more
    }

    fn push(&mut self, operation: Operation) -> &mut Self {
        // Indexes grow, but not by one: the log also holds entries that no machine sees.
        self.index += if self.index.is_multiple_of(5) { 2 } else { 1 };
        let context = Context {
            index: self.index,
            time_ms: self.time_ms,
            seed: seed(self.index),
            principal: self.principal.clone(),
        };
        self.entries.push(Entry { context, operation });
        self
    }
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): looks random, and is a function of the index alone.
fn seed(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
