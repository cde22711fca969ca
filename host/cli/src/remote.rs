//! Arguments and errors shared by all verbs that call a cluster: addresses, timeout, consistency.

use std::{io::Read, path::Path, time::Duration};

use clap::{Args, ValueEnum};
use conclave_client::{Client, Consistency, Error};

use super::{Failed, Outcome, Result};
use conclave_types::error::chain;

/// Maximum size of input from stdin or a file. Nodes have far smaller limits.
const INPUT_BYTES_MAX: u64 = 1 << 30;

/// The arguments that locate the cluster.
#[derive(Args, Clone, Debug)]
pub struct Remote {
    /// Client addresses of nodes, host:port, separated by commas. One is enough; the others help
    /// when it is down
    #[arg(
        long,
        env = "CONCLAVE_ENDPOINTS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103",
        global = true,
        help_heading = "Cluster"
    )]
    pub endpoints: Vec<String>,

    /// Maximum time of a call with all its retries: 500ms, 10s, 2m [default: 10s; 1m to 5m for
    /// verbs that take long]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = duration,
        global = true,
        help_heading = "Cluster"
    )]
    pub timeout: Option<Duration>,

    /// Print results and errors as JSON, for scripts
    #[arg(long, global = true, help_heading = "Cluster")]
    pub json: bool,
}

/// The required consistency of a read.
#[derive(Args, Clone, Copy, Debug)]
pub struct Freshness {
    /// Consistency of the read: linearizable sees every acknowledged write; lease reads at the
    /// leader alone, under its lease; stale reads at any one node and may miss the newest writes
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "linearizable")]
    pub consistency: Level,

    /// Same as --consistency stale
    #[arg(long, conflicts_with = "consistency")]
    pub stale: bool,
}

/// Consistency levels by their names on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// See every acknowledged write
    Linearizable,
    /// Read at the leader alone
    Lease,
    /// Read at any one node
    Stale,
}

impl Freshness {
    /// Returns the client's type for the level.
    pub fn consistency(self) -> Consistency {
        match self.consistency {
            _ if self.stale => Consistency::Stale,
            Level::Linearizable => Consistency::Linearizable,
            Level::Lease => Consistency::Lease,
            Level::Stale => Consistency::Stale,
        }
    }
}

impl Remote {
    /// Returns a client with linearizable reads.
    pub fn client(&self) -> Result<Client> {
        self.client_reading(Consistency::Linearizable)
    }

    /// Returns a client whose reads have this consistency.
    pub fn client_reading(&self, consistency: Consistency) -> Result<Client> {
        let mut client =
            Client::builder().endpoints(self.endpoints.clone()).consistency(consistency);
        if let Some(timeout) = self.timeout {
            client = client.deadline(timeout).long_deadline(timeout);
        }
        client.build().map_err(|error| Failed::usage(&error))
    }

    /// Converts a client's error to a message for the user, with the next step.
    pub fn failed(&self, error: &Error) -> Failed {
        // The message of a write with unknown outcome already names the next step.
        let next = match error.is_unreachable() && !error.outcome_unknown() {
            true => "; is the cluster up (`conclave dev` starts one), and are --endpoints right?",
            false => "",
        };
        let (code, outcome) = (error.code_name(), outcome(error));
        Failed::Failure { code, message: format!("{}{next}", chain(error)), outcome }
    }
}

/// Returns the effect of a failed call, if it is in question whether there was one.
pub fn outcome(error: &Error) -> Option<Outcome> {
    match (error.outcome_unknown(), error.not_applied()) {
        (true, _) => Some(Outcome::Unknown),
        (false, true) => Some(Outcome::NotApplied),
        (false, false) => None,
    }
}

/// Parses a timeout: `500ms`, `10s` or `1m 30s`.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    between(text, Duration::from_millis(1), "24h", Duration::from_secs(24 * 3600))
}

/// Parses a time to live: like [`duration`], with a larger maximum.
pub fn lifetime(text: &str) -> std::result::Result<Duration, String> {
    let max = Duration::from_secs(100 * 366 * 24 * 3600);
    between(text, Duration::from_millis(1), "100 years", max)
}

/// Parses the time of an optional step: like [`duration`], but zero is allowed and the maximum is smaller.
pub fn search_time(text: &str) -> std::result::Result<Duration, String> {
    between(text, Duration::ZERO, "1h", Duration::from_secs(3600))
}

fn between(
    text: &str,
    min: Duration,
    most: &str,
    max: Duration,
) -> std::result::Result<Duration, String> {
    let duration = conclave_types::duration::parse(text)?;
    match (min..=max).contains(&duration) {
        true => Ok(duration),
        false => {
            let min = conclave_types::duration::text(min);
            Err(format!("the duration must be between {min} and {most}"))
        }
    }
}

/// Reads all of stdin.
pub fn stdin() -> Result<Vec<u8>> {
    limited(std::io::stdin().lock(), "stdin")
}

/// Reads all of a file.
pub fn file(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(Failed::at(path))?;
    limited(file, &path.display().to_string())
}

fn limited(source: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source
        .take(INPUT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| Failed::because(name, &cause))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(Failed::local(format!("{name} is larger than 1 GiB")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_ranges() {
        for (text, milliseconds) in [("1ms", 1), ("10s", 10_000), ("24h", 86_400_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for bad in ["", "10", "0s", "0", "-1s", "25h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for (text, hours) in [("48h", 48), ("7d", 168), ("1y", 8766)] {
            assert_eq!(lifetime(text), Ok(Duration::from_secs(hours * 3600)), "{text}");
        }
        assert!(lifetime("101y").is_err());
        assert_eq!(search_time("0"), Ok(Duration::ZERO));
        assert!(search_time("61m").is_err());
    }
}
