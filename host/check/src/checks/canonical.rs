//! Checks whether the order of independent calls affects the snapshot.
//!
//! Method: two neighbouring commands are exchanged. Suppose that both, and all commands after them,
//! are answered as before, and that then every query and command of the log is answered alike. Then
//! no caller can distinguish the two states, so by the contract their snapshots must be equal. The
//! index and time of a call may be part of the state. So a difference counts only if it also exists
//! when each call keeps its own context.

use super::cuts;
use crate::{
    bench::Bench,
    calls::{Action, Step, contexts},
    compare::compare_states,
    finding::Stop,
    player::{Answer, Player},
};
use conclave_machine::EntryContext;

/// Number of commands after an exchange that must be answered alike.
const AFTER_MAX: usize = 64;
/// Maximum number of pairs of commands that are tried from the initial state.
const PAIRS_MAX: usize = 120;

/// Exchanges neighbouring commands of the log.
pub(super) fn canonical(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let commands: Vec<_> = steps.iter().filter(|step| !step.is_query()).cloned().collect();
    let places = cuts(commands.len().saturating_sub(2), bench.cuts_max);
    let mut same = 0;
    for at in places {
        if exchangeable(&commands, at) {
            let end = commands.len().min(at + 2 + AFTER_MAX);
            same += usize::from(exchange(bench, commands.get(..end).unwrap_or_default(), at)?);
        }
    }
    Ok(format!("{same} pairs of calls gave the same state in either order"))
}

/// Logs of two commands each, played from the initial state.
pub(super) fn pairs(bench: &Bench<'_>) -> Vec<Vec<Step>> {
    let commands = &bench.commands;
    let (count, mut pairs) = (commands.len(), Vec::new());
    // Neighbours come first, then more distant commands, so that every command is in a pair.
    for distance in 1..count {
        for (at, first) in commands.iter().enumerate() {
            if pairs.len() == PAIRS_MAX {
                return pairs;
            }
            if let Some(second) = commands.get(at + distance) {
                let second = Step { time_ms: first.time_ms, ..second.clone() };
                pairs.push(vec![first.clone(), second]);
            }
        }
    }
    pairs
}

fn exchangeable(commands: &[Step], at: usize) -> bool {
    let call = |at: usize| match commands.get(at).map(|step| &step.action) {
        Some(Action::Apply(call)) => Some(call),
        _ => None,
    };
    match (call(at), call(at + 1)) {
        (Some(left), Some(right)) => left != right,
        _ => false,
    }
}

/// Exchanges the commands at `at` and `at + 1`. Returns whether the states are the same.
fn exchange(bench: &Bench<'_>, commands: &[Step], at: usize) -> Result<bool, Stop> {
    let all = contexts(commands);
    let play = |order: &[usize], contexts: &[EntryContext]| -> Result<Option<_>, Stop> {
        let mut player = Player::start(bench.component)?;
        let steps = order.iter().filter_map(|&number| commands.get(number));
        let played = player.play(steps.zip(contexts.iter().copied()))?;
        if !played.whole() {
            return Ok(None);
        }
        // Sorted by step, so that the orders can be compared.
        let mut answers: Vec<_> = order.iter().zip(played.answers).collect();
        answers.sort_by_key(|(number, _)| **number);
        let answers: Vec<_> = answers.into_iter().map(|(_, answer)| answer).collect();
        let state = player.save(commands.len())?;
        Ok(Some((player, answers, state)))
    };
    let order: Vec<usize> = (0..commands.len()).collect();
    let mut exchanged = order.clone();
    exchanged.swap(at, at + 1);
    let Some((mut left, left_answers, left_state)) = play(&order, &all)? else { return Ok(false) };
    let Some((mut right, right_answers, right_state)) = play(&exchanged, &all)? else {
        return Ok(false);
    };
    if left_answers != right_answers {
        return Ok(false);
    }
    if left_state == right_state {
        return Ok(true);
    }
    let now = all.last().copied().unwrap_or(EntryContext { index: 0, time_ms: 0, seed: 0 });
    if !alike(bench, &mut left, &mut right, now)? {
        return Ok(false);
    }
    let mut along = all.clone();
    along.swap(at, at + 1);
    let Some((_, _, kept_state)) = play(&exchanged, &along)? else { return Ok(false) };
    if kept_state == left_state {
        return Ok(false);
    }
    let what = || {
        format!(
            "the {} and {} commands ({}, {}) lead to the same state in either order, but to different snapshots",
            ordinal(at + 1),
            ordinal(at + 2),
            commands.get(at).map_or("", Step::name),
            commands.get(at + 1).map_or("", Step::name)
        )
    };
    let sides = (("as given", &left_state[..]), ("exchanged", &right_state[..]));
    compare_states(what, usize::MAX, sides.0, sides.1)?;
    Ok(true)
}

/// Makes all queries and commands on both instances, and compares the answers.
fn alike(
    bench: &Bench<'_>,
    left: &mut Player,
    right: &mut Player,
    now: EntryContext,
) -> Result<bool, Stop> {
    let mut context = now;
    for step in bench.questions.iter().chain(&bench.commands).chain(&bench.questions) {
        if !step.is_query() {
            context.index += 1;
        }
        let (left, right) = (left.step(step, context)?, right.step(step, context)?);
        if left != right {
            return Ok(false);
        }
        if let Answer::Trapped(_) = left {
            break;
        }
    }
    Ok(true)
}

fn ordinal(number: usize) -> String {
    match number {
        1 => "1st".to_owned(),
        2 => "2nd".to_owned(),
        3 => "3rd".to_owned(),
        number => format!("{number}th"),
    }
}
