//! A recorded log: the calls that a host would make.

use std::fmt;

use crate::{
    Call, Context, Event, Failure, Machine, Reply,
    limits::{EVENT_BYTES_MAX, RESPONSE_BYTES_MAX},
};

/// Maximum number of different commands of a log that [`Log::afterwards`] applies again.
const COMMANDS_AFTERWARDS: usize = 32;
/// One second, one minute, one hour, one day, one year.
const PAUSES_MS: [u64; 5] = [1_000, 60_000, 3_600_000, 86_400_000, 31_536_000_000];

/// The result of applying an entry.
pub type Outcome = Result<Reply, Failure>;

/// The operation of an entry.
#[derive(Clone, Debug)]
pub enum Operation {
    /// A command.
    Apply(Call),
    /// A tick, after the state machine's wake-up time has come.
    Tick,
}

/// One entry of a log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The index, time, seed and principal of the entry.
    pub context: Context,
    /// The operation to apply.
    pub operation: Operation,
}

impl Entry {
    /// Applies the entry.
    ///
    /// # Panics
    /// If the reply exceeds the limits that every host guarantees ([`limits`](crate::limits)).
    pub fn apply_to<M: Machine>(&self, machine: &mut M) -> Outcome {
        let outcome = match &self.operation {
            Operation::Apply(call) => machine.apply(&self.context, call),
            Operation::Tick => Ok(machine.tick(&self.context)),
        };
        if let Ok(reply) = &outcome {
            let response = reply.response.len();
            assert!(
                response <= RESPONSE_BYTES_MAX,
                "{self}: the response has {response} bytes; the limit is {RESPONSE_BYTES_MAX}"
            );
            let events: usize = reply.events.iter().map(Event::counted_bytes).sum();
            assert!(
                events <= EVENT_BYTES_MAX,
                "{self}: the events count {events} bytes; the limit is {EVENT_BYTES_MAX}"
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

/// A sequence of entries, with the queries and subscriptions to run after each of them.
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
    /// Creates an empty log whose time is close to the present.
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            queries: Vec::new(),
            subscriptions: Vec::new(),
            // As in a real log, the first entries do not belong to the state machine.
            index: 2,
            time_ms: 1_750_000_000_000,
            principal: String::new(),
        }
    }

    /// Adds a command.
    pub fn apply(&mut self, call: Call) -> &mut Self {
        self.push(Operation::Apply(call))
    }

    /// Adds a tick. The conformance tests add none by themselves: add one wherever the wake-up time
    /// has come.
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

    /// Adds a query that the checks run repeatedly. They do not interpret the reply; they only
    /// compare it.
    pub fn ask(&mut self, query: Call) -> &mut Self {
        self.queries.push(query);
        self
    }

    /// Adds a subscription that the checks start repeatedly, like the queries of [`Log::ask`].
    pub fn watch(&mut self, subscription: Call) -> &mut Self {
        self.subscriptions.push(subscription);
        self
    }

    /// Returns the entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the queries.
    pub fn queries(&self) -> &[Call] {
        &self.queries
    }

    /// Returns the subscriptions.
    pub fn subscriptions(&self) -> &[Call] {
        &self.subscriptions
    }

    /// Returns the context of a query that runs after the first `applied` entries.
    pub fn query_context(&self, applied: usize) -> Context {
        match applied.checked_sub(1).and_then(|last| self.entries.get(last)) {
            Some(entry) => entry.context.clone(),
            None => Context { index: 0, time_ms: 0, seed: 0, principal: String::new() },
        }
    }

    /// Returns entries that may follow the first `cut` ones: ticks, at once and after pauses of up
    /// to one year, and the log's different commands once more, before and after the pauses.
    pub(super) fn afterwards(&self, cut: usize) -> Self {
        let mut more = self.clone();
        let rest = more.entries.split_off(cut);
        let last = more.entries.last().or(rest.first());
        more.time_ms = last.map_or(self.time_ms, |entry| entry.context.time_ms);
        let mut commands: Vec<&Entry> = Vec::new();
        // The last commands most likely refer to objects that exist.
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
        // Indexes increase, but not always by one: a real log also contains entries that no state
        // machine sees.
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
