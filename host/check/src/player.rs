//! Instances on which steps are played, and their answers.

use bytes::Bytes;

use super::{
    calls::{Action, Step, contexts},
    finding::{Finding, Stop, place},
};
use conclave_machine::{
    AnswerSize, Broken, Component, EntryContext, FatalError, OpenSnapshot,
    SNAPSHOT_CHUNK_BYTES_MAX, Standalone,
};
use conclave_types::{Call, Failure, Outcome, Trap};

/// The answer to a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The outcome of an entry. Never a trap.
    Applied(Outcome),
    /// The result of a query.
    Told(Result<Bytes, Failure>),
    /// The state machine trapped. The instance cannot be used any more.
    Trapped(Trap),
}

impl Answer {
    /// Returns true if the state machine answered with a failure.
    pub(super) fn refused(&self) -> bool {
        matches!(self, Self::Applied(Outcome::Failure(_)) | Self::Told(Err(_)))
    }
}

/// One instance. It must be dropped after a trap.
pub(super) struct Player {
    standalone: Standalone,
    state_version: u32,
}

/// The results of a played log.
#[derive(Clone, Debug, Default)]
pub(super) struct Played {
    /// One answer per step. The last one may be a trap, and then the steps after it were not played.
    pub(super) answers: Vec<Answer>,
    /// The fuel that each step used.
    pub(super) fuel: Vec<u64>,
}

impl Played {
    /// Returns true if the log was played to its end.
    pub(super) fn whole(&self) -> bool {
        !matches!(self.answers.last(), Some(Answer::Trapped(_)))
    }
}

impl Player {
    /// Starts an instance in the initial state.
    pub(super) fn start(component: &Component) -> Result<Self, Stop> {
        let standalone =
            Standalone::start(component).map_err(|broke| stop(broke, "while it is started", 0))?;
        Ok(Self { standalone, state_version: component.state_version() })
    }

    /// Starts an instance in a saved state. `at` is the number of steps that led to the state.
    pub(super) fn restored(component: &Component, state: &[u8], at: usize) -> Result<Self, Stop> {
        let mut player = Self::start(component)?;
        player.restore(state, SNAPSHOT_CHUNK_BYTES_MAX, at)?;
        Ok(player)
    }

    /// Plays one step.
    pub(super) fn step(
        &mut self,
        step: &Step,
        context: EntryContext,
    ) -> Result<Answer, FatalError> {
        let answer = match &step.action {
            Action::Apply(call) => self.standalone.apply(context, Some(call)).map(Answer::Applied),
            Action::Tick => self.standalone.apply(context, None).map(Answer::Applied),
            Action::Query(call) => self.standalone.query(context, call).map(Answer::Told),
        };
        trapped(answer)
    }

    /// Makes a query that is not a step.
    pub(super) fn ask(&mut self, call: &Call, context: EntryContext) -> Result<Answer, FatalError> {
        trapped(self.standalone.query(context, call).map(Answer::Told))
    }

    /// Plays steps to the end or to the first trap.
    pub(super) fn play<'a>(
        &mut self,
        steps: impl IntoIterator<Item = (&'a Step, EntryContext)>,
    ) -> Result<Played, FatalError> {
        let mut played = Played::default();
        for (step, context) in steps {
            let answer = self.step(step, context)?;
            let trapped = matches!(answer, Answer::Trapped(_));
            played.answers.push(answer);
            played.fuel.push(self.standalone.fuel_used());
            if trapped {
                break;
            }
        }
        Ok(played)
    }

    /// The bytes of the state, read in pieces of at most `bytes_max`.
    pub(super) fn save_in(&mut self, bytes_max: usize, at: usize) -> Result<Vec<u8>, Stop> {
        let snapshot = self.open(at)?;
        let bytes = self.read_rest(snapshot, bytes_max, at)?;
        self.close(snapshot, at)?;
        Ok(bytes)
    }

    /// The bytes of the state, read as a node reads them. `at` is the number of steps that led to the state.
    pub(super) fn save(&mut self, at: usize) -> Result<Vec<u8>, Stop> {
        self.save_in(SNAPSHOT_CHUNK_BYTES_MAX, at)
    }

    /// Captures the state as a snapshot.
    pub(super) fn open(&mut self, at: usize) -> Result<OpenSnapshot, Stop> {
        self.standalone.snapshot().map_err(|broke| stop(broke, "while a snapshot is taken", at))
    }

    /// Reads the next piece of a snapshot.
    pub(super) fn read(
        &mut self,
        snapshot: OpenSnapshot,
        bytes_max: usize,
        at: usize,
    ) -> Result<Bytes, Stop> {
        let read = self.standalone.read(snapshot, bytes_max);
        read.map_err(|broke| stop(broke, "while a snapshot is read", at))
    }

    /// Reads the rest of a snapshot.
    pub(super) fn read_rest(
        &mut self,
        snapshot: OpenSnapshot,
        bytes_max: usize,
        at: usize,
    ) -> Result<Vec<u8>, Stop> {
        let mut bytes = Vec::new();
        loop {
            let piece = self.read(snapshot, bytes_max, at)?;
            if piece.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&piece);
        }
    }

    /// Closes a snapshot.
    pub(super) fn close(&mut self, snapshot: OpenSnapshot, at: usize) -> Result<(), Stop> {
        self.standalone
            .close(snapshot)
            .map_err(|broke| stop(broke, "while a snapshot is dropped", at))
    }

    /// Replaces the state with a snapshot of any component. The inner error is the state machine's failure.
    pub(super) fn take(
        &mut self,
        state_version: u32,
        state: &[u8],
        bytes_max: usize,
    ) -> Result<Result<(), Failure>, Broken> {
        self.standalone.restore(state_version, state, bytes_max)
    }

    /// Replaces the state with a saved one.
    pub(super) fn restore(
        &mut self,
        state: &[u8],
        bytes_max: usize,
        at: usize,
    ) -> Result<(), Stop> {
        let restored = self.take(self.state_version, state, bytes_max);
        let restored = restored.map_err(|broke| stop(broke, "while a snapshot is restored", at))?;
        restored.map_err(|failure| {
            let what = format!(
                "the snapshot {}, written in pieces of at most {bytes_max} bytes, is not restored: {}",
                place(at),
                failure.message
            );
            Stop::Found(Finding::new(what, at))
        })
    }

    /// The fuel that the last call used.
    pub(super) fn fuel_used(&self) -> u64 {
        self.standalone.fuel_used()
    }

    /// The fuel that all calls used.
    pub(super) fn fuel_used_in_all(&self) -> u64 {
        self.standalone.fuel_used_in_all()
    }

    /// The size of the last answer, even if it was rejected because it is too large.
    pub(super) fn answer_size(&self) -> AnswerSize {
        self.standalone.answer_size()
    }

    /// The size of the instance's linear memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.standalone.memory_bytes()
    }

    /// The last error line that the state machine logged.
    pub(super) fn last_error(&mut self) -> Option<String> {
        self.standalone.last_error()
    }
}

/// Pairs steps with their entry contexts.
pub(super) fn timed(steps: &[Step]) -> impl Iterator<Item = (&Step, EntryContext)> {
    steps.iter().zip(contexts(steps))
}

fn trapped(answer: Result<Answer, Broken>) -> Result<Answer, FatalError> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(Broken::Trap(trap)) => Ok(Answer::Trapped(trap)),
        Err(Broken::Ended(ended)) => Err(ended.into()),
    }
}

/// Converts a trap outside of a step to a finding. Such a trap is no outcome: a node cannot
/// continue after it.
fn stop(broke: Broken, when: &str, at: usize) -> Stop {
    match broke {
        Broken::Trap(trap) => Stop::Found(Finding::new(
            format!("{} the state machine traps {when}: {}", place(at), trap.message),
            at,
        )),
        Broken::Ended(ended) => Stop::Fatal(ended.into()),
    }
}
