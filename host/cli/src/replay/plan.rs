//! Plan of a replay, derived from the arguments.

use serde_json::Value;

use super::Arguments;
use crate::{Failed, Result};
use conclave::replay::Span;
use conclave_types::error::chain;

/// The range of a replay, and the results to show.
#[derive(Debug)]
pub(super) struct Plan {
    /// The latest index whose state may be the start of the replay.
    pub(super) begin: u64,
    /// The index of the last entry to apply.
    pub(super) end: u64,
    pub(super) show: Option<u64>,
    /// The entries to list, both ends included.
    pub(super) entries: Option<(u64, u64)>,
    pub(super) queries: Vec<Query>,
}

/// A query to the state machine.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) method: String,
    pub(super) request: Value,
}

/// Parses `FROM..TO`, either of which may be missing.
pub(super) fn range(text: &str) -> std::result::Result<(Option<u64>, Option<u64>), String> {
    let (from, to) = text.split_once("..").ok_or("it must look like 100..120, 100.. or ..120")?;
    let end = |text: &str| match text {
        "" => Ok(None),
        number => number.parse().map(Some).map_err(|_| format!("{number} is not an index")),
    };
    let (from, to) = (end(from)?, end(to)?);
    match from.zip(to) {
        Some((from, to)) if from > to => Err("the range ends before it begins".to_owned()),
        _ => Ok((from, to)),
    }
}

/// Parses pairs of a method and a request.
pub(super) fn queries(arguments: &[String]) -> Result<Vec<Query>> {
    let pairs = arguments.chunks_exact(2);
    let query = |pair: &[String]| {
        let request = serde_json::from_str(&pair[1]).map_err(|cause| {
            let why = chain(&cause);
            Failed::Usage(format!("the request of --query {} is not JSON: {why}", pair[0]))
        })?;
        Ok(Query { method: pair[0].clone(), request })
    };
    pairs.map(query).collect()
}

impl Plan {
    pub(super) fn new(arguments: &Arguments, span: Span, queries: Vec<Query>) -> Result<Self> {
        let Arguments { to, show, entries, compare, .. } = arguments;
        let (from, until) = entries.unwrap_or_default();
        // The replay ends at the last entry to show, unless the arguments need a later state.
        let seen = (*show).max(until).filter(|_| until.is_some() || entries.is_none());
        let end = match (to, seen) {
            (Some(to), _) => *to,
            (None, Some(seen)) if queries.is_empty() && !compare => seen,
            (None, seen) => span.committed.max(seen.unwrap_or(0)),
        };
        for (what, index) in [("--show", *show), ("--entries", from.max(until))] {
            if index.is_some_and(|index| index > end) {
                return Err(Failed::Usage(format!("{what} is beyond --to {end}")));
            }
        }
        // An entry is shown by applying it, so the state before it is needed.
        let before = |index: u64| index.saturating_sub(1);
        let entries = entries.map(|(from, to)| (from.unwrap_or(span.first + 1), to.unwrap_or(end)));
        let begin = [Some(end), show.map(before), entries.map(|(from, _)| before(from))];
        let begin = begin.into_iter().flatten().min().unwrap_or(end);
        Ok(Self { begin, end, show: *show, entries, queries })
    }

    pub(super) fn is_listed(&self, index: u64) -> bool {
        self.entries.is_some_and(|(from, to)| (from..=to).contains(&index))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    const SPAN: Span = Span { first: 50, snapshot: Some(50), committed: 90, last: 95 };

    fn plan(line: &[&str]) -> Result<Plan> {
        let line = Line::try_parse_from([&["replay"], line].concat()).unwrap();
        let queries = queries(&line.arguments.query)?;
        Plan::new(&line.arguments, SPAN, queries)
    }

    #[test]
    fn the_replay_goes_as_far_as_is_asked() {
        for (line, expected) in [
            (&[][..], (90, 90)),
            (&["--to", "70"], (70, 70)),
            (&["--show", "60"], (59, 60)),
            (&["--show", "93"], (92, 93)),
            (&["--show", "60", "--to", "70"], (59, 70)),
            (&["--show", "60", "--query", "a/B", "{}"], (59, 90)),
            (&["--entries", "55..60"], (54, 60)),
            (&["--entries", "55.."], (54, 90)),
            (&["--entries", "..60"], (50, 60)),
            (&["--entries", "..", "--show", "60"], (50, 90)),
            (&["--entries", "55..60", "--show", "70"], (54, 70)),
            (&["--show", "60", "--component", "m", "--compare"], (59, 90)),
        ] {
            let plan = plan(line).unwrap();
            assert_eq!((plan.begin, plan.end), expected, "{line:?}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_wrong_usage() {
        for line in [
            &["--show", "60", "--to", "59"][..],
            &["--entries", "55..60", "--to", "59"],
            &["--query", "a/B", "no JSON"],
        ] {
            assert!(matches!(plan(line), Err(Failed::Usage(_))), "{line:?}");
        }
        for text in ["5", "5..4", "a..b", "5-6"] {
            assert!(range(text).is_err(), "{text}");
        }
    }
}
