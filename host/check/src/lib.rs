//! The torture kit: finds out whether a machine keeps the contract, without a cluster.
//!
//! # Purpose
//! Replicas of a machine agree only if it is a pure function of the log, and if a snapshot holds all of
//! its state. No test of a single run shows that. This layer runs a machine in ways that must come to
//! the same end, and compares: twice; in machine code and interpreted; with its memory stirred; cut,
//! saved and restored at many places; restored over another state; with calls exchanged that do not
//! depend on each other; with and without queries.
//!
//! # Contract
//! 1. A [`Checked`] that failed names a breach, and carries the smallest log found that shows it: the
//!    same check fails with it again.
//! 2. The same component, calls and seed give the same report, but for how small logs get in the time
//!    that shrinking has.
//! 3. A machine that passes has passed with these calls. There may be others.
//! 4. Everything ends: logs, places, rounds and time are bounded.
//!
//! # Caveats
//! - It is generous with memory and processor: some instances of the machine at once, on one thread.
//! - Subscriptions are not called.
//! - Logs are given, or made up from the descriptor. A recorded one that does not begin at the beginning is played on
//!   the initial state all the same.

mod answers;
mod calls;
mod checks;
mod error;
mod features;
mod finding;
mod generate;
mod player;
mod report;
mod shrink;
mod survey;
mod traps;
mod upgrade;
mod usage;
mod values;
mod vocabulary;

use std::time::Duration;

use bytes::Bytes;

pub use calls::{Action, Step};
pub use error::CheckError;
pub use finding::Finding;
pub use report::{Checked, Origin, Report, Verdict};
pub use upgrade::{check_upgrade, upgrade_names};

use checks::{About, Bench, CHECKS, Check, different};
use conclave_machine::{Component, Engine, FatalError, Limits, Standalone};
use finding::Stop;
use survey::Survey;
use vocabulary::Vocabulary;

/// Different questions and commands that are asked and made on states that must be alike.
const QUESTIONS_MAX: usize = 48;
const COMMANDS_MAX: usize = 64;
/// Places of the log that are tried, if the log is cheap.
const CUTS_MAX: usize = 32;
const CUTS_MIN: usize = 4;
/// Fuel that one check may take by playing the log again and again: some seconds of it.
const FUEL_A_CHECK: u64 = 4_000_000_000;
/// The checks that are none of [`CHECKS`].
const OTHERS: [&str; 5] = ["features", "traps", "fuel", "memory", "answers"];

/// Where the calls come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From the machine's descriptor.
    Generated {
        /// How many.
        count: usize,
        /// Another seed gives other calls.
        seed: u64,
    },
    /// The bytes of a file of calls; `calls.rs` has the format.
    Given(Bytes),
    /// The steps themselves, as a cluster made them.
    Recorded(Vec<Step>),
}

/// What to check, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The calls.
    pub source: Source,
    /// Names of checks that are left out.
    pub skip: Vec<String>,
    /// How long to look for a smaller log, for each check that fails.
    pub shrink_for: Duration,
}

/// A machine, compiled twice.
#[derive(Clone, Debug)]
pub struct Subject {
    /// As a node runs it.
    pub component: Component,
    /// For the interpreter.
    pub second: Component,
}

impl Subject {
    /// Loads a component as a node with default limits does, and once more for the interpreter.
    ///
    /// # Errors
    /// No node would serve it.
    pub fn load(bytes: Bytes) -> Result<Self, CheckError> {
        let limits = Limits::default();
        let component = Component::load(&Engine::new(&limits)?, bytes.clone())?;
        let second = Component::load(&Engine::interpreter(&limits)?, bytes)?;
        Ok(Self { component, second })
    }
}

/// How far a check of a machine has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is done next.
    pub next: &'static str,
    /// Checks done.
    pub done: usize,
    /// Checks in all.
    pub total: usize,
}

/// The names of all checks, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    let [first, rest @ ..] = OTHERS;
    [first].into_iter().chain(CHECKS.iter().map(|check| check.about.name)).chain(rest)
}

/// Checks a machine.
///
/// # Errors
/// It could not be checked; a machine that is wrong is no error but a [`Report`].
pub fn check(
    subject: &Subject,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, CheckError> {
    check_names(&options.skip, names())?;
    let limits = subject.component.engine().limits().clone();
    Standalone::with_stack(&limits, || checked(subject, options, progress))?
}

/// Each name that was given is one of a check.
fn check_names(
    given: &[String],
    names: impl Iterator<Item = &'static str>,
) -> Result<(), CheckError> {
    let known: Vec<_> = names.collect();
    match given.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(CheckError::NoSuchCheck { name: name.clone(), known: known.join(", ") }),
        None => Ok(()),
    }
}

fn checked(
    subject: &Subject,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, CheckError> {
    let total = names().count() + 1;
    let mut tell = |next, done| progress(Progress { next, done, total });
    let vocabulary = Vocabulary::of(&subject.component);
    tell("calls", 0);
    let survey = survey(&subject.component, options, &vocabulary)?;
    let mut report = report(&subject.component, options, &vocabulary, &survey);
    let mut steps = survey.calm.clone();
    let mut bench = bench(subject, &vocabulary, &survey);
    let skipped = |name: &str| options.skip.iter().any(|skipped| skipped == name);
    tell("features", 1);
    report.checks.push(or_skipped(skipped("features"), "features", || {
        Ok(features::features(subject.component.bytes()))
    })?);
    for check in &CHECKS {
        tell(check.about.name, report.checks.len() + 1);
        let run = || run(check, &bench, &steps, options.shrink_for);
        let checked = or_skipped(skipped(check.about.name), check.about.name, run)?;
        if check.about.name == "queries" && checked.verdict == Verdict::Failed {
            // All other checks would find the same again.
            bench.questions_are_harmless = false;
            bench.questions.clear();
            steps.retain(|step| !step.is_query());
        }
        report.checks.push(checked);
    }
    tell("traps", report.checks.len() + 1);
    let traps = || traps::traps(&bench, &survey, options.shrink_for);
    report.checks.push(or_skipped(skipped("traps"), "traps", traps)?);
    tell("fuel", report.checks.len() + 1);
    let fuel = || Ok(usage::fuel(&bench, &survey));
    report.checks.push(or_skipped(skipped("fuel"), "fuel", fuel)?);
    tell("memory", report.checks.len() + 1);
    let memory = || or_found("memory", usage::memory(&bench, &survey));
    report.checks.push(or_skipped(skipped("memory"), "memory", memory)?);
    tell("answers", report.checks.len() + 1);
    let answers = || or_found("answers", answers::answers(&bench, &survey));
    report.checks.push(or_skipped(skipped("answers"), "answers", answers)?);
    tell("", total);
    Ok(report)
}

fn or_skipped(
    skipped: bool,
    name: &'static str,
    run: impl FnOnce() -> Result<Checked, FatalError>,
) -> Result<Checked, FatalError> {
    match skipped {
        true => Ok(Checked::new(name, "", Verdict::Skipped, "not asked for".to_owned())),
        false => run(),
    }
}

/// A check that was ended by a breach, which other checks report.
fn or_found(name: &'static str, checked: Result<Checked, Stop>) -> Result<Checked, FatalError> {
    checked.or_else(|stop| match stop {
        Stop::Fatal(fatal_error) => Err(fatal_error),
        Stop::Found(finding) => Ok(Checked::new(name, "", Verdict::Skipped, finding.what)),
    })
}

/// Makes or reads the calls, and plays them once.
fn survey(
    component: &Component,
    options: &Options,
    vocabulary: &Vocabulary,
) -> Result<Survey, CheckError> {
    let surveyed = match &options.source {
        Source::Generated { .. } if vocabulary.methods().is_empty() => {
            return Err(CheckError::NothingToCall);
        }
        Source::Generated { count, seed } => {
            generate::generate(component, vocabulary, *count, *seed)
        }
        Source::Given(text) => played(component, calls::parse(text, vocabulary)?),
        Source::Recorded(steps) => played(component, steps.clone()),
    };
    let survey = surveyed.map_err(Stop::into_fatal)?;
    match survey.calm.is_empty() && survey.traps.is_empty() {
        true => Err(CheckError::NoCalls),
        false => Ok(survey),
    }
}

fn played(component: &Component, steps: Vec<Step>) -> Result<Survey, Stop> {
    let mut survey = Survey::new(component)?;
    for step in steps {
        if !survey.goes_on() {
            break;
        }
        survey.push(step)?;
    }
    Ok(survey)
}

/// How many places of a log are tried: fewer, the more fuel it takes to play it.
fn cuts_max(survey: &Survey) -> usize {
    let fuel: u64 = survey.fuel.iter().fold(1, |sum, fuel| sum.saturating_add(*fuel));
    let cuts_max = usize::try_from(FUEL_A_CHECK / fuel).unwrap_or(CUTS_MAX);
    cuts_max.clamp(CUTS_MIN, CUTS_MAX)
}

fn bench<'a>(subject: &'a Subject, vocabulary: &'a Vocabulary, survey: &Survey) -> Bench<'a> {
    let applied = |step: &Step| !step.is_query();
    Bench {
        component: &subject.component,
        second: &subject.second,
        vocabulary,
        questions: different(&survey.calm, Step::is_query, QUESTIONS_MAX),
        commands: different(&survey.calm, applied, COMMANDS_MAX),
        cuts_max: cuts_max(survey),
        questions_are_harmless: true,
    }
}

fn report(
    component: &Component,
    options: &Options,
    vocabulary: &Vocabulary,
    survey: &Survey,
) -> Report {
    let steps = survey.calm.iter().chain(survey.traps.iter().map(|trapped| &trapped.step));
    let mut calls = (0, 0, 0);
    for step in steps {
        match step.action {
            Action::Apply(_) => calls.0 += 1,
            Action::Query(_) => calls.1 += 1,
            Action::Tick => calls.2 += 1,
        }
    }
    let description = component.description();
    Report {
        machine: description.name.clone(),
        version: description.version.clone(),
        component: component.id().to_string(),
        from: None,
        changes: Vec::new(),
        calls,
        refused: survey.answers.iter().filter(|answer| answer.refused()).count(),
        seed: match options.source {
            Source::Generated { seed, .. } => Some(seed),
            Source::Given(_) | Source::Recorded(_) => None,
        },
        subscriptions: vocabulary.subscriptions,
        checks: Vec::new(),
        vocabulary: vocabulary.clone(),
    }
}

/// Runs one check, and makes the log that it fails with smaller.
fn run(
    check: &Check,
    bench: &Bench<'_>,
    steps: &[Step],
    shrink_for: Duration,
) -> Result<Checked, FatalError> {
    let more = (check.more)(bench);
    let logs: Vec<_> = more.iter().map(Vec::as_slice).chain([steps]).collect();
    let mut probe = |steps: &[Step]| (check.probe)(bench, steps);
    look(&check.about, &logs, bench.vocabulary, shrink_for, &mut probe)
}

/// A way of looking at a log: what was looked at, or a finding.
type Probe<'a> = dyn FnMut(&[Step]) -> Result<String, Stop> + 'a;

/// Looks at logs until something is found, and makes the log that it was found with smaller.
fn look(
    about: &About,
    logs: &[&[Step]],
    vocabulary: &Vocabulary,
    shrink_for: Duration,
    probe: &mut Probe<'_>,
) -> Result<Checked, FatalError> {
    let mut said = String::new();
    let mut found = None;
    for log in logs {
        match probe(log) {
            Ok(text) => said = text,
            Err(Stop::Fatal(fatal_error)) => return Err(fatal_error),
            Err(Stop::Found(finding)) => {
                found = Some((log, finding));
                break;
            }
        }
    }
    let Some((log, finding)) = found else {
        return Ok(Checked::new(about.name, about.meaning, Verdict::Ok, said));
    };
    let mild = finding.mild;
    let verdict = if mild { Verdict::Warned } else { Verdict::Failed };
    let mut checked = Checked::new(about.name, about.meaning, verdict, String::new());
    checked.advice = about.advice.to_owned();
    if mild && finding.steps == 0 {
        // No part of the log shows more than another.
        checked.said = finding.what;
        return Ok(checked);
    }
    let mut same = |steps: &[Step]| match probe(steps) {
        Err(Stop::Found(finding)) if finding.mild != mild => Ok(()),
        probed => probed.map(drop),
    };
    let smallest = shrink::shrink(log, finding, vocabulary, shrink_for, &mut same)?;
    checked.said.clone_from(&smallest.finding.what);
    checked.finding = Some(smallest.finding);
    checked.log = smallest.steps;
    Ok(checked)
}
