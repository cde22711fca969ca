//! `conclave check`: conformance tests of a component.

mod recorded;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use self::recorded::Recorded;
use super::{
    Failed, Result,
    output::{Output, table},
    remote::search_time,
};
use conclave_check as check;
use conclave_check::{CheckError, Checked, Options, Report, Source, Subject, Verdict};
use conclave_types::components::Change;
use conclave_types::error::chain;

/// Maximum size of a file of calls; a larger one must be checked in parts.
const CALLS_BYTES_MAX: u64 = 1 << 30;

/// Check that a state machine keeps the contract
///
/// Replicas agree only if a state machine is a pure function of the log, and if its snapshot holds
/// all of its state. This verb runs a component in several ways that must give the same result, and
/// compares: the log twice; in machine code and in wasmtime's interpreter; while snapshots and
/// queries disturb its memory; interrupted, saved and restored at many points and in pieces of all
/// sizes; restored over another state; with independent calls exchanged; with and without queries.
/// It also detects failed calls that change the state, lost timers, traps, leaks, floats, and calls
/// close to a limit.
///
/// For each check that fails, it reports the difference and the next step, and shows the smallest
/// log of calls that it found to reproduce the failure. Such a log can be passed with --calls.
///
/// By default the calls are generated from the state machine's descriptor, the same ones for the
/// same seed. With --calls they come from a file with one JSON object per line: "method", and
/// "request" (as for `conclave call`) or "request_base64". Optional are "time_ms", "principal" and
/// "kind": command, query or tick. A state machine without a descriptor needs a file. Calls are
/// shown unchanged, including secrets.
///
/// With --data-dir the calls are those of a real cluster, in their order and with their times: the
/// ones that the log of a stopped node still has. Queries are in no log.
///
/// With --from it tests an upgrade: the calls are applied to that component, its snapshots are
/// restored into FILE at several points, and both continue. It reports a snapshot that is refused,
/// a trap in the migration, a state on which replicas could disagree afterwards, changes that break
/// clients, responses that differ, and whether a rollback is possible.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave check target/my-counter.wasm
  conclave check target/my-counter.wasm --generate 5000 --seed 7
  conclave check target/my-counter.wasm --calls calls.jsonl
  conclave check target/my-counter.wasm --data-dir /var/lib/conclave --master-key-file master.key
  conclave check target/my-counter.wasm --save smallest.jsonl || cat smallest.jsonl
  conclave check target/new.wasm --from target/old.wasm      check that new.wasm can replace old.wasm
  conclave check target/my-counter.wasm --json | jq -r '.checks[] | select(.verdict != \"ok\") | .name'
  conclave check                              check the built-in key-value store

Lines of a file of calls:
  {\"method\": \"my_counter.v1.MyCounter/Add\", \"request\": {\"name\": \"pear\", \"amount\": 3}}
  {\"kind\": \"tick\", \"time_ms\": 1750000060000}

Exit codes: 0 no check failed, 1 a check failed or the component cannot be loaded, 2 wrong usage or calls.")]
pub struct Arguments {
    /// Component to check [default: the built-in key-value store]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Check the upgrade from this component to FILE, instead of FILE itself
    #[arg(long, value_name = "OLD")]
    from: Option<PathBuf>,

    /// Number of calls to generate from the state machine's descriptor
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    generate: u32,

    /// Seed of the generated calls
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,

    /// Read the calls from a file with one JSON object per line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["generate", "seed"])]
    calls: Option<PathBuf>,

    #[command(flatten)]
    recorded: Recorded,

    /// Skip this check; repeatable
    #[arg(long, value_name = "CHECK")]
    skip: Vec<String>,

    /// Maximum time to search for a smaller log, for each check that fails; 0 disables the search
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = search_time)]
    shrink: Duration,

    /// Write the smallest log of the first check that fails, or else of the first one that warns,
    /// to this file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    output.set_json(arguments.json);
    let (name, component) = component(arguments.file.as_deref())?;
    let old = arguments.from.as_deref().map(|path| self::component(Some(path))).transpose()?;
    let source = match &arguments.calls {
        Some(path) => Source::Given(calls(path)?),
        None if arguments.recorded.is_wanted() => {
            Source::Recorded(arguments.recorded.steps(output).await?)
        }
        None => Source::Generated {
            count: usize::try_from(arguments.generate).unwrap_or(usize::MAX),
            seed: arguments.seed,
        },
    };
    let options = Options { source, skip: arguments.skip.clone(), shrink_for: arguments.shrink };
    let subject = Subject::load(component).map_err(|error| failed(&error, &name, None))?;
    let calls = arguments.calls.as_ref().or(arguments.recorded.data_dir.as_ref());
    // For an upgrade, the log is the old component's.
    let name = old.as_ref().map_or(&name, |(old, _)| old);
    let failed = |error| failed(&error, name, calls.map(PathBuf::as_path));
    let mut progress = None;
    let mut tell = |now: check::Progress| {
        let bar = progress.get_or_insert_with(|| output.progress(now.total as u64, "checks"));
        if now.done > 0 {
            bar.advance(1);
        }
    };
    let report = match &old {
        Some((_, old)) => check::check_upgrade(old.clone(), &subject, &options, &mut tell),
        None => check::check(&subject, &options, &mut tell),
    };
    if let Some(bar) = progress {
        bar.finish();
    }
    let report = report.map_err(failed)?;
    if arguments.json {
        output.value(&value(&report));
    } else {
        for line in lines(&report) {
            output.line(line);
        }
    }
    if let Some(path) = &arguments.save {
        save(&report, path, output)?;
    }
    verdict(&report)
}

fn component(file: Option<&Path>) -> Result<(String, Bytes)> {
    let Some(path) = file else {
        return Ok(("the key-value store".to_owned(), Bytes::from_static(crate::DEFAULT_MACHINE)));
    };
    let bytes = fs::read(path).map_err(Failed::at(path))?;
    Ok((path.display().to_string(), Bytes::from(bytes)))
}

fn calls(path: &Path) -> Result<Bytes> {
    let size = fs::metadata(path).map_err(Failed::at(path))?.len();
    if size > CALLS_BYTES_MAX {
        return Err(Failed::local(format!(
            "{}: the file has {size} bytes; check a part of at most {CALLS_BYTES_MAX}",
            path.display()
        )));
    }
    Ok(Bytes::from(fs::read(path).map_err(Failed::at(path))?))
}

/// Converts an error: errors in the arguments are wrong usage, all others are failures.
fn failed(error: &CheckError, name: &str, calls: Option<&Path>) -> Failed {
    match (error, calls) {
        (CheckError::Calls { .. } | CheckError::NoCalls, Some(calls)) => {
            Failed::Usage(format!("{}: {}", calls.display(), chain(error)))
        }
        (CheckError::NothingToCall, _) => Failed::Usage(format!("{name}: {}", chain(error))),
        (CheckError::NoSuchCheck { .. }, _) => Failed::usage(error),
        _ => Failed::because(name, error),
    }
}

fn verdict(report: &Report) -> Result {
    let failed: Vec<_> = report.failed().map(|checked| checked.name).collect();
    match failed[..] {
        [] => Ok(()),
        _ => {
            let failed = failed.join(", ");
            Err(Failed::local(match &report.from {
                Some(old) => {
                    let (old, new) = (
                        named(&old.machine, &old.version),
                        named(&report.machine, &report.version),
                    );
                    format!("{new} cannot replace {old}: {failed}")
                }
                None => format!("{} does not keep the contract: {failed}", report.machine),
            }))
        }
    }
}

/// Writes the smallest log of the first check that failed, or else of the first one that warned.
fn save(report: &Report, path: &Path, output: &mut Output) -> Result {
    let first = |verdict| {
        let mut checks = report.checks.iter();
        checks.find(|checked| checked.verdict == verdict && !checked.log.is_empty())
    };
    let Some(checked) = first(Verdict::Failed).or_else(|| first(Verdict::Warned)) else {
        output.remark("there is no log to save: no check that failed or warned has one");
        return Ok(());
    };
    let mut text = format!("# {}: {}\n", checked.name, checked.said.replace(char::is_control, " "));
    for line in report.lines(&checked.log) {
        text.push_str(&line);
        text.push('\n');
    }
    fs::write(path, text).map_err(Failed::at(path))?;
    output.remark(format!("the smallest log of {} is in {}", checked.name, path.display()));
    Ok(())
}

fn named(machine: &str, version: &str) -> String {
    format!("{machine} {version}")
}

fn lines(report: &Report) -> Vec<String> {
    let (commands, queries, ticks) = report.calls;
    let source = match report.seed {
        Some(seed) => format!("generated with seed {seed}"),
        None => "as given".to_owned(),
    };
    let name = named(&report.machine, &report.version);
    let mut lines = Vec::new();
    lines.extend(report.from.as_ref().map(|old| {
        format!("from {}, component {}", named(&old.machine, &old.version), old.component)
    }));
    let to = if lines.is_empty() { "" } else { "to " };
    lines.extend([
        format!("{to}{name}, component {}", report.component),
        format!(
            "{commands} commands, {queries} queries and {ticks} ticks, {source}; {} were refused",
            report.refused
        ),
    ]);
    if report.subscriptions > 0 {
        lines.push(format!(
            "{} methods are subscriptions and were not called",
            report.subscriptions
        ));
    }
    lines.push(String::new());
    let rows: Vec<_> = report
        .checks
        .iter()
        .map(|checked| {
            let verdict = match checked.verdict {
                Verdict::Failed => "FAILED",
                other => other.name(),
            };
            vec![verdict.to_owned(), checked.name.to_owned(), checked.said.clone()]
        })
        .collect();
    lines.extend(table(&rows));
    if report.failed().count() > 1 {
        lines.push(String::new());
        lines.push(
            "Begin with the first check that failed: its cause may also break others.".to_owned(),
        );
    }
    let remarkable = report.checks.iter().filter(|checked| !checked.advice.is_empty());
    for checked in remarkable {
        lines.extend(details(checked, report));
    }
    lines
}

/// Formats one check: its meaning, its findings, the next step and the calls.
fn details(checked: &Checked, report: &Report) -> Vec<String> {
    let mut lines = vec![
        String::new(),
        format!("{} {}", checked.name, checked.verdict.name()),
        format!("  holds:   {}", checked.meaning),
    ];
    lines.push(format!("  found:   {}", checked.said));
    if let Some(finding) = checked.finding.as_ref().filter(|finding| finding.what != checked.said) {
        lines.push(format!("           {}", finding.what));
    }
    for (name, text) in checked.finding.iter().flat_map(|finding| &finding.sides) {
        lines.push(format!("           {name}: {text}"));
    }
    lines.push(format!("  to do:   {}", checked.advice));
    if !checked.log.is_empty() {
        let count = checked.log.len();
        let steps = if count == 1 { "1 step" } else { &format!("{count} steps") };
        lines.push(format!("  with:    {steps}, for --calls"));
        lines.extend(report.lines(&checked.log));
    }
    lines
}

fn value(report: &Report) -> Value {
    let (commands, queries, ticks) = report.calls;
    let checks: Vec<_> = report.checks.iter().map(|checked| check_value(checked, report)).collect();
    json!({
        "name": report.machine,
        "version": report.version,
        "component": report.component,
        "calls": {"commands": commands, "queries": queries, "ticks": ticks, "refused": report.refused, "seed": report.seed},
        "ok": report.failed().next().is_none(),
        "checks": checks,
        "from": report.from.as_ref().map(|old| json!({
            "name": old.machine,
            "version": old.version,
            "component": old.component,
            "state_version": old.state_version,
        })),
        "changes": report.changes.iter().map(change_value).collect::<Vec<_>>(),
    })
}

fn change_value(change: &Change) -> Value {
    json!({"subject": change.subject, "text": change.text, "breaking": change.breaking})
}

fn check_value(checked: &Checked, report: &Report) -> Value {
    let log: Vec<Value> = report
        .lines(&checked.log)
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let sides = checked.finding.iter().flat_map(|finding| &finding.sides);
    let sides: Vec<_> = sides.map(|(name, text)| json!({"name": name, "gave": text})).collect();
    json!({
        "name": checked.name,
        "verdict": checked.verdict.name(),
        "meaning": checked.meaning,
        "said": checked.said,
        "found": checked.finding.as_ref().map(|finding| &finding.what),
        "sides": sides,
        "advice": checked.advice,
        "log": log,
    })
}
