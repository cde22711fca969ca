//! The probes: each tries the upgrade at several places of a log.

use super::{
    Upgrade,
    migrated::{Place, places, questions},
};
use crate::{
    calls::Step,
    compare::{compare, compare_states, show},
    finding::{Finding, Stop, place},
    player::{Answer, Player},
};
use conclave_machine::SNAPSHOT_CHUNK_BYTES_MAX;

/// Sizes of the pieces in which snapshots are written: the size that a node uses, and a smaller one.
const PIECES_BYTES: usize = SNAPSHOT_CHUNK_BYTES_MAX;
const SMALL_PIECES_BYTES: usize = 61;
/// A longer snapshot is written in larger pieces.
const SMALL_PIECES_UP_TO_BYTES: usize = 512 << 10;
const LARGER_PIECES_BYTES: usize = 4096;
/// Maximum number of steps with which the interpreter continues.
const INTERPRETED_STEPS_MAX: usize = 200;

/// Checks that the new component restores each snapshot.
pub(super) fn migration(upgrade: &Upgrade<'_>, steps: &[Step]) -> Result<String, Stop> {
    let places = places(upgrade, steps)?;
    for place in &places {
        let mut player = place.migrated(upgrade, &upgrade.new.component, PIECES_BYTES)?;
        player.save(place.at)?;
    }
    let longest = places.iter().map(|place| place.state.len()).max().unwrap_or_default();
    let (old, new) = (upgrade.old.state_version(), upgrade.new.component.state_version());
    let formats = match old == new {
        true => format!("format {old}"),
        false => format!("from format {old} to {new}"),
    };
    Ok(format!("at {} places, {formats}; the largest snapshot has {longest} bytes", places.len()))
}

/// Checks that three migrations of each snapshot give the same state, and continue in the same way.
pub(super) fn repeated(upgrade: &Upgrade<'_>, steps: &[Step]) -> Result<String, Stop> {
    let places = places(upgrade, steps)?;
    for place in &places {
        let small = match place.state.len() > SMALL_PIECES_UP_TO_BYTES {
            true => LARGER_PIECES_BYTES,
            false => SMALL_PIECES_BYTES,
        };
        let rest = place.rest(steps);
        let few = rest.get(..INTERPRETED_STEPS_MAX).unwrap_or(&rest);
        for (how, component, bytes_max, rest) in [
            ("in small pieces", &upgrade.new.component, small, &rest[..]),
            ("by the interpreter", &upgrade.new.second, PIECES_BYTES, few),
        ] {
            let mut once = place.migrated(upgrade, &upgrade.new.component, PIECES_BYTES)?;
            let mut again = place.migrated(upgrade, component, bytes_max)?;
            alike(upgrade, place, rest, (&mut once, "migrated"), (&mut again, how))?;
        }
    }
    Ok(format!("three migrations at each of {} places", places.len()))
}

/// Checks that the new component's own snapshot restores to the migrated state.
pub(super) fn restore(upgrade: &Upgrade<'_>, steps: &[Step]) -> Result<String, Stop> {
    let places = places(upgrade, steps)?;
    for place in &places {
        let mut migrated = place.migrated(upgrade, &upgrade.new.component, PIECES_BYTES)?;
        let state = migrated.save(place.at)?;
        let mut restored = Player::restored(&upgrade.new.component, &state, place.at)?;
        let rest = place.rest(steps);
        alike(upgrade, place, &rest, (&mut migrated, "migrated"), (&mut restored, "restored"))?;
    }
    Ok(format!("at {} places", places.len()))
}

/// Checks that two instances that restored the same state have the same snapshot, and continue in
/// the same way.
fn alike(
    upgrade: &Upgrade<'_>,
    place: &Place,
    rest: &[Step],
    (left, left_name): (&mut Player, &str),
    (right, right_name): (&mut Player, &str),
) -> Result<(), Stop> {
    let at = place.at;
    // The steps after the upgrade are needed to show a difference in them.
    let needed = at + rest.len();
    let upgraded = upgraded(at);
    compare_states(
        || format!("{upgraded}, the snapshots differ"),
        at,
        (left_name, &left.save(at)?),
        (right_name, &right.save(at)?),
    )?;
    let (mut left_played, mut right_played) = (place.play(left, rest)?, place.play(right, rest)?);
    let whole = left_played.whole();
    // The message of a trap may differ between machine code and the interpreter.
    if let (Some(Answer::Trapped(left)), Some(Answer::Trapped(right))) =
        (left_played.answers.last(), right_played.answers.last())
        && left.kind == right.kind
    {
        left_played.answers.pop();
        right_played.answers.pop();
    }
    let sides = ((left_name, &left_played.answers[..]), (right_name, &right_played.answers[..]));
    compare((rest, upgrade.vocabulary), 0, sides.0, sides.1).map_err(|stop| match stop {
        Stop::Found(finding) => Stop::Found(Finding {
            what: format!(
                "{} is answered differently",
                step_after(at, finding.steps.saturating_sub(1), rest)
            ),
            steps: needed,
            ..finding
        }),
        fatal_error => fatal_error,
    })?;
    if !whole {
        return Ok(());
    }
    compare_states(
        || format!("{upgraded}, the snapshots at the end of the log differ"),
        needed,
        (left_name, &left.save(needed)?),
        (right_name, &right.save(needed)?),
    )
}

/// Continues with both components. A trap of the new one is a failure. Another answer is a warning.
pub(super) fn continues(upgrade: &Upgrade<'_>, steps: &[Step]) -> Result<String, Stop> {
    let (places, questions) = (places(upgrade, steps)?, questions(steps));
    let mut other = None;
    let mut compared = 0;
    for place in &places {
        let rest = place.rest(steps);
        let mut old = Player::restored(upgrade.old, &place.state, place.at)?;
        let mut new = place.migrated(upgrade, &upgrade.new.component, PIECES_BYTES)?;
        // Makes the queries first: they show lost data before later steps can hide it.
        let told = place.ask(&mut new, &questions)?;
        let asked = (&questions[..], &place.told[..], &told[..]);
        let name = |number: usize| match questions.get(number) {
            Some(question) => format!("{}, the query {}", upgraded(place.at), question.name()),
            None => upgraded(place.at),
        };
        other = other.or(first_difference(upgrade, asked, name)?);
        let (old, new) = (place.play(&mut old, &rest)?, place.play(&mut new, &rest)?);
        let followed = (&rest[..], &old.answers[..], &new.answers[..]);
        let name = |number| step_after(place.at, number, &rest);
        other = other.or(first_difference(upgrade, followed, name)?);
        compared += told.len() + new.answers.len();
    }
    match other {
        Some(finding) => Err(Stop::Found(finding)),
        None => Ok(format!("{compared} answers after {} upgrades", places.len())),
    }
}

/// Returns the first different answer of the new component, or a trap as an error.
fn first_difference(
    upgrade: &Upgrade<'_>,
    (steps, old, new): (&[Step], &[Answer], &[Answer]),
    name: impl Fn(usize) -> String,
) -> Result<Option<Finding>, Stop> {
    let mut first = None;
    for (number, ((step, old), new)) in steps.iter().zip(old).zip(new).enumerate() {
        if old == new {
            continue;
        }
        let trapped = matches!(new, Answer::Trapped(_));
        let said = if trapped { "traps" } else { "is answered differently" };
        let what = format!("{} {said}", name(number));
        let sides = [("old", old), ("new", new)]
            .map(|(name, answer)| (name, show(answer, step, upgrade.vocabulary)));
        let finding = Finding { mild: !trapped, ..Finding::new(what, usize::MAX).with(sides) };
        if trapped {
            return Err(Stop::Found(finding));
        }
        first.get_or_insert(finding);
    }
    Ok(first)
}

/// Checks that the old component restores the snapshot that the new one takes at the end of the log.
pub(super) fn rollback(upgrade: &Upgrade<'_>, steps: &[Step]) -> Result<String, Stop> {
    let places = places(upgrade, steps)?;
    for place in &places {
        let mut new = place.migrated(upgrade, &upgrade.new.component, PIECES_BYTES)?;
        if !place.play(&mut new, &place.rest(steps))?.whole() {
            continue;
        }
        let (state, version) = (new.save(steps.len())?, upgrade.new.component.state_version());
        let what = "after an upgrade, the new component's snapshot";
        let taken = place.taken_by(upgrade.old, version, &state, PIECES_BYTES, what);
        taken.map_err(|stop| match stop {
            Stop::Found(finding) => {
                Stop::Found(Finding { mild: true, steps: steps.len().max(1), ..finding })
            }
            fatal_error => fatal_error,
        })?;
    }
    Ok(format!("at {} places", places.len()))
}

fn upgraded(at: usize) -> String {
    format!("upgraded {}", place(at))
}

/// The name of a step after an upgrade, counted from 0. The first one is a tick that is not in the log.
fn step_after(at: usize, number: usize, rest: &[Step]) -> String {
    match (number, rest.get(number)) {
        (1.., Some(step)) => format!("{}, step {} ({})", upgraded(at), at + number, step.name()),
        _ => format!("{}, the tick that follows", upgraded(at)),
    }
}
