//! The checks that compare two ways to the same place.
//!
//! Contract: a probe plays a log in two ways and finds the first difference, or nothing. It depends on
//! the log alone, so that smaller logs can be tried with it. A log that traps when it is simply
//! played shows nothing here: traps are `traps`' matter.

mod canonical;
mod instances;
mod leaks;
mod mistakes;
mod queries;
mod restores;

use super::{
    calls::Step,
    finding::Stop,
    player::{Player, timed},
    vocabulary::Vocabulary,
};
use conclave_machine::Component;

/// What the checks work on.
pub(super) struct Bench<'a> {
    /// The machine as a node runs it.
    pub(super) component: &'a Component,
    /// The machine in another engine.
    pub(super) second: &'a Component,
    pub(super) vocabulary: &'a Vocabulary,
    /// The log's different questions, and its different commands, some of them if there are many.
    pub(super) questions: Vec<Step>,
    pub(super) commands: Vec<Step>,
    /// Places of the log that are tried.
    pub(super) cuts_max: usize,
    /// Whether questions were found to change nothing.
    pub(super) questions_are_harmless: bool,
}

/// The words about a check.
pub(super) struct About {
    pub(super) name: &'static str,
    /// What holds if it finds nothing.
    pub(super) meaning: &'static str,
    /// What to do if it finds something.
    pub(super) advice: &'static str,
}

/// One check.
pub(super) struct Check {
    pub(super) about: About,
    /// Looks for a difference; gives what was looked at.
    pub(super) probe: fn(&Bench<'_>, &[Step]) -> Result<String, Stop>,
    /// Other logs to look at before the one that was given.
    pub(super) more: fn(&Bench<'_>) -> Vec<Vec<Step>>,
}

fn no_more(_: &Bench<'_>) -> Vec<Vec<Step>> {
    Vec::new()
}

/// In an order in which the first to find something says most: what breaks one breaks some of those
/// after it too.
pub(super) const CHECKS: [Check; 11] = [
    Check {
        about: About {
            name: "replay",
            meaning: "the same log, played twice, gives the same answers, fuel and snapshot",
            advice: "Something outside of the log reaches the machine: a clock, randomness, or an import \
                     that gives different answers. Take time and chance from the context of each call.",
        },
        probe: instances::replay,
        more: no_more,
    },
    Check {
        about: About {
            name: "layout",
            meaning: "where in memory things lie, and snapshots being read meanwhile, change nothing",
            advice: "An address decides something: a map or a sort that goes by pointers, a hash of an address, \
                     memory that was not initialized. Order by the values themselves. Or a snapshot changes the \
                     machine, or shows the state of later: capture it in `snapshot`, and let `read` only hand it \
                     out. Or a query of a method that does not exist changes something.",
        },
        probe: instances::layout,
        more: no_more,
    },
    Check {
        about: About {
            name: "queries",
            meaning: "a query changes nothing: not the state, not later answers",
            advice: "A query runs on one node, so what it changes makes that node differ from its peers. \
                     Look for counters, caches and lazily built fields that a query writes to (`Cell`, `RefCell`, \
                     `static`, `OnceCell` whose content shows). Make it a command, or compute without keeping.",
        },
        probe: queries::queries,
        more: no_more,
    },
    Check {
        about: About {
            name: "interpreter",
            meaning: "machine code and wasmtime's interpreter give the same answers, fuel and snapshot",
            advice: "This should not depend on the machine: the engine compiled something wrong, or bits of \
                     a NaN got through. Please report it with the component and the log. Until then keep floats \
                     and SIMD out of the calls shown.",
        },
        probe: instances::interpreter,
        more: no_more,
    },
    Check {
        about: About {
            name: "chunks",
            meaning: "a snapshot has the same bytes, and restores to the same state, however it is cut",
            advice: "The host cuts snapshots where it likes. `read` must go on where it ended, whatever its size, \
                     and `write` must take up a record that lies across two pieces: collect until one is whole.",
        },
        probe: restores::chunks,
        more: no_more,
    },
    Check {
        about: About {
            name: "restore",
            meaning: "a machine that was restored anywhere in the log behaves like the one that lived through it",
            advice: "Something that matters is not in the snapshot, or is computed again with another result: \
                     a field that `save` leaves out, a `static`, a cache, a sum of floats added up in another \
                     order. Save it, or derive it from what is saved in one and the same way.",
        },
        probe: restores::restore,
        more: no_more,
    },
    Check {
        about: About {
            name: "restore-over",
            meaning: "a restore leaves nothing of the state that was there before",
            advice: "Something survives a restore: a `static`, a thread-local, or a field that `load` adds to and \
                     does not replace. Put everything into the machine's value, so that a restore replaces all of it.",
        },
        probe: restores::restore_over,
        more: no_more,
    },
    Check {
        about: About {
            name: "canonical",
            meaning: "the same state gives the same snapshot bytes, whatever the order of the calls that led to it",
            advice: "The order of calls, or of a hash table, reached the snapshot, though no call of this log \
                     can tell the two states apart. Use a BTreeMap or BTreeSet, or sort in `save`. If the order \
                     means something, a query that shows it is missing from the log: give one with --calls.",
        },
        probe: canonical::canonical,
        more: canonical::pairs,
    },
    Check {
        about: About {
            name: "leaks",
            meaning: "restores, snapshots and queries give back the memory that they take",
            advice: "Something is allocated each time and never freed: `Box::leak`, `mem::forget`, a `static` list, \
                     a cycle of `Rc`s. The machine would reach its limit of memory without growing. A small leak may be \
                     the language runtime's own.",
        },
        probe: leaks::leaks,
        more: no_more,
    },
    Check {
        about: About {
            name: "failures",
            meaning: "a call that fails changes nothing, but for what a tick at that context changes too",
            advice: "A failure is an ordinary answer, so the changes that were made before it stay: a caller is told no, and \
                     something happened all the same. Check everything first, then change; or work on a copy, and keep \
                     it on success. A refusal that is meant to change something, such as a count of attempts, is better a reply.",
        },
        probe: mistakes::failures,
        more: no_more,
    },
    Check {
        about: About {
            name: "wake-ups",
            meaning: "no tick before the wake-up time would change something that is due by then",
            advice: "A timer is lost: the host sends no tick before the wake-up time of the last reply, and a reply without one \
                     cancels it. Compute it from the state, as the earliest time at which something is due \
                     (`Machine::wake_at` in Rust and Python, `Waker` in Go); elsewhere put it into every reply.",
        },
        probe: mistakes::wake_ups,
        more: no_more,
    },
];

/// A log as it was lived through.
struct Live {
    played: super::player::Played,
    end: Vec<u8>,
}

/// Plays a log in the simplest way. `None`: it traps.
fn live(component: &Component, steps: &[Step]) -> Result<Option<Live>, Stop> {
    let mut player = Player::start(component)?;
    let played = player.play(timed(steps))?;
    if !played.whole() {
        return Ok(None);
    }
    let end = player.save(steps.len())?;
    Ok(Some(Live { played, end }))
}

/// Places of a log, after so many of its steps each: all of a short one, an even spread of a long one.
pub(super) fn cuts(steps: usize, cuts_max: usize) -> Vec<usize> {
    let parts = steps.min(cuts_max.max(1));
    let mut cuts: Vec<_> = (0..=parts).map(|part| part * steps / parts.max(1)).collect();
    cuts.dedup();
    cuts
}

/// Different steps of those that are wanted, spread over the log if there are too many.
pub(super) fn different(steps: &[Step], wanted: impl Fn(&Step) -> bool, max: usize) -> Vec<Step> {
    let mut different: Vec<&Step> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for step in steps.iter().filter(|step| wanted(step)) {
        if let Some(call) = step.call()
            && seen.insert((&*call.method, &call.request))
        {
            different.push(step);
        }
    }
    let many = different.len();
    let taken = many.min(max);
    (0..taken).filter_map(|at| different.get(at * many / taken)).map(|&step| step.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_everywhere_in_a_short_log_and_spread_over_a_long_one() {
        assert_eq!(cuts(0, 8), [0]);
        assert_eq!(cuts(3, 8), [0, 1, 2, 3]);
        assert_eq!(cuts(100, 4), [0, 25, 50, 75, 100]);
    }
}
