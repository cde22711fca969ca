//! States of the old component along the log, and instances of the new component that restored them.

use super::Upgrade;
use crate::{
    calls::{Action, Clock, Step},
    checks::{cuts, different},
    finding::{Finding, Stop, place},
    player::{Answer, Played, Player},
};
use conclave_machine::{Broken, Component};

/// Maximum number of different queries right after the migration.
const QUESTIONS_MAX: usize = 16;
/// Maximum number of steps after an upgrade.
const REST_STEPS_MAX: usize = 2_000;

/// A place of the log at which the upgrade is tried.
pub(super) struct Place {
    /// The number of steps before it.
    pub(super) at: usize,
    /// The old component's snapshot.
    pub(super) state: Vec<u8>,
    /// The old component's answers to the queries.
    pub(super) told: Vec<Answer>,
    clock: Clock,
}

impl Place {
    /// The steps that follow: the tick that a host sends after an activation, and then those of the log.
    pub(super) fn rest(&self, steps: &[Step]) -> Vec<Step> {
        let end = steps.len().min(self.at + REST_STEPS_MAX);
        let tick = Step { time_ms: 0, action: Action::Tick };
        [tick]
            .into_iter()
            .chain(steps.get(self.at..end).unwrap_or_default().iter().cloned())
            .collect()
    }

    /// Plays steps from this place on, up to the first trap.
    pub(super) fn play(&self, player: &mut Player, steps: &[Step]) -> Result<Played, Stop> {
        let mut clock = self.clock;
        Ok(player.play(steps.iter().map(|step| (step, clock.advance(step))))?)
    }

    /// Makes the queries, up to the first trap.
    pub(super) fn ask(&self, player: &mut Player, questions: &[Step]) -> Result<Vec<Answer>, Stop> {
        let mut clock = self.clock;
        Ok(player.play(questions.iter().map(|step| (step, clock.advance(step))))?.answers)
    }

    /// An instance of the new component that restored this state from pieces of at most `bytes_max`.
    pub(super) fn migrated(
        &self,
        upgrade: &Upgrade<'_>,
        new: &Component,
        bytes_max: usize,
    ) -> Result<Player, Stop> {
        self.taken_by(
            new,
            upgrade.old.state_version(),
            &self.state,
            bytes_max,
            "the old component's snapshot",
        )
    }

    /// An instance that restored a state of another component.
    pub(super) fn taken_by(
        &self,
        component: &Component,
        state_version: u32,
        state: &[u8],
        bytes_max: usize,
        what: &str,
    ) -> Result<Player, Stop> {
        let mut player = Player::start(component)?;
        let found = |why: String| {
            let what = format!("{what} {} (format {state_version}) {why}", place(self.at));
            Stop::Found(Finding::new(what, self.at))
        };
        match player.take(state_version, state, bytes_max) {
            Ok(Ok(())) => Ok(player),
            Ok(Err(failure)) => Err(found(format!("is refused: {}", failure.message))),
            Err(Broken::Trap(trap)) => {
                let words = player.last_error().unwrap_or(trap.message);
                Err(found(format!("causes a trap in the component that restores it: {words}")))
            }
            Err(Broken::Ended(ended)) => Err(Stop::Fatal(ended.into())),
        }
    }
}

/// The different queries of the log.
pub(super) fn questions(steps: &[Step]) -> Vec<Step> {
    different(steps, Step::is_query, QUESTIONS_MAX)
}

/// Plays the log on the old component, and saves the state at some places. Returns no places if
/// the log traps.
pub(super) fn places(upgrade: &Upgrade<'_>, steps: &[Step]) -> Result<Vec<Place>, Stop> {
    let questions = questions(steps);
    let wanted = cuts(steps.len(), upgrade.places_max);
    let mut player = Player::start(upgrade.old)?;
    let mut clock = Clock::default();
    let mut places = Vec::new();
    for at in 0..=steps.len() {
        if wanted.contains(&at) {
            let mut place = Place { at, state: player.save(at)?, told: Vec::new(), clock };
            place.told = place.ask(&mut player, &questions)?;
            if let Some(Answer::Trapped(_)) = place.told.last() {
                return Ok(Vec::new());
            }
            places.push(place);
        }
        let Some(step) = steps.get(at) else { break };
        if let Answer::Trapped(_) = player.step(step, clock.advance(step))? {
            return Ok(Vec::new());
        }
    }
    Ok(places)
}
