//! The torture kit at its boundary: components in, reports out.
//!
//! Goal: it catches each way of breaking the contract, by the name of the check that is about it and with
//! a small log; and it finds nothing wrong with machines that are right. Method: `machines/wrong` is one
//! machine that breaks the contract in ways to choose from, see there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod calls;
mod engines;
mod right;
mod upgrade;
mod verb;
mod wrong;

use std::{path::Path, sync::LazyLock, time::Duration};

use bytes::Bytes;
use conclave::check::{CheckError, Checked, Options, Report, Source, Subject, Verdict, check};

/// Builds a machine of this repository, once.
fn build(manifest_dir: &str) -> Bytes {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("machines");
    let name = manifest_dir.replace('/', "-");
    let built = conclave_build::build_machine(&conclave_build::MachineSpec {
        manifest_dir: root.join(manifest_dir),
        output: target_dir.join(format!("check-{name}.wasm")),
        target_dir,
    })
    .unwrap();
    std::fs::read(built.path).unwrap().into()
}

static WRONG: LazyLock<Bytes> = LazyLock::new(|| build("host/tests/machines/wrong"));

/// The machine that is wrong in this way; 0 is right.
fn wrong(number: u8) -> Bytes {
    const SELECTOR: &[u8] = b"conclave-wrong-machine-is";
    let mut component = WRONG.to_vec();
    let places: Vec<_> = component
        .windows(SELECTOR.len())
        .enumerate()
        .filter_map(|(at, window)| (window == SELECTOR).then_some(at + SELECTOR.len()))
        .collect();
    let [place] = places[..] else { panic!("the selector is there {} times", places.len()) };
    component[place] = b'0' + number / 10;
    component[place + 1] = b'0' + number % 10;
    component.into()
}

fn generated(count: usize, seed: u64) -> Options {
    Options {
        source: Source::Generated { count, seed },
        skip: Vec::new(),
        shrink_for: Duration::from_secs(20),
    }
}

fn given(lines: &[String]) -> Options {
    Options { source: Source::Given(lines.join("\n").into()), ..generated(0, 0) }
}

fn run(component: Bytes, options: &Options) -> Result<Report, CheckError> {
    check(&Subject::load(component).unwrap(), options, &mut |_| {})
}

fn checked<'a>(report: &'a Report, name: &str) -> &'a Checked {
    report.checks.iter().find(|checked| checked.name == name).unwrap()
}

fn failed(report: &Report) -> Vec<&'static str> {
    report.failed().map(|checked| checked.name).collect()
}

/// Everything that a report says, for a test that fails.
fn said(report: &Report) -> String {
    let line = |checked: &Checked| {
        let log = report.lines(&checked.log).join("\n    ");
        format!("{:?} {}: {}\n    {log}", checked.verdict, checked.name, checked.said)
    };
    report.checks.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn verdict(report: &Report, name: &str) -> Verdict {
    checked(report, name).verdict
}
