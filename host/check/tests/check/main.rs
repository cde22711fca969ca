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
