//! Output of the commands: progress to stderr, results to stdout. Only this file prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is this file's purpose")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Prints a line of progress.
pub(crate) fn say(line: &str) {
    eprintln!("    {line}");
}

/// Reports a part of the work that is skipped. The format is the same everywhere, because CI's log
/// must show it.
pub(crate) fn skip(what: &str, reason: &str) {
    eprintln!("    skipped: {what}: {reason}");
}

/// Prints a line of a result, which a user may redirect to a file.
pub(crate) fn result(line: &str) {
    println!("{line}");
}

pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("\nerror: {error:#}");
}

/// The steps of one command. Each is announced when it starts, and timed.
pub(crate) struct Steps {
    start: Instant,
    done: Vec<Step>,
}

struct Step {
    name: String,
    time: Duration,
    failed: bool,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), done: Vec::new() }
    }

    /// Runs one step. Its error contains the name of the step.
    pub(crate) fn run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("\n==> {name}");
        let start = Instant::now();
        let result = step();
        let (time, failed) = (start.elapsed(), result.is_err());
        eprintln!("    {} after {}", if failed { "FAILED" } else { "done" }, human(time));
        self.done.push(Step { name: name.to_owned(), time, failed });
        result.with_context(|| format!("this step failed: {name}"))
    }

    /// Prints the time of each step if there was more than one.
    pub(crate) fn summary(&self) {
        if self.done.len() < 2 {
            return;
        }
        eprintln!("\nSummary");
        for step in &self.done {
            let mark = if step.failed { "FAILED" } else { "ok" };
            eprintln!("    {mark:<7}{:>9}  {}", human(step.time), step.name);
        }
        eprintln!("    {:<7}{:>9}  total", "", human(self.start.elapsed()));
    }
}

/// Formats a duration as `850 ms`, `12.3 s` or `4m 05s`.
pub(crate) fn human(time: Duration) -> String {
    match time.as_millis() {
        millis if millis < 1_000 => format!("{millis} ms"),
        millis if millis < 60_000 => format!("{:.1} s", time.as_secs_f64()),
        _ => format!("{}m {:02}s", time.as_secs() / 60, time.as_secs() % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(human(Duration::from_millis(850)), "850 ms");
        assert_eq!(human(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(human(Duration::from_secs(245)), "4m 05s");
    }

    #[test]
    fn a_failed_step_is_named() {
        let error = Steps::new().run("boil", || -> Result<()> { anyhow::bail!("no water") });
        assert_eq!(format!("{:#}", error.unwrap_err()), "this step failed: boil: no water");
    }
}
