//! `conclave cluster set-time`: sets the log's time at an operator's request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;

use crate::{Result, output::Output, remote::Remote};

/// Set the log's time forward
///
/// State machines get their time from the log, and TTLs and timers depend on it. The log's time
/// follows the leader's monotonic clock and is slewed towards the clocks of a majority of the
/// voters by at most 500 ppm, so a single wrong clock cannot move it.
///
/// If the log's time has fallen behind, for example because all nodes were suspended together, this
/// verb sets it immediately and permanently. Keys and leases that end before the new time expire.
/// The time never goes back.
///
/// `conclave status` shows how far the log's time is from the clocks.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave cluster set-time now             set it to this computer's clock
  conclave cluster set-time @1790000000     set it to seconds since 1970
  conclave cluster set-time now --json | jq .before_ms

With --json: {\"index\", \"before_ms\", \"time_ms\"}")]
pub(super) struct SetTime {
    /// New time: `now`, or `@` and the seconds since 1970-01-01 00:00 UTC
    #[arg(value_name = "TIME", value_parser = parse)]
    time: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    Now,
    Ms(u64),
}

fn parse(text: &str) -> std::result::Result<Time, String> {
    if text == "now" {
        return Ok(Time::Now);
    }
    let seconds = text.strip_prefix('@').and_then(|seconds| seconds.parse::<u64>().ok());
    let ms = seconds.and_then(|seconds| seconds.checked_mul(1000));
    ms.map(Time::Ms).ok_or_else(|| "give `now`, or `@` and seconds since 1970".to_owned())
}

impl SetTime {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let time_ms = match self.time {
            Time::Ms(ms) => ms,
            Time::Now => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }
        };
        let set = remote.client()?.set_time(time_ms).await;
        let set = set.map_err(|error| remote.failed(&error))?;
        if remote.json {
            output.value(&json!({
                "index": set.index, "before_ms": set.before_ms, "time_ms": set.time_ms,
            }));
        } else {
            let by = set.time_ms.saturating_sub(set.before_ms) as f64 / 1e3;
            output.line(format!(
                "the log's time was set forward by {by:.3} s, from {} ms to {} ms, with entry {}",
                set.before_ms, set.time_ms, set.index
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_now_or_seconds() {
        assert_eq!(parse("now"), Ok(Time::Now));
        assert_eq!(parse("@12"), Ok(Time::Ms(12_000)));
        for wrong in ["", "12", "@", "@-1", "yesterday", "@99999999999999999999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
