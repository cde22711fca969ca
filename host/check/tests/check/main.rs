//! Tests of the conformance tests through their public interface: components in, reports out.
//!
//! Goal: each breach of the contract is detected by the check for it, with a small log, and correct state
//! machines pass. Method: `machines/wrong` is one state machine with several breaches to choose from.
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
mod wrong;

use std::time::Duration;

use bytes::Bytes;
use conclave_check::{CheckError, Checked, Options, Report, Source, Subject, Verdict, check};
use conclave_testing::components::{build, wrong};

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

/// All results of a report, for the message of a failed test.
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
