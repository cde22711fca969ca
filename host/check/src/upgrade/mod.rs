//! The test of an upgrade: whether one state machine can take the place of another, without a cluster.
//!
//! # Contract
//! 1. The log of calls is played on the old component. At several places its snapshot is restored into the new one, as an
//!    activation does, and both continue with the calls that follow.
//! 2. Failed: an activation would be refused or would trap, replicas could disagree afterwards, or clients of the old
//!    component could no longer call the new one. Warned: the new one answers differently, or a rollback is impossible.
//! 3. As for the other checks: a failure carries the smallest log found that shows it, and everything ends.
//!
//! # Caveats
//! Whether the new component keeps the contract by itself is not looked at: check it alone, too.

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

/// Places of the log at which the upgrade is tried.
const PLACES_MAX: usize = 12;

/// An upgrade, and the calls around it.
struct Upgrade<'a> {
    old: &'a Component,
    new: &'a Subject,
    /// Of the old component: the log is in its words.
    vocabulary: &'a Vocabulary,
    places_max: usize,
}

/// One check of an upgrade.
struct UpgradeCheck {
    about: About,
    probe: fn(&Upgrade<'_>, &[Step]) -> Result<String, Stop>,
}

const CLIENTS: About = About {
    name: "clients",
    meaning: "clients that were built for the old component can call the new one",
    advice: "An activation refuses these changes, unless it is told --allow-breaking. Keep methods, field numbers and \
             types; add new ones beside them; reserve the numbers of fields that go.",
};

const CHECKS: [UpgradeCheck; 5] = [
    UpgradeCheck {
        about: About {
            name: "migration",
            meaning: "the new component takes the snapshots of the old one",
            advice: "An activation would be refused, on every node. Name the old format in RESTORES, and let `load` read \
                     it for as long as a cluster may carry it: `load` has the version of the format as an argument.",
        },
        probe: probes::migration,
    },
    UpgradeCheck {
        about: About {
            name: "repeated",
            meaning: "the same snapshot migrates to the same state, however it is cut, compiled and interpreted",
            advice: "Each node migrates by itself, so nodes could disagree from the activation on. The migration depends on \
                     something beside the snapshot: the cuts between its pieces, the order of a hash table, an address.",
        },
        probe: probes::repeated,
    },
    UpgradeCheck {
        about: About {
            name: "restore",
            meaning: "the migrated state, saved by the new component and restored, continues as the migrated one",
            advice: "A node that restarts after the upgrade would disagree with the others. Reading the old format gives \
                     something that `save` leaves out, or that `load` derives differently from the new format: a flag, a \
                     default, a count. Let both ways end in the same function.",
        },
        probe: probes::restore,
    },
    UpgradeCheck {
        about: About {
            name: "continue",
            meaning: "the new component answers the calls that follow the upgrade as the old one would",
            advice: "Answers that differ are what an upgrade may be for. If these are not, something was lost in the \
                     migration, or means something else now. A trap where the old component answered is a regression.",
        },
        probe: probes::continues,
    },
    UpgradeCheck {
        about: About {
            name: "rollback",
            meaning: "the old component takes the snapshots of the new one, so the upgrade can be rolled back",
            advice: "`conclave component rollback` would be refused. Where that matters, release twice: first a version that \
                     reads both formats and writes the old one, then one that writes the new one.",
        },
        probe: probes::rollback,
    },
];

/// The names of the checks of an upgrade, in order.
pub fn upgrade_names() -> impl Iterator<Item = &'static str> {
    [CLIENTS.name].into_iter().chain(CHECKS.iter().map(|check| check.about.name))
}

/// Checks whether `new` can take the place of the component `old`.
///
/// # Errors
/// It could not be checked; an upgrade that fails is no error but a [`Report`].
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

/// The changes that clients notice.
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
