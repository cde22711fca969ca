//! The host's work per entry apart from the call of the state machine, for benchmarks.

use tokio::sync::watch;

use super::{
    digest::{Digests, OutcomeHash},
    events::Events,
    shared::note_wake_up,
};
use crate::{entry_context::EntryContext, state::Wasi};
use conclave_types::{Digest, Outcome};

/// The parts of a worker that do the work, without its threads and instances.
pub struct HostWork {
    digests: Digests,
    wake_at: watch::Sender<Option<u64>>,
    events: Events,
    wasi: Wasi,
}

impl Default for HostWork {
    fn default() -> Self {
        Self {
            digests: Digests::new(0, Digest::default()),
            wake_at: watch::Sender::new(None),
            events: Events::default(),
            wasi: Wasi::new(),
        }
    }
}

impl HostWork {
    /// Does the primary's work for an entry: the entry context of WASI, the digest, and the wake-up time.
    pub fn primary(&mut self, context: EntryContext, outcome: &Outcome) {
        self.call(context);
        note_wake_up(&self.wake_at, outcome);
        self.digests.push(context.index, OutcomeHash::of(outcome));
    }

    /// Does the standby's work for an entry: the entry context of WASI, the hash that it compares with
    /// the primary's, and the events.
    pub fn standby(&mut self, context: EntryContext, outcome: Outcome) {
        self.call(context);
        std::hint::black_box(OutcomeHash::of(&outcome));
        self.events.note(context.index, Some(outcome));
    }

    fn call(&mut self, context: EntryContext) {
        self.wasi.begin(context);
        self.wasi.begin(EntryContext::STILL);
    }
}
