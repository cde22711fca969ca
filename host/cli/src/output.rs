//! The one place that prints.
//!
//! A result that cannot be written ends the verb, and the first error counts: when the reader went away on purpose
//! (`head`, a pager), the verb ends quietly and successfully; anything else, such as a full disk, is a failure. A remark
//! that cannot be written is dropped: there is no place left to report it to.
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

/// Without a terminal, progress is a line this often.
const PROGRESS_LINE_EVERY: Duration = Duration::from_secs(2);

/// Where results and remarks go. Clones share the state of standard output.
#[derive(Clone, Debug)]
pub struct Output {
    json: bool,
    /// Why results are not written any more.
    broken: Arc<watch::Sender<Option<ErrorKind>>>,
}

impl Output {
    /// For people, until [`Output::set_json`] says otherwise.
    #[allow(clippy::new_without_default, reason = "one is made, in one place")]
    pub fn new() -> Self {
        Self { json: false, broken: Arc::default() }
    }

    /// Errors become JSON too.
    pub fn set_json(&mut self, json: bool) {
        self.json = json;
    }

    /// A line of the result.
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.write(&[text.as_ref().as_bytes(), b"\n"]);
    }

    /// A line of a result that has no end. `false`: results cannot be written any more.
    pub fn stream(&mut self, text: impl AsRef<str>) -> bool {
        self.write(&[text.as_ref().as_bytes(), b"\n"]);
        self.flush();
        !self.is_broken()
    }

    /// Bytes of the result, exactly.
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

    /// Writes what is buffered.
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

    /// Whether results cannot be written any more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.borrow().is_some()
    }

    /// Waits until a result cannot be written.
    pub(super) async fn broken(&self) {
        let mut broken = self.broken.subscribe();
        if broken.wait_for(Option::is_some).await.is_err() {
            // The sender lives as long as `self`.
            pending::<()>().await;
        }
    }

    /// The verb's result, and whether all of it was written.
    pub(super) fn finish(&mut self, result: Result) -> Result {
        self.flush();
        match *self.broken.borrow() {
            None | Some(ErrorKind::BrokenPipe) => result,
            Some(kind) => {
                result?;
                let error = io::Error::from(kind);
                Err(Failed::local(format!(
                    "the result cannot be written to standard output: {error}"
                )))
            }
        }
    }

    /// A result as JSON, indented.
    pub fn value(&mut self, value: &Value) {
        self.line(format!("{value:#}"));
    }

    /// A remark for people, on stderr.
    pub fn remark(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr().lock(), "{}", printable(text.as_ref()));
    }

    /// Why the verb did not succeed: one line on stderr.
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

    /// A bar on a terminal, lines elsewhere.
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

/// How far a long verb has come.
pub enum Progress {
    /// Redrawn in place.
    Bar(ProgressBar),
    /// A line now and then.
    Lines {
        /// So far.
        done: u64,
        /// In the end.
        total: u64,
        /// Of what.
        what: &'static str,
        /// When the last line was printed.
        last: Instant,
        /// No lines either.
        silent: bool,
    },
}

impl Progress {
    /// So many more are done.
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

    /// Takes the bar away.
    pub fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Text from a server as it may go to a terminal: control characters, which could drive it, are escaped.
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

/// Columns as wide as their widest cell. Control characters are escaped. The first row is the head.
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
