//! Checks of snapshots and of the states restored from them.

use super::{Live, cuts, different, live};
use crate::{
    bench::Bench,
    calls::{Action, Step, contexts},
    compare::{compare, compare_states},
    finding::{Stop, place},
    player::{Answer, Player, timed},
};

/// Sizes of the pieces in which snapshots are read and written. The contract allows at most 1 MiB,
/// a node reads 256 KiB, and one byte is the minimum.
const PIECES_BYTES: [usize; 5] = [1 << 20, 256 << 10, 4096, 61, 1];
/// Largest snapshots that are moved in pieces of 1 byte and of 61 bytes. Larger ones would take too long.
const SINGLE_BYTES_MAX: usize = 8 << 10;
const SMALL_PIECES_BYTES_MAX: usize = 512 << 10;
/// Number of places at which snapshots are read in pieces of all sizes, and restored over another state.
const FEW_CUTS: usize = 8;
/// Maximum number of steps after a restore.
const REST_STEPS_MAX: usize = 2_000;
/// Maximum number of queries after a restore.
const QUESTIONS_MAX: usize = 16;

/// Number of places at which steps are added that the log does not have. The end of the log is one of them.
const AFTERWARDS_CUTS: usize = 4;
/// Maximum number of commands that are repeated after the log.
const COMMANDS_AFTERWARDS: usize = 32;
/// Pauses of a second, a minute, an hour and a day.
const PAUSES_MS: [u64; 4] = [1_000, 60_000, 3_600_000, 86_400_000];

/// A saved state of the log.
struct Saved {
    /// The number of steps before it.
    at: usize,
    state: Vec<u8>,
    /// The answers to the queries in this state.
    told: Vec<Answer>,
}

/// Plays the log and saves the state at each place.
fn save_at(bench: &Bench<'_>, steps: &[Step], places: &[usize]) -> Result<Vec<Saved>, Stop> {
    let questions = questions(bench, steps);
    let mut player = Player::start(bench.component)?;
    let all = contexts(steps);
    let mut saved = Vec::new();
    for at in 0..=steps.len() {
        if places.contains(&at) {
            let state = player.save(at)?;
            let now = at.checked_sub(1).and_then(|last| all.get(last)).copied();
            let mut told = Vec::new();
            if let Some(context) = now {
                for call in questions.iter().filter_map(Step::call) {
                    let answer = player.ask(call, context)?;
                    if let Answer::Trapped(_) = answer {
                        // A query from a later part of the log may trap here. The check `traps` reports that.
                        return Ok(saved);
                    }
                    told.push(answer);
                }
            }
            saved.push(Saved { at, state, told });
        }
        if let (Some(step), Some(context)) = (steps.get(at), all.get(at)) {
            player.step(step, *context)?;
        }
    }
    Ok(saved)
}

/// The queries that can be made at any place of the log.
fn questions(bench: &Bench<'_>, steps: &[Step]) -> Vec<Step> {
    match bench.questions_are_harmless {
        true => different(steps, Step::is_query, QUESTIONS_MAX),
        false => Vec::new(),
    }
}

/// Restores a fresh instance at many places. At some of them, continues with steps that the log
/// does not have.
pub(super) fn restore(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let said = restore_at(bench, steps, &cuts(steps.len(), bench.cuts_max))?;
    let places = cuts(steps.len(), AFTERWARDS_CUTS);
    for more in afterwards(steps) {
        let all = [steps, &more].concat();
        restore_at(bench, &all, &places).map_err(|stop| match stop {
            Stop::Found(mut finding) if finding.steps > steps.len() => {
                finding.steps = steps.len();
                let beginning = "with ticks or commands that follow the log: ";
                finding.what.insert_str(0, beginning);
                Stop::Found(finding)
            }
            other => other,
        })?;
    }
    Ok(said)
}

/// Steps that may follow the log: ticks, at once and after pauses, and the last different commands
/// again. They reveal derived values that were maintained incorrectly.
fn afterwards(steps: &[Step]) -> [Vec<Step>; 2] {
    let mut time_ms = steps.last().map_or(0, |step| step.time_ms);
    let tick = |time_ms| Step { time_ms, action: Action::Tick };
    let is_command = |step: &Step| matches!(step.action, Action::Apply(_));
    let backwards: Vec<_> = steps.iter().rev().cloned().collect();
    let mut commands = vec![tick(time_ms)];
    let different = different(&backwards, is_command, COMMANDS_AFTERWARDS);
    commands.extend(different.into_iter().map(|step| Step { time_ms, ..step }));
    let mut ticks = vec![tick(time_ms)];
    for pause_ms in PAUSES_MS {
        time_ms = time_ms.saturating_add(pause_ms);
        ticks.push(tick(time_ms));
    }
    [ticks, commands]
}

fn restore_at(bench: &Bench<'_>, steps: &[Step], places: &[usize]) -> Result<String, Stop> {
    let Some(live) = live(bench.component, steps)? else { return Ok(String::new()) };
    let saved = save_at(bench, steps, places)?;
    for saved in &saved {
        let mut player = Player::restored(bench.component, &saved.state, saved.at)?;
        goes_on(bench, steps, &live, saved, (&mut player, "restored", saved.at))?;
    }
    let longest = saved.iter().map(|saved| saved.state.len()).max().unwrap_or_default();
    Ok(format!("at {} places; the largest snapshot has {longest} bytes", saved.len()))
}

/// Restores the same instance at many places, after it has played the whole log.
pub(super) fn restore_over(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let Some(live) = live(bench.component, steps)? else { return Ok(String::new()) };
    let places = cuts(steps.len(), bench.cuts_max.min(FEW_CUTS));
    let saved = save_at(bench, steps, &places)?;
    let mut player = Player::start(bench.component)?;
    player.play(timed(steps))?;
    for saved in &saved {
        player.restore(&saved.state, PIECES_BYTES[0], saved.at)?;
        let how = "restored over another state";
        // All steps are needed: they led to the state that the restore replaces.
        goes_on(bench, steps, &live, saved, (&mut player, how, steps.len()))?;
    }
    Ok(format!("{} restores of one instance", saved.len()))
}

/// Checks that the restored instance equals the saved one, now and in the rest of the log. `needed`
/// is the number of steps that led to the instance.
fn goes_on(
    bench: &Bench<'_>,
    steps: &[Step],
    live: &Live,
    saved: &Saved,
    (player, how, needed): (&mut Player, &str, usize),
) -> Result<(), Stop> {
    let at = saved.at;
    let again = player.save(at)?;
    let what = || format!("{how} {}, the snapshot has changed", place(at));
    compare_states(what, needed, ("saved", &saved.state), (how, &again))?;
    let all = contexts(steps);
    let now = at.checked_sub(1).and_then(|last| all.get(last)).copied();
    if let Some(context) = now {
        for (question, told) in questions(bench, steps).iter().zip(&saved.told) {
            let Some(call) = question.call() else { continue };
            let answer = player.ask(call, context)?;
            let told = std::slice::from_ref(told);
            let log = (std::slice::from_ref(question), bench.vocabulary);
            // The query itself may come later in the log.
            compare(log, 0, ("live", told), (how, &[answer])).map_err(|stop| {
                say(stop, &format!("{how} {}, a query: ", place(at)), steps.len())
            })?;
        }
    }
    let end = steps.len().min(at + REST_STEPS_MAX);
    let rest = steps.get(at..end).unwrap_or_default();
    let played =
        player.play(rest.iter().zip(all.get(at..end).unwrap_or_default().iter().copied()))?;
    let expected = live.played.answers.get(at..end).unwrap_or_default();
    compare((steps, bench.vocabulary), at, ("live", expected), (how, &played.answers))
        .map_err(|stop| say(stop, &format!("{how} {}: ", place(at)), 0))?;
    if end == steps.len() {
        let end = player.save(end)?;
        let what = || {
            format!(
                "{how} {}, the state machine has another snapshot at the end of the log",
                place(at)
            )
        };
        compare_states(what, steps.len(), ("live", &live.end), (how, &end))?;
    }
    Ok(())
}

/// Prefixes the description of a finding. The finding then needs at least `needed` steps.
fn say(stop: Stop, beginning: &str, needed: usize) -> Stop {
    match stop {
        Stop::Found(mut finding) => {
            finding.what.insert_str(0, beginning);
            finding.steps = finding.steps.max(needed);
            Stop::Found(finding)
        }
        fatal_error => fatal_error,
    }
}

/// Reads and writes snapshots in pieces of different sizes.
pub(super) fn chunks(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let mut player = Player::start(bench.component)?;
    let places = cuts(steps.len(), bench.cuts_max.min(FEW_CUTS));
    let all = contexts(steps);
    for at in 0..=steps.len() {
        if places.contains(&at) {
            in_all_sizes(bench, &mut player, at)?;
        }
        if let (Some(step), Some(context)) = (steps.get(at), all.get(at))
            && let Answer::Trapped(_) = player.step(step, *context)?
        {
            return Ok(String::new());
        }
    }
    Ok(format!("at {} places, in pieces of 1 byte to 1 MiB", places.len()))
}

fn in_all_sizes(bench: &Bench<'_>, player: &mut Player, at: usize) -> Result<(), Stop> {
    let whole = player.save(at)?;
    let sizes = PIECES_BYTES.into_iter().filter(|size| match size {
        1 => whole.len() <= SINGLE_BYTES_MAX,
        61 => whole.len() <= SMALL_PIECES_BYTES_MAX,
        _ => true,
    });
    let expected = Player::restored(bench.component, &whole, at)?.save(at)?;
    for size in sizes {
        let read = player.save_in(size, at)?;
        let what = || {
            format!(
                "the snapshot {} has other bytes when it is read in pieces of {size}",
                place(at)
            )
        };
        compare_states(what, at, ("in one piece", &whole), ("in pieces", &read))?;
        let mut restored = Player::start(bench.component)?;
        restored.restore(&whole, size, at)?;
        let what = || {
            format!(
                "the snapshot {} restores to another state when it is written in pieces of at most {size} bytes",
                place(at)
            )
        };
        compare_states(what, at, ("in one piece", &expected), ("in pieces", &restored.save(at)?))?;
    }
    Ok(())
}
