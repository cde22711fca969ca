//! Conformance tests: check that a state machine keeps the contract, without a cluster.
//!
//! # Purpose
//! Replicas of a state machine agree only if it is a pure function of the log and if a snapshot
//! holds its complete state. No test of a single run shows that. This crate runs a state machine in
//! several ways that must give the same results, and compares them:
//! - the same log twice
//! - compiled code and the interpreter
//! - with a disturbed memory layout
//! - snapshots taken in differently sized pieces and restored at many places of the log
//! - a restore over another state
//! - neighbouring calls exchanged where they do not depend on each other
//! - with and without queries
//!
//! # Contract
//! 1. A [`Checked`] that failed names a breach and carries the smallest log found that shows it.
//!    The same check fails with that log again.
//! 2. The same component, calls and seed give the same report. Only the size of the smallest logs
//!    depends on the time available for shrinking.
//! 3. A state machine that passes has passed with these calls only. Other calls may still show a breach.
//! 4. Every check terminates: the number of logs, places and rounds is bounded, and so is the time.
//!
//! # Caveats
//! - Checks use much memory and processor time: several instances of the state machine at once,
//!   on one thread.
//! - Subscriptions are not called.
//! - Logs are provided, or generated from the descriptor. A recorded log that starts later than the
//!   first entry is played on the initial state nevertheless.

mod answers;
mod bench;
mod calls;
mod checks;
mod compare;
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
pub use error::{CallError, CheckError, JsonError};
pub use finding::Finding;
pub use report::{Checked, Origin, Report, Verdict};
pub use upgrade::{check_upgrade, upgrade_names};

use bench::Bench;
use checks::{About, CHECKS, Check, different};
use conclave_machine::{Component, Engine, FatalError, Limits, Standalone};
use finding::Stop;
use survey::Survey;
use vocabulary::Vocabulary;

/// Maximum numbers of different queries and commands that are made on states that must be equal.
const QUESTIONS_MAX: usize = 48;
const COMMANDS_MAX: usize = 64;
/// Maximum and minimum number of places tried in a log. A log that costs little fuel gets the maximum.
const CUTS_MAX: usize = 32;
const CUTS_MIN: usize = 4;
/// Fuel that one check may use for replays of the log: some seconds of execution.
const FUEL_A_CHECK: u64 = 4_000_000_000;
/// Checks that are not in [`CHECKS`].
const OTHERS: [&str; 5] = ["features", "traps", "fuel", "memory", "answers"];

/// Source of the calls.
#[derive(Clone, Debug)]
pub enum Source {
    /// Calls generated from the state machine's descriptor.
    Generated {
        /// Number of calls.
        count: usize,
        /// Seed of the generator. Different seeds give different calls.
        seed: u64,
    },
    /// The bytes of a file of calls, in the format of `calls.rs`.
    Given(Bytes),
    /// Steps that a cluster recorded.
    Recorded(Vec<Step>),
}

/// Settings of a check.
#[derive(Clone, Debug)]
pub struct Options {
    /// The source of the calls.
    pub source: Source,
    /// Names of the checks to skip.
    pub skip: Vec<String>,
    /// Maximum time to look for a smaller log, per failed check.
    pub shrink_for: Duration,
}

/// A state machine, compiled for both engines.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The component as a node runs it.
    pub component: Component,
    /// The component for the interpreter.
    pub second: Component,
}

impl Subject {
    /// Loads a component with default limits as a node does, and once more for the interpreter.
    ///
    /// # Errors
    /// Fails for a component that no node would load.
    pub fn load(bytes: Bytes) -> Result<Self, CheckError> {
        let limits = Limits::default();
        let component = Component::load(&Engine::new(&limits)?, bytes.clone())?;
        let second = Component::load(&Engine::interpreter(&limits)?, bytes)?;
        Ok(Self { component, second })
    }
}

/// Progress of a check.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Name of the check that runs next.
    pub next: &'static str,
    /// Number of checks done.
    pub done: usize,
    /// Total number of checks.
    pub total: usize,
}

/// The names of all checks, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    let [first, rest @ ..] = OTHERS;
    [first].into_iter().chain(CHECKS.iter().map(|check| check.about.name)).chain(rest)
}

/// Checks a state machine.
///
/// # Errors
/// Fails if the state machine could not be checked. A breach of the contract is reported in the [`Report`].
pub fn check(
    subject: &Subject,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, CheckError> {
    check_names(&options.skip, names())?;
    let limits = subject.component.engine().limits().clone();
    Standalone::with_stack(&limits, || checked(subject, options, progress))?
}

/// Checks that each given name is the name of a check.
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
            // All other checks would report the same breach again.
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
        true => Ok(Checked::new(name, "", Verdict::Skipped, "skipped on request".to_owned())),
        false => run(),
    }
}

/// Marks a check as skipped if it stopped at a breach that other checks report.
fn or_found(name: &'static str, checked: Result<Checked, Stop>) -> Result<Checked, FatalError> {
    checked.or_else(|stop| match stop {
        Stop::Fatal(fatal_error) => Err(fatal_error),
        Stop::Found(finding) => Ok(Checked::new(name, "", Verdict::Skipped, finding.what)),
    })
}

/// Generates or reads the calls, and plays them once.
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

/// The number of places to try in a log. It is smaller for logs that take more fuel to play.
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

/// Runs one check, and shrinks the log if the check fails.
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

/// A probe plays a log and returns a summary, or a finding.
type Probe<'a> = dyn FnMut(&[Step]) -> Result<String, Stop> + 'a;

/// Probes logs until one gives a finding, and shrinks that log.
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
        // Such a finding does not depend on a part of the log, so shrinking is useless.
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
