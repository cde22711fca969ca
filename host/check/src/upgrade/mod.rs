//! Conformance tests of an upgrade: check that one component can replace another, without a cluster.
//!
//! # Contract
//! 1. The log of calls is played on the old component. At several places its snapshot is restored
//!    into the new one, as in an activation. Then both continue with the calls that follow.
//! 2. An upgrade fails if an activation would be rejected or would trap, if replicas could disagree
//!    afterwards, or if clients of the old component could no longer call the new one. It gets a
//!    warning if the new component answers differently, or if a rollback is impossible.
//! 3. As in the other checks, a failure carries the smallest log found that shows it, and
//!    every check terminates.
//!
//! # Caveats
//! The checks do not test whether the new component alone keeps the contract. Check it separately.

mod migrated;
mod probes;

use std::time::Duration;

use bytes::Bytes;

use super::{
    About, CheckError, Checked, Options, Origin, Progress, Report, Step, Subject, Verdict,
    check_names, cuts_max,
    finding::{Finding, Stop},
    look, or_skipped, report, survey,
    vocabulary::Vocabulary,
};
use conclave_machine::{Component, FatalError, Standalone, diff};
use conclave_types::components::Change;

/// Maximum number of places of the log at which the upgrade is tried.
const PLACES_MAX: usize = 12;

/// An upgrade, and settings of its checks.
struct Upgrade<'a> {
    old: &'a Component,
    new: &'a Subject,
    /// The methods and types of the old component, in which the log is encoded.
    vocabulary: &'a Vocabulary,
    places_max: usize,
}

/// A check of an upgrade.
struct UpgradeCheck {
    about: About,
    probe: fn(&Upgrade<'_>, &[Step]) -> Result<String, Stop>,
}

const CLIENTS: About = About {
    name: "clients",
    meaning: "clients that were built for the old component can call the new one",
    advice: "An activation with these changes is rejected, except with --allow-breaking. Keep methods, field \
             numbers and types. Add new ones beside them. Reserve the numbers of removed fields.",
};

const CHECKS: [UpgradeCheck; 5] = [
    UpgradeCheck {
        about: About {
            name: "migration",
            meaning: "the new component restores the snapshots of the old one",
            advice: "An activation would be rejected on every node. Add the old format to RESTORES, and let \
                     `load` read it as long as any cluster may use it. `load` gets the version of the format \
                     as an argument.",
        },
        probe: probes::migration,
    },
    UpgradeCheck {
        about: About {
            name: "repeated",
            meaning: "the same snapshot migrates to the same state, in pieces of any size, compiled or interpreted",
            advice: "Each node migrates by itself, so nodes could disagree after the activation. The \
                     migration depends on something other than the snapshot: the size of its pieces, the \
                     order of a hash table, an address.",
        },
        probe: probes::repeated,
    },
    UpgradeCheck {
        about: About {
            name: "restore",
            meaning: "the migrated state, saved by the new component and restored, behaves like the migrated one",
            advice: "A node that restarts after the upgrade would disagree with the others. Reading the old \
                     format sets a value that `save` leaves out, or that `load` derives differently from the \
                     new format: a flag, a default, a count. Use the same function for both formats.",
        },
        probe: probes::restore,
    },
    UpgradeCheck {
        about: About {
            name: "continue",
            meaning: "the new component answers the calls that follow the upgrade as the old one would",
            advice: "Different answers may be the purpose of an upgrade. If these are not intended, the \
                     migration lost data, or data now has another meaning. A trap where the old component \
                     answered is a regression.",
        },
        probe: probes::continues,
    },
    UpgradeCheck {
        about: About {
            name: "rollback",
            meaning: "the old component restores the snapshots of the new one, so the upgrade can be rolled back",
            advice: "`conclave component rollback` would be rejected. If you need rollbacks, release twice: \
                     first a version that reads both formats and writes the old one, then a version that \
                     writes the new one.",
        },
        probe: probes::rollback,
    },
];

/// The names of the checks of an upgrade, in order.
pub fn upgrade_names() -> impl Iterator<Item = &'static str> {
    [CLIENTS.name].into_iter().chain(CHECKS.iter().map(|check| check.about.name))
}

/// Checks whether `new` can replace the component `old`.
///
/// # Errors
/// Fails if the upgrade could not be checked. A failed upgrade is reported in the [`Report`].
pub fn check_upgrade(
    old: Bytes,
    new: &Subject,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, CheckError> {
    check_names(&options.skip, upgrade_names())?;
    let limits = new.component.engine().limits().clone();
    let old = Component::load(new.component.engine(), old).map_err(CheckError::From)?;
    Standalone::with_stack(&limits, || checked(&old, new, options, progress))?
}

fn checked(
    old: &Component,
    new: &Subject,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, CheckError> {
    let total = upgrade_names().count() + 1;
    let mut tell = |next, done| progress(Progress { next, done, total });
    tell("calls", 0);
    let vocabulary = Vocabulary::of(old);
    let survey = survey(old, options, &vocabulary)?;
    let places_max = cuts_max(&survey).min(PLACES_MAX);
    let upgrade = Upgrade { old, new, vocabulary: &vocabulary, places_max };
    let mut report = report(&new.component, options, &vocabulary, &survey);
    report.from = Some(Origin::of(old));
    report.changes = diff::compare(old.descriptor_set(), new.component.descriptor_set());
    tell(CLIENTS.name, 1);
    let skipped = |name: &str| options.skip.iter().any(|skipped| skipped == name);
    let clients = or_skipped(skipped(CLIENTS.name), CLIENTS.name, || Ok(clients(&report.changes)))?;
    report.checks.push(clients);
    let mut migrates = true;
    for check in &CHECKS {
        let name = check.about.name;
        tell(name, report.checks.len() + 1);
        let run = || match migrates {
            true => one(check, &upgrade, &survey.calm, options.shrink_for),
            false => Ok(Checked::new(
                name,
                "",
                Verdict::Skipped,
                "there is no migrated state".to_owned(),
            )),
        };
        let checked = or_skipped(skipped(name), name, run)?;
        migrates &= name != "migration" || checked.verdict != Verdict::Failed;
        report.checks.push(checked);
    }
    tell("", total);
    Ok(report)
}

fn one(
    check: &UpgradeCheck,
    upgrade: &Upgrade<'_>,
    steps: &[Step],
    shrink_for: Duration,
) -> Result<Checked, FatalError> {
    let mut probe = |steps: &[Step]| (check.probe)(upgrade, steps);
    look(&check.about, &[steps], upgrade.vocabulary, shrink_for, &mut probe)
}

/// Checks the changes that affect clients.
fn clients(changes: &[Change]) -> Checked {
    let breaking = changes.iter().filter(|change| change.breaking).count();
    let said = match (breaking, changes.len()) {
        (0, 0) => "the services are the same".to_owned(),
        (0, all) => format!("{all} changes, none of which breaks a client"),
        (breaking, all) => format!("{breaking} of {all} changes break clients"),
    };
    if breaking == 0 {
        return Checked::new(CLIENTS.name, CLIENTS.meaning, Verdict::Ok, said);
    }
    let mut finding = Finding::new(said.clone(), 0);
    finding.sides = changes
        .iter()
        .filter(|change| change.breaking)
        .map(|change| (change.subject.clone(), change.text.clone()))
        .collect();
    let mut checked = Checked::new(CLIENTS.name, CLIENTS.meaning, Verdict::Failed, said);
    checked.finding = Some(finding);
    checked.advice = CLIENTS.advice.to_owned();
    checked
}
