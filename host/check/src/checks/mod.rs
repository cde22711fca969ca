//! Checks that compare two runs that must give the same results.
//!
//! Contract: a probe plays a log in two ways and returns the first difference, if any. It depends
//! on the log alone, so that smaller logs can be probed. A log that traps when it is played without
//! changes gives no finding here, because the check `traps` reports it.

mod canonical;
mod instances;
mod leaks;
mod mistakes;
mod queries;
mod restores;

use super::{
    bench::Bench,
    calls::Step,
    finding::Stop,
    player::{Player, timed},
};
use conclave_machine::Component;

/// Texts about a check.
pub(super) struct About {
    pub(super) name: &'static str,
    /// The property that holds if the check passes.
    pub(super) meaning: &'static str,
    /// Advice for a failed check.
    pub(super) advice: &'static str,
}

/// A check.
pub(super) struct Check {
    pub(super) about: About,
    /// Looks for a difference, and returns a summary of the work done.
    pub(super) probe: fn(&Bench<'_>, &[Step]) -> Result<String, Stop>,
    /// Additional logs to probe before the given one.
    pub(super) more: fn(&Bench<'_>) -> Vec<Vec<Step>>,
}

fn no_more(_: &Bench<'_>) -> Vec<Vec<Step>> {
    Vec::new()
}

/// Ordered so that the first check to fail explains most: a breach usually fails some of the
/// later checks too.
pub(super) const CHECKS: [Check; 11] = [
    Check {
        about: About {
            name: "replay",
            meaning: "the same log, played twice, gives the same answers, fuel and snapshot",
            advice: "The state machine depends on something outside of the log: a clock, randomness, or an \
                     import that gives different answers. Use the time and seed of each call's context.",
        },
        probe: instances::replay,
        more: no_more,
    },
    Check {
        about: About {
            name: "layout",
            meaning: "the memory layout, and reading snapshots at the same time, change nothing",
            advice: "Possible causes: (1) a result depends on an address: a map or a sort by pointers, a \
                     hash of an address, memory that was not initialized. Order by the values themselves. \
                     (2) A snapshot changes the state, or shows a later state. Capture the state in \
                     `snapshot`, and only return it in `read`. (3) A query of an unknown method changes \
                     something.",
        },
        probe: instances::layout,
        more: no_more,
    },
    Check {
        about: About {
            name: "queries",
            meaning: "a query changes neither the state nor later answers",
            advice: "A query runs on one node, so a change by a query makes that node differ from its peers. \
                     Look for counters, caches and lazily built fields that a query writes to (`Cell`, \
                     `RefCell`, `static`, `OnceCell` with visible content). Make it a command, or do not \
                     store the result.",
        },
        probe: queries::queries,
        more: no_more,
    },
    Check {
        about: About {
            name: "interpreter",
            meaning: "machine code and wasmtime's interpreter give the same answers, fuel and snapshot",
            advice: "The cause is probably not the state machine: wasmtime compiled code incorrectly, or the \
                     bits of a NaN are visible. Please report it with the component and the log. Until it is \
                     fixed, avoid floats and SIMD in the calls shown.",
        },
        probe: instances::interpreter,
        more: no_more,
    },
    Check {
        about: About {
            name: "chunks",
            meaning: "a snapshot has the same bytes, and restores to the same state, in pieces of any size",
            advice: "The host may cut a snapshot anywhere. `read` must continue where it ended, whatever the \
                     size of the pieces. `write` must accept a record that spans two pieces: buffer it until \
                     it is complete.",
        },
        probe: restores::chunks,
        more: no_more,
    },
    Check {
        about: About {
            name: "restore",
            meaning: "a state machine that is restored anywhere in the log behaves like one that played all of it",
            advice: "A part of the state is not in the snapshot, or is computed again with another result: a \
                     field that `save` leaves out, a `static`, a cache, a sum of floats added in another \
                     order. Save it, or always derive it in the same way from saved values.",
        },
        probe: restores::restore,
        more: no_more,
    },
    Check {
        about: About {
            name: "restore-over",
            meaning: "a restore replaces the whole previous state",
            advice: "A part of the previous state survives a restore: a `static`, a thread-local, or a field \
                     that `load` extends but does not replace. Keep the whole state in the state machine's \
                     value, so that a restore replaces all of it.",
        },
        probe: restores::restore_over,
        more: no_more,
    },
    Check {
        about: About {
            name: "canonical",
            meaning: "the same state gives the same snapshot bytes, whatever the order of the calls that led to it",
            advice: "The order of calls, or of a hash table, affects the snapshot, although no call of this \
                     log can distinguish the two states. Use a BTreeMap or BTreeSet, or sort in `save`. If \
                     the order matters, the log lacks a query that shows it: provide one with --calls.",
        },
        probe: canonical::canonical,
        more: canonical::pairs,
    },
    Check {
        about: About {
            name: "leaks",
            meaning: "restores, snapshots and queries free the memory that they allocate",
            advice: "Something is allocated each time and never freed: `Box::leak`, `mem::forget`, a \
                     `static` list, a cycle of `Rc`s. The state machine would reach its memory limit \
                     although its state does not grow. A small leak may be in the language runtime.",
        },
        probe: leaks::leaks,
        more: no_more,
    },
    Check {
        about: About {
            name: "failures",
            meaning: "a call that fails changes nothing, except for changes that a tick would also make",
            advice: "A failure is an ordinary answer and is not rolled back: the caller gets an error, \
                     although the state has changed. Check everything before changing anything, or work on a \
                     copy and keep it on success. If a refusal must change the state, such as a count of \
                     attempts, return a reply instead.",
        },
        probe: mistakes::failures,
        more: no_more,
    },
    Check {
        about: About {
            name: "wake-ups",
            meaning: "no tick before the wake-up time would change the state",
            advice: "A timer is lost: the host sends no tick before the wake-up time of the last reply, and \
                     a reply without one cancels it. Compute the wake-up time from the state, as the \
                     earliest time at which something is due (`Machine::wake_at` in Rust and Python, `Waker` \
                     in Go). In other languages, set it in every reply.",
        },
        probe: mistakes::wake_ups,
        more: no_more,
    },
];

/// The results of a log played without interruption.
struct Live {
    played: super::player::Played,
    end: Vec<u8>,
}

/// Plays a log without interruption. Returns `None` if it traps.
fn live(component: &Component, steps: &[Step]) -> Result<Option<Live>, Stop> {
    let mut player = Player::start(component)?;
    let played = player.play(timed(steps))?;
    if !played.whole() {
        return Ok(None);
    }
    let end = player.save(steps.len())?;
    Ok(Some(Live { played, end }))
}

/// Places of a log, as numbers of steps before them: all places of a short log, evenly spread ones
/// of a long log.
pub(super) fn cuts(steps: usize, cuts_max: usize) -> Vec<usize> {
    let parts = steps.min(cuts_max.max(1));
    let mut cuts: Vec<_> = (0..=parts).map(|part| part * steps / parts.max(1)).collect();
    cuts.dedup();
    cuts
}

/// The different steps among the wanted ones. If there are more than `max`, they are spread over the log.
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
