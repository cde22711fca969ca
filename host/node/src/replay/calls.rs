//! Reads the calls in a stopped node's log, without applying them.

use super::{error::Error, source::Source};
use conclave_storage::raft_types::Payload;
use conclave_types::{Call, Command, CommandKind};

/// Maximum size of the entries read together.
const READ_BYTES_MAX: usize = 4 << 20;

/// A call or tick in the log.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its log index.
    pub index: u64,
    /// Milliseconds since the Unix epoch on the proposing leader's clock.
    pub time_ms: u64,
    /// The call. `None` for a tick.
    pub call: Option<Call>,
}

/// The result of [`Source::asked`].
#[derive(Clone, Debug)]
pub struct AskedAll {
    /// Calls and ticks in log order.
    pub asked: Vec<Asked>,
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
    pub fn asked(&self, count_max: usize, bytes_max: usize) -> Result<AskedAll, Error> {
        let (log, span) = (&self.parts.log, self.span());
        let extent = log.extent();
        let begin = extent.first;
        let end = extent.last.map_or(0, |last| last.index.min(span.committed) + 1);
        let mut found = AskedAll {
            asked: Vec::new(),
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
                let asked = match entry.payload {
                    Payload::Normal(Command { time_ms, kind: CommandKind::Call(call) }) => {
                        Some(Asked { index, time_ms, call: Some(call) })
                    }
                    Payload::Normal(Command {
                        time_ms,
                        kind: CommandKind::Tick | CommandKind::SetTime,
                    }) => Some(Asked { index, time_ms, call: None }),
                    _ => None,
                };
                bytes += asked.iter().filter_map(|asked| asked.call.as_ref()).fold(0, size);
                if asked.is_some() && (found.asked.len() == count_max || bytes > bytes_max) {
                    found.more = true;
                    return Ok(found);
                }
                found.asked.extend(asked);
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
