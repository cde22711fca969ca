//! Checks the steps that trap: reports the shortest log for each kind, and whether the trap is
//! the same everywhere.
//!
//! A trap is an outcome, not a breach: every replica rolls it back and answers with the same error.
//! So a trap that is the same everywhere is a warning, with a log that shows it. A trap that
//! depends on the instance or on the engine is a failure.

use std::time::Duration;

use super::{
    bench::Bench,
    calls::{Step, contexts},
    finding::{Finding, Stop},
    player::{Answer, Player, timed},
    report::{Checked, Verdict},
    shrink::shrink,
    survey::{Survey, Trapped},
};
use conclave_machine::{Component, FatalError};
use conclave_types::{Trap, TrapKind};

const NAME: &str = "traps";
const MEANING: &str = "no call traps; a trap is the same everywhere, and is rolled back";
/// Maximum number of kinds of traps that are examined.
const KINDS_MAX: usize = 6;

/// Examines the traps of the survey.
pub(super) fn traps(
    bench: &Bench<'_>,
    survey: &Survey,
    shrink_for: Duration,
) -> Result<Checked, FatalError> {
    let mut kinds: Vec<&Trapped> = Vec::new();
    for trapped in &survey.traps {
        let same = |known: &&Trapped| {
            known.trap.kind == trapped.trap.kind && known.step.name() == trapped.step.name()
        };
        if !kinds.iter().any(same) {
            kinds.push(trapped);
        }
    }
    if kinds.is_empty() {
        let said = format!("none in {} steps", survey.calm.len());
        return Ok(Checked::new(NAME, MEANING, Verdict::Ok, said));
    }
    let mut said = Vec::new();
    let mut log = Vec::new();
    for trapped in kinds.iter().take(KINDS_MAX) {
        let steps =
            smallest(bench.component, survey, trapped, bench, shrink_for / KINDS_MAX as u32)?;
        said.push(describe(trapped, steps.len()));
        match everywhere(bench, &steps, &trapped.trap) {
            Ok(()) => {}
            Err(Stop::Fatal(fatal_error)) => return Err(fatal_error),
            Err(Stop::Found(finding)) => {
                let mut checked = Checked::new(NAME, MEANING, Verdict::Failed, said.join("; "));
                checked.advice = "Whether a call traps must follow from the state and the call alone. \
                                  Possible causes here: memory that was not initialized, an address, or a \
                                  limit that is almost reached."
                    .to_owned();
                checked.finding = Some(finding);
                checked.log = steps;
                return Ok(checked);
            }
        }
        if log.is_empty() {
            log = steps;
        }
    }
    if kinds.len() > KINDS_MAX {
        said.push(format!("and {} more", kinds.len() - KINDS_MAX));
    }
    let mut checked = Checked::new(NAME, MEANING, Verdict::Warned, said.join("; "));
    checked.advice = advice(kinds.first().map(|trapped| trapped.trap.kind)).to_owned();
    checked.log = log;
    Ok(checked)
}

fn describe(trapped: &Trapped, steps: usize) -> String {
    let words = trapped.words.as_ref().map(|words| format!(" ({words})")).unwrap_or_default();
    let before = match steps {
        0 | 1 => "at once".to_owned(),
        2 => "after 1 other step".to_owned(),
        _ => format!("after {} other steps", steps - 1),
    };
    format!("{}{words}, {before}", trapped.trap.message)
}

fn advice(kind: Option<TrapKind>) -> &'static str {
    match kind {
        Some(TrapKind::FuelExhausted) => {
            "A node rolls the call back and returns an error, after seconds of work on every replica. Limit \
             the work of one call: define a maximum for lists and ranges, and fail for larger ones."
        }
        Some(TrapKind::MemoryExhausted) => {
            "A node rolls the call back, but replicas may not agree on which call is the first that does not \
             fit. Count the bytes of the state, and fail with RESOURCE_EXHAUSTED well before the limit."
        }
        Some(TrapKind::StackExhausted) => {
            "A node rolls the call back. The depth of a recursion depends on the request or the state: use \
             a loop, or a limit."
        }
        _ => {
            "A node rolls the call back and returns an error, so the cluster is unharmed. But the caller \
             does not learn the reason: return a failure that explains it, such as INVALID_ARGUMENT."
        }
    }
}

/// The smallest log whose last step traps in this way and whose other steps do not trap.
fn smallest(
    component: &Component,
    survey: &Survey,
    trapped: &Trapped,
    bench: &Bench<'_>,
    time: Duration,
) -> Result<Vec<Step>, FatalError> {
    let mut steps = survey.calm.get(..trapped.after).unwrap_or_default().to_vec();
    steps.push(trapped.step.clone());
    let last = trapped.step.name().to_owned();
    let kind = trapped.trap.kind;
    let mut probe = |steps: &[Step]| {
        if steps.last().map(Step::name) != Some(&last) {
            return Ok(());
        }
        match trap_of(&mut Player::start(component)?, steps)? {
            Some(trap) if trap.kind == kind => {
                Err(Stop::Found(Finding::new(trap.message, steps.len())))
            }
            _ => Ok(()),
        }
    };
    let finding = Finding::new(trapped.trap.message.clone(), steps.len());
    Ok(shrink(&steps, finding, bench.vocabulary, time, &mut probe)?.steps)
}

/// The trap of the last step. `None` if that step does not trap, or an earlier one does.
fn trap_of(player: &mut Player, steps: &[Step]) -> Result<Option<Trap>, Stop> {
    let played = player.play(timed(steps))?;
    Ok(match played.answers.last() {
        Some(Answer::Trapped(trap)) if played.answers.len() == steps.len() => Some(trap.clone()),
        _ => None,
    })
}

/// Checks that the last step traps in the same way on another instance, on an instance restored
/// before the step, and in the other engine. Also checks that a restore before the step, to which a
/// node rolls back, gives the same state.
fn everywhere(bench: &Bench<'_>, steps: &[Step], trap: &Trap) -> Result<(), Stop> {
    let count = steps.len();
    let Some(before) = count.checked_sub(1) else { return Ok(()) };
    same(
        trap,
        trap_of(&mut Player::start(bench.component)?, steps)?,
        "on another instance",
        count,
    )?;

    let all = contexts(steps);
    let mut player = Player::start(bench.component)?;
    player.play(timed(steps.get(..before).unwrap_or_default()))?;
    let state = player.save(before)?;
    let mut restored = Player::restored(bench.component, &state, before)?;
    if restored.save(before)? != state {
        let what =
            "the state before the trap, to which a node rolls back, changes when it is restored";
        return Err(Stop::Found(Finding::new(what, count)));
    }
    if let (Some(step), Some(context)) = (steps.last(), all.last()) {
        let answer = restored.step(step, *context)?;
        let again = match answer {
            Answer::Trapped(trap) => Some(trap),
            _ => None,
        };
        same(trap, again, "restored before it", count)?;
    }
    // Frames of the interpreter have another size, and the interpreter needs a minute to use up the fuel.
    if matches!(trap.kind, TrapKind::Panic | TrapKind::Invalid | TrapKind::BadAnswer) {
        same(trap, trap_of(&mut Player::start(bench.second)?, steps)?, "interpreted", count)?;
    }
    Ok(())
}

fn same(trap: &Trap, again: Option<Trap>, how: &str, steps: usize) -> Result<(), Stop> {
    if again.as_ref() == Some(trap) {
        return Ok(());
    }
    let again = again.map_or_else(|| "no trap".to_owned(), |trap| trap.message);
    let what = format!("step {steps} does not trap in the same way {how}");
    Err(Stop::Found(
        Finding::new(what, steps).with([("at first", trap.message.clone()), (how, again)]),
    ))
}
