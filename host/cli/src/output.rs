//! Output of all verbs: the one place that prints.
//!
//! A result that cannot be written ends the verb, and the first write error decides how. If the
//! reader closed the pipe (`head`, a pager), the verb ends quietly and successfully. Any other
//! error, such as a full disk, is a failure. A remark that cannot be written is dropped, because
//! there is no place left to report that.
#![allow(clippy::print_stdout, reason = "the command line's only place that prints")]

use std::{
    borrow::Cow,
    future::pending,
    io::{self, ErrorKind, IsTerminal, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Failed, Result};

/// Interval between lines of progress if stderr is no terminal.
const PROGRESS_LINE_EVERY: Duration = Duration::from_secs(2);

/// Destination of results and remarks. Clones share the state of standard output.
#[derive(Clone, Debug)]
pub struct Output {
    json: bool,
    /// The error because of which results are no longer written.
    broken: Arc<watch::Sender<Option<ErrorKind>>>,
}

impl Output {
    /// Creates an output for people; [`Output::set_json`] changes the format.
    #[allow(clippy::new_without_default, reason = "one is made, in one place")]
    pub fn new() -> Self {
        Self { json: false, broken: Arc::default() }
    }

    /// Selects JSON for errors too.
    pub fn set_json(&mut self, json: bool) {
        self.json = json;
    }

    /// Writes one line of the result.
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.write(&[text.as_ref().as_bytes(), b"\n"]);
    }

    /// Writes one line of a result without end. Returns `false` if results can no longer
    /// be written.
    pub fn stream(&mut self, text: impl AsRef<str>) -> bool {
        self.write(&[text.as_ref().as_bytes(), b"\n"]);
        self.flush();
        !self.is_broken()
    }

    /// Writes bytes of the result unchanged.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.write(&[bytes]);
        self.flush();
    }

    fn write(&mut self, parts: &[&[u8]]) {
        if !self.is_broken() {
            let mut out = io::stdout().lock();
            self.note(parts.iter().try_for_each(|part| out.write_all(part)));
        }
    }

    /// Flushes standard output.
    fn flush(&mut self) {
        if !self.is_broken() {
            self.note(io::stdout().lock().flush());
        }
    }

    fn note(&self, written: io::Result<()>) {
        if let Err(error) = written {
            self.broken.send_replace(Some(error.kind()));
        }
    }

    /// Returns whether results can no longer be written.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.borrow().is_some()
    }

    /// Waits until results can no longer be written.
    pub(super) async fn broken(&self) {
        let mut broken = self.broken.subscribe();
        if broken.wait_for(Option::is_some).await.is_err() {
            // The sender lives as long as `self`.
            pending::<()>().await;
        }
    }

    /// Returns the verb's result, or a failure if a part of it was not written.
    pub(super) fn finish(&mut self, result: Result) -> Result {
        self.flush();
        match *self.broken.borrow() {
            None | Some(ErrorKind::BrokenPipe) => result,
            Some(kind) => {
                result?;
                let error = io::Error::from(kind);
                Err(Failed::because("cannot write the result to standard output", &error))
            }
        }
    }

    /// Writes a result as indented JSON.
    pub fn value(&mut self, value: &Value) {
        self.line(format!("{value:#}"));
    }

    /// Writes a remark for people to stderr.
    pub fn remark(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr().lock(), "{}", printable(text.as_ref()));
    }

    /// Writes the reason why the verb did not succeed, as one line on stderr.
    pub fn failed(&mut self, failed: &Failed) {
        let (code, message) = match failed {
            Failed::Failure { code, message, .. } => (*code, message),
            Failed::Usage(message) => ("USAGE", message),
            Failed::NotFound(message) => ("NOT_FOUND", message),
        };
        if self.json {
            let mut error = json!({"code": code, "message": message});
            if let Failed::Failure { outcome: Some(outcome), .. } = failed {
                error["outcome"] = outcome.name().into();
            }
            let _ = writeln!(io::stderr().lock(), "{}", json!({ "error": error }));
        } else {
            self.remark(format!("conclave: {}", message.replace('\n', " ")));
        }
    }

    /// Starts a progress display: a bar on a terminal, lines elsewhere.
    pub fn progress(&mut self, total: u64, what: &'static str) -> Progress {
        if !io::stderr().is_terminal() || self.json {
            return Progress::Lines {
                done: 0,
                total,
                what,
                last: Instant::now(),
                silent: self.json,
            };
        }
        let bar = ProgressBar::new(total);
        let template = "{wide_bar} {human_pos}/{human_len} {msg} {per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Progress::Bar(bar)
    }
}

/// Progress of a long-running verb.
pub enum Progress {
    /// A bar that is redrawn in place.
    Bar(ProgressBar),
    /// A line every two seconds.
    Lines {
        /// The number of items done.
        done: u64,
        /// The total number of items.
        total: u64,
        /// The noun for the items.
        what: &'static str,
        /// The time of the last line.
        last: Instant,
        /// Whether no lines are printed either.
        silent: bool,
    },
}

impl Progress {
    /// Counts `by` more items as done.
    pub fn advance(&mut self, by: u64) {
        match self {
            Self::Bar(bar) => bar.inc(by),
            Self::Lines { done, total, what, last, silent } => {
                *done += by;
                if !*silent && last.elapsed() >= PROGRESS_LINE_EVERY {
                    *last = Instant::now();
                    let _ = writeln!(io::stderr().lock(), "{done}/{total} {what}");
                }
            }
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Escapes the control characters of a text from a server, since they could control the terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    let drives = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if !text.contains(drives) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match drives(character) {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped.into()
}

/// Formats rows as columns, each as wide as its widest cell. The first row is the header. Control
/// characters are escaped.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let cell = |cell: &String| printable(cell).replace(['\n', '\t'], " ");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|c| c.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<_> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_other_text_is_not() {
        assert_eq!(printable("grün\n\tü"), "grün\n\tü");
        assert_eq!(printable("a\u{1b}[2Jb\r\u{9b}"), "a\\u{1b}[2Jb\\r\\u{9b}");
        assert_eq!(table(&[vec!["a\u{7}\nb".to_owned()]]), ["a\\u{7} b"]);
    }

    #[test]
    fn columns_are_aligned_and_lines_end_with_text() {
        let rows = [["ID", "ROLE"], ["1", "leader"], ["10", ""]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|&c| c.to_owned()).collect()).collect();
        assert_eq!(table(&rows), ["ID  ROLE", "1   leader", "10"]);
    }
}
