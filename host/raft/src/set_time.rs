//! The change of the log's time by an operator.

use tokio::time::Instant;

use super::{node::Node, propose::Proposer, time::Time};
use conclave_types::{CommandKind, error::Error, status::TimeSet};

/// The latest time that an operator may set: the year 2200.
const SET_MS_MAX: u64 = 7_258_118_400_000;

/// Sets the log's time for an operator: an entry of the log, from which every later leader continues.
pub(super) async fn set_time(
    node: &Node,
    proposer: &Proposer,
    time: &Time,
    time_ms: u64,
    deadline: Instant,
) -> Result<TimeSet, Error> {
    node.check_leader()?;
    let before_ms = proposer.stamp().await;
    if time_ms > SET_MS_MAX {
        return Err(Error::invalid(format!(
            "the time {time_ms} ms after 1970 lies beyond the year 2200: give milliseconds since the Unix epoch"
        )));
    }
    if time_ms <= before_ms {
        return Err(Error::refused(format!(
            "the log's time is {before_ms} ms, and never goes back: {time_ms} ms is {} ms before it. It continues \
             at its pace, is slewed towards the majority's clocks, and ttls keep their lengths",
            before_ms - time_ms
        )));
    }
    tracing::warn!(before_ms, time_ms, "an operator sets the log's time");
    let applied = proposer.propose_at(time_ms, CommandKind::SetTime, deadline).await?;
    time.set(time_ms);
    Ok(TimeSet { index: applied.index, before_ms, time_ms })
}
