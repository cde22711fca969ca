//! Reads the calls in a stopped node's log, without applying them.

use super::{error::Error, source::Source};
use conclave_storage::raft_types::Payload;
use conclave_types::{Call, Command, CommandKind};

/// Maximum size of the entries read together.
const READ_BYTES_MAX: usize = 4 << 20;

/// A call or tick in the log.
#[derive(Clone, Debug)]
pub struct LoggedCall {
    /// Its log index.
    pub index: u64,
    /// Milliseconds since the Unix epoch on the proposing leader's clock.
    pub time_ms: u64,
    /// The call. `None` for a tick.
    pub call: Option<Call>,
}

/// The result of [`Source::calls`].
#[derive(Clone, Debug)]
pub struct LoggedCalls {
    /// Calls and ticks in log order.
    pub calls: Vec<LoggedCall>,
    /// The first and the last entry that was read; `None` if the log is empty.
    pub span: Option<(u64, u64)>,
    /// True if the log reaches back to its first entry.
    pub from_the_beginning: bool,
    /// True if there are more calls than the limits allow.
    pub more: bool,
}

impl Source {
    /// Returns the calls and ticks that are in the log and known to be committed, oldest first.
    /// Stops at `count_max` calls or at `bytes_max` bytes. Blocking.
    ///
    /// # Errors
    /// The log cannot be read, or has a gap.
    pub fn calls(&self, count_max: usize, bytes_max: usize) -> Result<LoggedCalls, Error> {
        let (log, span) = (&self.parts.log, self.span());
        let extent = log.extent();
        let begin = extent.first;
        let end = extent.last.map_or(0, |last| last.index.min(span.committed) + 1);
        let mut found = LoggedCalls {
            calls: Vec::new(),
            span: None,
            from_the_beginning: span.first == 0,
            more: false,
        };
        let (mut next, mut bytes) = (begin, 0);
        while next < end {
            let entries = log.entries(next..end, READ_BYTES_MAX)?;
            if entries.is_empty() {
                return Err(Error::Gap(next));
            }
            for entry in entries {
                let index = entry.log_id.index;
                if index != next {
                    return Err(Error::Gap(next));
                }
                let logged = match entry.payload {
                    Payload::Normal(Command { time_ms, kind: CommandKind::Call(call) }) => {
                        Some(LoggedCall { index, time_ms, call: Some(call) })
                    }
                    Payload::Normal(Command {
                        time_ms,
                        kind: CommandKind::Tick | CommandKind::SetTime,
                    }) => Some(LoggedCall { index, time_ms, call: None }),
                    _ => None,
                };
                bytes += logged.iter().filter_map(|logged| logged.call.as_ref()).fold(0, size);
                if logged.is_some() && (found.calls.len() == count_max || bytes > bytes_max) {
                    found.more = true;
                    return Ok(found);
                }
                found.calls.extend(logged);
                found.span = Some((begin, index));
                next += 1;
            }
        }
        Ok(found)
    }
}

fn size(sum: usize, call: &Call) -> usize {
    sum + call.method.len() + call.request.len() + call.principal.len()
}
