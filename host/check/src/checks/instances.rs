//! Checks that play the same log on different instances.

use bytes::Bytes;

use super::{cuts, live};
use crate::{
    bench::Bench,
    calls::{Step, contexts},
    compare::{compare, compare_fuel, compare_states},
    finding::{Finding, Stop, place},
    player::{Answer, Played, Player, timed},
};
use conclave_machine::{Component, EntryContext, OpenSnapshot};
use conclave_types::Call;

/// Maximum number of snapshots open at the same time.
const OPEN_MAX: usize = 6;
/// Size of the pieces in which the rest of a snapshot is read.
const LATER_BYTES: usize = 4096;
/// Maximum fuel in the interpreter: some seconds of execution.
const INTERPRETED_FUEL_MAX: u64 = 500_000_000;

/// Plays the log twice.
pub(super) fn replay(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let names = ("first time", "second time");
    compare_engines(bench, steps, (bench.component, bench.component), names)?;
    Ok(format!("{} steps, twice", steps.len()))
}

/// Plays the log in the interpreter.
pub(super) fn interpreter(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let Some(first) = live(bench.component, steps)? else { return Ok(String::new()) };
    let mut fuel = 0_u64;
    let enough = first.played.fuel.iter().position(|&used| {
        fuel = fuel.saturating_add(used);
        fuel > INTERPRETED_FUEL_MAX
    });
    let played = enough.unwrap_or(steps.len());
    let part = steps.get(..played).unwrap_or(steps);
    compare_engines(bench, part, (bench.component, bench.second), ("machine code", "interpreter"))?;
    Ok(match played == steps.len() {
        true => format!("{played} steps"),
        false => format!("the first {played} of {} steps, as it is slow", steps.len()),
    })
}

fn compare_engines(
    bench: &Bench<'_>,
    steps: &[Step],
    (left, right): (&Component, &Component),
    (left_name, right_name): (&'static str, &'static str),
) -> Result<(), Stop> {
    let play = |component| -> Result<(Played, Option<Vec<u8>>, usize), Stop> {
        let mut player = Player::start(component)?;
        let played = player.play(timed(steps))?;
        let memory_bytes = player.memory_bytes();
        let end = match played.whole() {
            true => Some(player.save(steps.len())?),
            false => None,
        };
        Ok((played, end, memory_bytes))
    };
    let (left, left_end, left_memory) = play(left)?;
    let (right, right_end, right_memory) = play(right)?;
    let log = (steps, bench.vocabulary);
    compare(log, 0, (left_name, &left.answers), (right_name, &right.answers))?;
    if let (Some(left_end), Some(right_end)) = (&left_end, &right_end) {
        let what = || "the snapshots at the end differ".to_owned();
        compare_states(what, steps.len(), (left_name, left_end), (right_name, right_end))?;
    }
    compare_fuel(steps, (left_name, &left), (right_name, &right))?;
    if left_memory != right_memory {
        let what = "the instances hold different amounts of memory at the end";
        let finding = Finding::new(what, steps.len()).with([
            (left_name, format!("{left_memory} bytes")),
            (right_name, format!("{right_memory} bytes")),
        ]);
        return Err(Stop::Found(finding));
    }
    Ok(())
}

/// Plays the log on an instance whose memory layout is disturbed. Meanwhile, snapshots are opened, read
/// in part, held and dropped, and queries of many lengths are made for a method that does not exist.
pub(super) fn layout(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let Some(calm) = live(bench.component, steps)? else { return Ok(String::new()) };
    let questions = noise_is_harmless(bench)?;
    let mut player = Player::start(bench.component)?;
    let mut open: Vec<(usize, Vec<u8>, OpenSnapshot, Vec<u8>)> = Vec::new();
    let mut checked = 0;
    let all = contexts(steps);
    let places = cuts(steps.len(), bench.cuts_max);
    let names = ("undisturbed", "disturbed");
    for at in 0..=steps.len() {
        if places.contains(&at) {
            if open.len() == OPEN_MAX {
                // Does not close the oldest snapshot, so that a gap in memory remains between others.
                let (taken, expected, snapshot, begun) = open.remove(OPEN_MAX / 2);
                finish(&mut player, (taken, at), &expected, snapshot, begun)?;
                checked += 1;
            }
            // Reads pieces of the same size as later. The check `chunks` tests other sizes.
            let (snapshot, mut expected) = begin(&mut player, at)?;
            expected.extend(player.read_rest(snapshot, LATER_BYTES, at)?);
            player.close(snapshot, at)?;
            let (snapshot, begun) = begin(&mut player, at)?;
            open.push((at, expected, snapshot, begun));
        }
        let (Some(step), Some(context)) = (steps.get(at), all.get(at)) else { continue };
        if questions {
            for salt in [7, 131, 1031] {
                // A trap would show in the next step. `noise_is_harmless` has shown that these
                // queries do not trap.
                player.ask(&noise(at * salt), *context)?;
            }
        }
        let answer = player.step(step, *context)?;
        let left = calm.played.answers.get(at..=at).unwrap_or_default();
        let log = (steps, bench.vocabulary);
        compare(log, at, (names.0, left), (names.1, &[answer]))?;
    }
    for (taken, expected, snapshot, begun) in open {
        finish(&mut player, (taken, steps.len()), &expected, snapshot, begun)?;
        checked += 1;
    }
    let end = player.save(steps.len())?;
    let what = || "the snapshots at the end differ".to_owned();
    compare_states(what, steps.len(), (names.0, &calm.end), (names.1, &end))?;
    Ok(format!("{} steps, with {checked} snapshots read while later steps were made", steps.len()))
}

/// Takes a snapshot and reads its beginning.
fn begin(player: &mut Player, at: usize) -> Result<(OpenSnapshot, Vec<u8>), Stop> {
    let snapshot = player.open(at)?;
    let begun = player.read(snapshot, 61, at)?.to_vec();
    Ok((snapshot, begun))
}

/// Reads the rest of a snapshot.
fn finish(
    player: &mut Player,
    (taken, now): (usize, usize),
    expected: &[u8],
    snapshot: OpenSnapshot,
    mut begun: Vec<u8>,
) -> Result<(), Stop> {
    begun.extend(player.read_rest(snapshot, LATER_BYTES, now)?);
    player.close(snapshot, now)?;
    let what = || {
        format!(
            "the snapshot taken {} has other bytes when it is read {}",
            place(taken),
            place(now)
        )
    };
    compare_states(what, now, ("read at once", expected), ("read later", &begun))
}

/// A query for a method that does not exist.
fn noise(salt: usize) -> Call {
    let bytes = salt.wrapping_mul(2_654_435_761) % 3000;
    Call {
        method: "conclave.check/Noise".into(),
        request: Bytes::from(vec![b'~'; bytes]),
        principal: "".into(),
    }
}

/// Returns true if the state machine does not trap on such queries.
fn noise_is_harmless(bench: &Bench<'_>) -> Result<bool, Stop> {
    let mut player = Player::start(bench.component)?;
    let context = EntryContext { index: 0, time_ms: 0, seed: 0 };
    for salt in [0, 1, 2, 3] {
        if let Answer::Trapped(_) = player.ask(&noise(salt), context)? {
            return Ok(false);
        }
    }
    Ok(true)
}
