//! What all verbs that talk to a cluster share: where it is, how long to wait, how failures read.

use std::{io::Read, path::Path, time::Duration};

use clap::{Args, ValueEnum};
use conclave_client::{Client, Consistency, Error};

use super::{Failed, Result};

/// A request on stdin or in a file may be this large; nodes refuse far smaller ones.
const INPUT_BYTES_MAX: u64 = 1 << 30;

/// Where the cluster is.
#[derive(Args, Clone, Debug)]
pub struct Remote {
    /// Client addresses of nodes, host:port, separated by commas. One is enough: the others only
    /// help when it is down
    #[arg(
        long,
        env = "CONCLAVE_ENDPOINTS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103",
        global = true,
        help_heading = "Cluster"
    )]
    pub endpoints: Vec<String>,

    /// How long a call may take with all its retries: 500ms, 10s, 2m
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = duration,
        default_value = "10s",
        global = true,
        help_heading = "Cluster"
    )]
    pub timeout: Duration,

    /// Results and errors as JSON, for scripts
    #[arg(long, global = true, help_heading = "Cluster")]
    pub json: bool,
}

/// How fresh a read must be.
#[derive(Args, Clone, Copy, Debug)]
pub struct Freshness {
    /// linearizable sees every acknowledged write; lease asks the leader alone; stale asks any one
    /// node and may miss the newest writes
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "linearizable")]
    pub consistency: Level,

    /// Short for --consistency stale
    #[arg(long, conflicts_with = "consistency")]
    pub stale: bool,
}

/// The names on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Sees every acknowledged write.
    Linearizable,
    /// The leader alone.
    Lease,
    /// Any one node.
    Stale,
}

impl Freshness {
    /// As the client takes it.
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
    /// A client that reads linearizably.
    pub fn client(&self) -> Result<Client> {
        self.client_reading(Consistency::Linearizable)
    }

    /// A client that reads as fresh as asked.
    pub fn client_reading(&self, consistency: Consistency) -> Result<Client> {
        Client::builder()
            .endpoints(self.endpoints.clone())
            .deadline(self.timeout)
            .consistency(consistency)
            .build()
            .map_err(|error| Failed::Usage(error.to_string()))
    }

    /// A client's error as the user reads it, with what to do next.
    pub fn failed(&self, error: &Error) -> Failed {
        // A write of unknown outcome says by itself what to do.
        let next = if error.outcome_unknown() {
            ""
        } else if error.is_unavailable() || error.is_deadline() {
            "; is the cluster up (`conclave dev` starts one), and are --endpoints right?"
        } else {
            ""
        };
        Failed::Failure { code: error.code_name(), message: format!("{error}{next}") }
    }
}

/// Reads `500ms`, `10s`, `2m` or a plain number of seconds.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds_each = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        unit => return Err(format!("{unit:?} is no unit: use ms, s, m or h")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is no duration: 10s"))?;
    let seconds = number * seconds_each;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err("a duration lies between 1ms and 24h".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// All of stdin.
pub fn stdin() -> Result<Vec<u8>> {
    limited(std::io::stdin().lock(), "stdin")
}

/// All of a file.
pub fn file(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path)
        .map_err(|cause| Failed::local(format!("{}: {cause}", path.display())))?;
    limited(file, &path.display().to_string())
}

fn limited(source: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source
        .take(INPUT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| Failed::local(format!("{name}: {cause}")))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(Failed::local(format!("{name} is larger than 1 GiB")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, milliseconds) in
            [("250ms", 250), ("10s", 10_000), ("1.5", 1500), ("2m", 120_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for bad in ["", "s", "10x", "0s", "-1s", "25h", "NaN", "infs", "1 s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
