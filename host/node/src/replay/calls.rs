//! What a stopped node's log asked of the machine, without asking it again.

use super::{error::Error, source::Source};
use conclave_storage::raft_types::Payload;
use conclave_types::{Call, Command, CommandKind};

/// Entries read at once, by their size.
const READ_BYTES_MAX: usize = 4 << 20;

/// An entry that a machine saw.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its log index.
    pub index: u64,
    /// Milliseconds since the Unix epoch on the proposing leader's clock.
    pub time_ms: u64,
    /// Nothing: the machine was woken.
    pub call: Option<Call>,
}

/// What [`Source::asked`] found.
#[derive(Clone, Debug)]
pub struct AskedAll {
    /// In the order of the log.
    pub asked: Vec<Asked>,
    /// The entries that were looked at, both ends included; none if the log has none.
    pub span: Option<(u64, u64)>,
    /// Whether there was nothing before: the log reaches back to the beginning.
    pub from_the_beginning: bool,
    /// Whether there was more than is wanted.
    pub more: bool,
}

impl Source {
    /// The calls and ticks that the log still has and that are known to be committed, the oldest first, until
    /// they are `count_max` or have `bytes_max`. Blocking.
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
