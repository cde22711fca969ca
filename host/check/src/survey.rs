//! The first run of a log: finds the steps that trap, and records the answers and fuel of all others.
//!
//! A node rolls a trap back, so the other checks use the log without the steps that trap. Each of
//! those is kept separately, with its position in the log.

use super::{
    calls::{Clock, Step},
    finding::Stop,
    player::{Answer, Player},
};
use conclave_machine::Component;
use conclave_types::Trap;

/// Maximum number of traps. After each trap the log is played again. Far more than a reader needs.
const TRAPS_MAX: usize = 64;

/// A step that trapped.
#[derive(Clone, Debug)]
pub(super) struct Trapped {
    /// Number of steps before this one that did not trap.
    pub(super) after: usize,
    /// The step that trapped.
    pub(super) step: Step,
    /// The trap.
    pub(super) trap: Trap,
    /// The last line that the state machine logged before the trap, if any.
    pub(super) words: Option<String>,
}

/// Plays a log on one instance, and continues after a trap as a node does.
pub(super) struct Survey {
    component: Component,
    player: Player,
    clock: Clock,
    /// The steps that did not trap.
    pub(super) calm: Vec<Step>,
    /// The answers to these steps.
    pub(super) answers: Vec<Answer>,
    /// The fuel that each of these steps used.
    pub(super) fuel: Vec<u64>,
    /// The steps that trapped.
    pub(super) traps: Vec<Trapped>,
    /// The linear memory that the instance held at the beginning and at the end.
    pub(super) memory_bytes: (usize, usize),
}

impl Survey {
    /// Starts with an empty log.
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

    /// Returns false after too many traps, so that a state machine that always traps is not played endlessly.
    pub(super) fn goes_on(&self) -> bool {
        self.traps.len() < TRAPS_MAX
    }

    /// Plays the next step.
    pub(super) fn push(&mut self, step: Step) -> Result<Answer, Stop> {
        let mut clock = self.clock;
        let answer = self.player.step(&step, clock.advance(&step))?;
        if let Answer::Trapped(trap) = &answer {
            let words = self.player.last_error();
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

    /// Replaces the instance that a trap destroyed, and plays the same log on the new one.
    fn rebuild(&mut self) -> Result<(), Stop> {
        self.player = Player::start(&self.component)?;
        let mut clock = Clock::default();
        for step in &self.calm {
            let context = clock.advance(step);
            // If this step traps, the next step returns a trap too, and the replay checks report it.
            if let Answer::Trapped(_) = self.player.step(step, context)? {
                break;
            }
        }
        Ok(())
    }
}
