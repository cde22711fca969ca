//! Checks that queries change nothing.

use super::{cuts, different, live};
use crate::{
    bench::Bench,
    calls::{Step, contexts},
    compare::{compare, compare_states, show},
    finding::{Finding, Stop, place},
    player::{Answer, Player, timed},
};

/// Maximum number of queries at each place.
const QUESTIONS_MAX: usize = 16;

/// Plays the log without its queries, and repeats the queries at many places.
pub(super) fn queries(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let asked = different(steps, Step::is_query, QUESTIONS_MAX);
    if asked.is_empty() {
        return Ok("no queries in this log".to_owned());
    }
    let Some(with) = live(bench.component, steps)? else { return Ok(String::new()) };
    without(bench, steps, &with)?;
    let places = again(bench, steps, &asked)?;
    let count = steps.iter().filter(|step| step.is_query()).count();
    Ok(format!(
        "{count} queries left out; {} of them made twice at each of {places} places",
        asked.len()
    ))
}

/// Checks that without the queries, the commands' answers and the final state are the same.
fn without(bench: &Bench<'_>, steps: &[Step], with: &super::Live) -> Result<(), Stop> {
    let mut player = Player::start(bench.component)?;
    let commands = timed(steps).filter(|(step, _)| !step.is_query());
    let without = player.play(commands)?;
    let mut answers = without.answers.into_iter();
    for (at, _) in steps.iter().enumerate().filter(|(_, step)| !step.is_query()) {
        let left = with.played.answers.get(at..=at).unwrap_or_default();
        let right: Vec<_> = answers.next().into_iter().collect();
        let log = (steps, bench.vocabulary);
        compare(log, at, ("with queries before", left), ("without", &right))?;
    }
    let end = player.save(steps.len())?;
    let what = || "the snapshots at the end differ".to_owned();
    compare_states(what, steps.len(), ("with queries", &with.end), ("without", &end))
}

/// Checks that a repeated query gives the same answer and leaves the state unchanged. Returns the
/// number of places.
fn again(bench: &Bench<'_>, steps: &[Step], asked: &[Step]) -> Result<usize, Stop> {
    let mut player = Player::start(bench.component)?;
    let places = cuts(steps.len(), bench.cuts_max);
    let all = contexts(steps);
    for at in 0..=steps.len() {
        let now = at.checked_sub(1).and_then(|last| all.get(last)).copied();
        if let Some(context) = now.filter(|_| places.contains(&at)) {
            let before = player.save(at)?;
            for question in asked {
                let Some(call) = question.call() else { continue };
                let first = player.ask(call, context)?;
                if let Answer::Trapped(_) = first {
                    // A query from a later part of the log may trap here. The check `traps` reports that.
                    return Ok(places.len());
                }
                let second = player.ask(call, context)?;
                if first != second {
                    let name = &call.method;
                    let what =
                        format!("{} {name} gives another answer when it is repeated", place(at));
                    let sides = [("first", &first), ("again", &second)]
                        .map(|(name, answer)| (name, show(answer, question, bench.vocabulary)));
                    // The query itself may come later in the log.
                    return Err(Stop::Found(Finding::new(what, steps.len()).with(sides)));
                }
            }
            let after = player.save(at)?;
            let what = || format!("{}, queries change the snapshot", place(at));
            let sides = (("before", &before[..]), ("after", &after[..]));
            compare_states(what, steps.len(), sides.0, sides.1)?;
        }
        if let (Some(step), Some(context)) = (steps.get(at), all.get(at))
            && let Answer::Trapped(_) = player.step(step, *context)?
        {
            break;
        }
    }
    Ok(places.len())
}
