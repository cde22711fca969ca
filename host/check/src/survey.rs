//! The first look at a log: which steps trap, and what all others take.
//!
//! A node rolls a trap back, so the log without the steps that trap is what the other checks work with.
//! The steps that trap are kept apart, each with the log that led to it.

use super::{
    calls::{Clock, Step},
    finding::Stop,
    player::{Answer, Player},
};
use conclave_machine::Component;
use conclave_types::Trap;

/// Steps that may trap, each of which costs playing the log again. Far more than anybody reads.
const TRAPS_MAX: usize = 64;

/// A step that trapped.
#[derive(Clone, Debug)]
pub(super) struct Trapped {
    /// How many calm steps came before.
    pub(super) after: usize,
    /// The step.
    pub(super) step: Step,
    /// Its trap.
    pub(super) trap: Trap,
    /// What the machine wrote to its log before, if it did.
    pub(super) words: Option<String>,
}

/// Plays a log on one instance, and goes on after a trap as a node does.
pub(super) struct Survey {
    component: Component,
    player: Player,
    clock: Clock,
    /// The steps that did not trap.
    pub(super) calm: Vec<Step>,
    /// What they answered.
    pub(super) answers: Vec<Answer>,
    /// What each of them took.
    pub(super) fuel: Vec<u64>,
    /// The steps that trapped.
    pub(super) traps: Vec<Trapped>,
    /// The linear memory that the instance held at the beginning and at the end.
    pub(super) memory_bytes: (usize, usize),
}

impl Survey {
    /// Of an empty log.
    pub(super) fn new(component: &Component) -> Result<Self, Stop> {
        let player = Player::start(component)?;
        let memory_bytes = (player.memory_bytes(), player.memory_bytes());
        Ok(Self {
            component: component.clone(),
            player,
            clock: Clock::default(),
            calm: Vec::new(),
            answers: Vec::new(),
            fuel: Vec::new(),
            traps: Vec::new(),
            memory_bytes,
        })
    }

    /// Whether it goes on: a machine that traps all the time is not looked at for ever.
    pub(super) fn goes_on(&self) -> bool {
        self.traps.len() < TRAPS_MAX
    }

    /// Plays one more step.
    pub(super) fn push(&mut self, step: Step) -> Result<Answer, Stop> {
        let mut clock = self.clock;
        let answer = self.player.step(&step, clock.advance(&step))?;
        if let Answer::Trapped(trap) = &answer {
            let words = self.player.last_words();
            let after = self.calm.len();
            self.traps.push(Trapped { after, step, trap: trap.clone(), words });
            self.rebuild()?;
        } else {
            self.clock = clock;
            self.calm.push(step);
            self.answers.push(answer.clone());
            self.fuel.push(self.player.fuel_used());
            self.memory_bytes.1 = self.player.memory_bytes();
        }
        Ok(answer)
    }

    /// The instance is gone. Another one lives through the same log.
    fn rebuild(&mut self) -> Result<(), Stop> {
        self.player = Player::start(&self.component)?;
        let mut clock = Clock::default();
        for step in &self.calm {
            let context = clock.advance(step);
            // Should this trap, the next step is told so, and the checks of replays say the rest.
            if let Answer::Trapped(_) = self.player.step(step, context)? {
                break;
            }
        }
        Ok(())
    }
}
