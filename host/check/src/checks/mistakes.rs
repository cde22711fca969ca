//! Checks for mistakes that all replicas make alike: failed calls that change the state, and lost wake-ups.
//!
//! Neither breaks the contract, so a finding is a warning.

use super::{Live, cuts, live};
use crate::{
    bench::Bench,
    calls::{Action, Clock, Step, contexts},
    compare::state_sides,
    finding::{Finding, Stop},
    player::{Answer, Player},
};
use conclave_machine::EntryContext;
use conclave_types::Outcome;

/// Maximum number of failed calls per method. A snapshot is taken before each.
const FAILURES_PER_METHOD: usize = 8;
/// Number of places at which later ticks are tried.
const FEW_CUTS: usize = 6;
/// Pauses of a second, a minute, an hour and a day.
const PAUSES_MS: [u64; 4] = [1_000, 60_000, 3_600_000, 86_400_000];

/// Compares the states before and after a failed call, both directly and after a tick.
pub(super) fn failures(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let Some(live) = live(bench.component, steps)? else { return Ok(String::new()) };
    let failed = failed(steps, &live);
    let mut player = Player::start(bench.component)?;
    for (at, (step, context)) in steps.iter().zip(contexts(steps)).enumerate() {
        let before = if failed.contains(&at) { Some(player.save(at)?) } else { None };
        player.step(step, context)?;
        let Some(before) = before else { continue };
        let after = player.save(at + 1)?;
        if after == before {
            continue;
        }
        let by_time = ticked(bench, &before, context, at)?;
        let explained = by_time.as_ref() == Some(&after)
            || (by_time.is_some() && by_time == ticked(bench, &after, context, at + 1)?);
        if explained {
            continue;
        }
        let what = format!("step {} ({}) fails, but changes the state", at + 1, step.name());
        let sides = state_sides(("before", &before), ("after", &after));
        return Err(Stop::Found(Finding { mild: true, ..Finding::new(what, at + 1).with(sides) }));
    }
    Ok(format!("{} calls that failed", failed.len()))
}

/// The commands that failed, limited per method.
fn failed(steps: &[Step], live: &Live) -> Vec<usize> {
    let mut seen = std::collections::HashMap::new();
    let answered = steps.iter().zip(&live.played.answers).enumerate();
    let failed = answered.filter(|(_, (step, answer))| {
        if !matches!(answer, Answer::Applied(Outcome::Failure(_))) {
            return false;
        }
        let seen: &mut usize = seen.entry(step.name()).or_default();
        *seen += 1;
        *seen <= FAILURES_PER_METHOD
    });
    failed.map(|(at, _)| at).collect()
}

/// Looks for a tick before the wake-up time that would change the state.
pub(super) fn wake_ups(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let Some(live) = live(bench.component, steps)? else { return Ok(String::new()) };
    let places = cuts(steps.len(), FEW_CUTS);
    let mut player = Player::start(bench.component)?;
    let mut clock = Clock::default();
    let (mut pending, mut drops, mut ticks) = (None, 0, 0);
    for (at, step) in steps.iter().enumerate() {
        let context = clock.advance(step);
        player.step(step, context)?;
        let before: Option<u64> = pending;
        if let Some(Answer::Applied(Outcome::Reply(reply))) = live.played.answers.get(at) {
            pending = reply.wake_at_ms;
        }
        let is_late = |at_ms: &u64| pending.is_none_or(|wake_at_ms| wake_at_ms > *at_ms);
        // A wake-up time in the past shows nothing: a tick now may change the state in any case.
        let before = before.filter(|before_ms| *before_ms > context.time_ms && is_late(before_ms));
        let dropped = before.filter(|_| drops < bench.cuts_max);
        drops += usize::from(dropped.is_some());
        let mut times: Vec<_> = dropped.into_iter().collect();
        if places.contains(&(at + 1)) {
            times.extend(PAUSES_MS.map(|pause_ms| context.time_ms.saturating_add(pause_ms)));
        }
        times.retain(is_late);
        ticks += times.len();
        if let Some(late) = late(bench, &mut player, (clock, &times), at + 1)? {
            let wake_up = match pending {
                Some(wake_at_ms) => format!("the wake-up time is {wake_at_ms}"),
                None => "there is no wake-up time".to_owned(),
            };
            let before = match before {
                Some(before_ms) => format!(" (it was {before_ms} before)"),
                None => String::new(),
            };
            let what = format!(
                "after step {} ({}) {wake_up}{before}, and a tick at {} would change the state",
                at + 1,
                step.name(),
                late.time_ms
            );
            let sides = state_sides(("state", &late.state), ("ticked", &late.ticked));
            return Err(Stop::Found(Finding {
                mild: true,
                ..Finding::new(what, at + 1).with(sides)
            }));
        }
    }
    Ok(format!("{ticks} ticks before the wake-up time; it was postponed {drops} times"))
}

/// A tick before the wake-up time that changed the state.
struct Late {
    time_ms: u64,
    state: Vec<u8>,
    ticked: Vec<u8>,
}

/// Returns the first of these times at which a tick would change something that a tick now would not change.
fn late(
    bench: &Bench<'_>,
    player: &mut Player,
    (clock, times): (Clock, &[u64]),
    at: usize,
) -> Result<Option<Late>, Stop> {
    let tick_at = |time_ms| {
        let mut clock = clock;
        clock.advance(&Step { time_ms, action: Action::Tick })
    };
    if times.is_empty() {
        return Ok(None);
    }
    let state = player.save(at)?;
    let Some(now) = ticked(bench, &state, tick_at(0), at)? else { return Ok(None) };
    for &time_ms in times {
        // The check `traps` reports a trap here.
        let Some(ticked) = ticked(bench, &state, tick_at(time_ms), at)? else { continue };
        if ticked != state && ticked != now {
            return Ok(Some(Late { time_ms, state, ticked }));
        }
    }
    Ok(None)
}

/// The state after a tick on a restored instance. `None` if the tick traps.
fn ticked(
    bench: &Bench<'_>,
    state: &[u8],
    context: EntryContext,
    at: usize,
) -> Result<Option<Vec<u8>>, Stop> {
    let mut player = Player::restored(bench.component, state, at)?;
    let tick = Step { time_ms: context.time_ms, action: Action::Tick };
    match player.step(&tick, context)? {
        Answer::Trapped(_) => Ok(None),
        _ => Ok(Some(player.save(at)?)),
    }
}
