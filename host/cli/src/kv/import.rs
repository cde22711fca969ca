//! `conclave kv import`: writes a JSON document as keys and values.
//!
//! Batches are atomic and several are in flight; the document as a whole is not atomic. An import
//! must be the only writer of its keys: a batch of unknown outcome is sent again, and an import
//! that stopped can simply be repeated. A batch that the state machine refuses is halved until the
//! invalid keys are isolated. All other keys are written.

use std::{
    path::PathBuf,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use conclave_client::{Code, Error, Kv, proto::kv::BatchRequest};
use futures::{StreamExt, stream};
use serde_json::{json, value::RawValue};

use super::{
    batches::{Pair, batches},
    exported,
    flatten::flatten,
    single::put_operation,
};
use crate::{
    Failed, Result,
    output::{Output, Progress},
    remote::{self, Remote, file, stdin},
};
use conclave_types::error::chain;

/// Number of batches in flight: enough to keep the leader's disk busy while responses are in
/// transit, few enough not to queue.
const IN_FLIGHT_MAX: usize = 8;
/// Maximum length of a key of `kv.v1.KV`.
const KEY_BYTES_MAX: usize = 4096;
/// Number of refused keys after which the import ends: the document is not meant for this store.
const REFUSED_MAX: usize = 1000;
/// Maximum number of refused keys that are listed one by one.
const NAMED_MAX: usize = 20;

/// Import a JSON document of any shape as keys and values
///
/// {"a": {"b": [1, "x"]}} becomes a/b/0 = 1 and a/b/1 = x. Strings are written as they are.
/// Everything else is written as it is in the document, with all digits of numbers. An empty object
/// or array becomes {} or []. In the document's own keys, ~ is written ~0 and / is written ~1.
///
/// A document of `conclave kv export` is recognized: its keys, values and remaining times to live are
/// written as they were. Keys that have expired meanwhile are left out.
///
/// Existing keys of the same name are overwritten, others are not changed. Repeat an interrupted
/// import: it starts from the beginning and has the same result. No other client may write these
/// keys meanwhile, because a batch whose response was lost is sent again.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave kv import config.json
  conclave kv import config.json --prefix app/
  curl -s https://example.org/config.json | conclave kv import - --prefix app/

Exit code 0 means that every key was written. After 1000 refused keys the import ends.

With --json: {\"keys\", \"written\", \"bytes\", \"seconds\", \"refused\": [{\"key\", \"why\"}], \"not_tried\" (keys
that were not sent, or whose batch failed, when the import ended)}")]
pub(super) struct Import {
    /// JSON file to import, - for stdin
    file: PathBuf,

    /// Text to put before each key; end it with / to make it a folder
    #[arg(long, default_value = "")]
    prefix: String,

    /// Number of batches in flight
    #[arg(long, value_name = "N", default_value_t = IN_FLIGHT_MAX as u64, value_parser = clap::value_parser!(u64).range(1..=64))]
    parallel: u64,
}

impl Import {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let bytes = match self.file.as_os_str() == "-" {
            true => stdin()?,
            false => file(&self.file)?,
        };
        let leaves = self.pairs(&bytes, output)?;
        drop(bytes);
        let (pairs, refused) = acceptable(leaves);
        let total = pairs.len() + refused.len();
        let kv = remote.client()?.kv().retry_unknown(true);
        let began = Instant::now();
        let progress = output.progress(pairs.len() as u64, "keys");
        let mut report = send(&kv, pairs, self.parallel as usize, progress).await;
        report.refused.splice(0..0, refused);
        report.tell(total, began.elapsed().as_secs_f64(), remote, output)
    }
}

impl Import {
    /// Returns the keys of a document: of an export, or of any other shape.
    fn pairs(&self, bytes: &[u8], output: &mut Output) -> Result<Vec<Pair>> {
        let name = self.file.display();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let exported = exported::read(bytes, &self.prefix, now_ms);
        if let Some(exported) = exported.map_err(|why| Failed::local(format!("{name}: {why}")))? {
            if exported.expired > 0 {
                output.remark(format!("{} keys have expired since the export", exported.expired));
            }
            return Ok(exported.pairs);
        }
        let leaves = serde_json::from_slice::<&RawValue>(bytes)
            .and_then(|document| flatten(document, &self.prefix));
        let leaves =
            leaves.map_err(|cause| Failed::because(format!("{name} is not JSON"), &cause))?;
        Ok(leaves.into_iter().map(Pair::text).collect())
    }
}

/// Separates the keys that no store accepts.
fn acceptable(pairs: Vec<Pair>) -> (Vec<Pair>, Vec<Refused>) {
    let mut refused = Vec::new();
    let pairs = pairs
        .into_iter()
        .filter(|Pair { key, .. }| {
            let why = match key.len() {
                0 => "an empty key; give a --prefix".to_owned(),
                bytes if bytes > KEY_BYTES_MAX => {
                    format!("a key of {bytes} bytes; at most {KEY_BYTES_MAX} are allowed")
                }
                _ => return true,
            };
            refused.push(Refused { key: key.clone(), why });
            false
        })
        .collect();
    (pairs, refused)
}

struct Refused {
    key: String,
    why: String,
}

/// The result of one batch or of all.
#[derive(Default)]
struct Report {
    written: usize,
    bytes: usize,
    refused: Vec<Refused>,
    /// Number and first key of the earliest batch that was not written, and the error that stopped
    /// the import.
    stopped: Option<(usize, String, Error)>,
}

/// Sends the batches, several at once, until all are sent or one fails for a reason other than
/// its keys.
async fn send(kv: &Kv, pairs: Vec<Pair>, parallel: usize, mut progress: Progress) -> Report {
    let mut report = Report::default();
    let mut batches = batches(pairs).enumerate();
    let mut sending = stream::FuturesUnordered::new();
    loop {
        while sending.len() < parallel
            && report.stopped.is_none()
            && report.refused.len() < REFUSED_MAX
            && let Some((number, batch)) = batches.next()
        {
            sending.push(write(kv, number, batch));
        }
        let Some(done) = sending.next().await else { break };
        progress.advance((done.written + done.refused.len()) as u64);
        report.add(done);
    }
    progress.finish();
    report
}

/// Writes one batch. If the state machine refuses the batch, halves it to find the invalid keys.
async fn write(kv: &Kv, number: usize, batch: Vec<Pair>) -> Report {
    let mut report = Report::default();
    let mut parts = vec![batch];
    while let Some(mut part) = parts.pop() {
        let bytes: usize = part.iter().map(Pair::bytes).sum();
        let count = part.len();
        let first = part.first().map(|pair| pair.key.clone()).unwrap_or_default();
        let operations = part.iter().map(put_operation).collect();
        match kv.batch(&BatchRequest { operations }).await {
            Ok(_) => {
                report.written += count;
                report.bytes += bytes;
            }
            Err(error) if !blames_its_keys(&error) => {
                report.stopped = Some((number, first, error));
                break;
            }
            Err(error) if count == 1 => {
                report.refused.push(Refused { key: first, why: error.message().to_owned() });
            }
            Err(_) => {
                let second = part.split_off(count / 2);
                parts.push(second);
                parts.push(part);
            }
        }
    }
    report
}

/// Returns whether the batch itself was refused, so that a part of it may be accepted.
fn blames_its_keys(error: &Error) -> bool {
    error.trap_kind().is_some()
        || matches!(
            error.code(),
            Code::InvalidArgument
                | Code::OutOfRange
                | Code::FailedPrecondition
                | Code::ResourceExhausted
                | Code::Aborted
        )
}

impl Report {
    fn add(&mut self, other: Self) {
        self.written += other.written;
        self.bytes += other.bytes;
        self.refused.extend(other.refused);
        let earlier = match (&self.stopped, &other.stopped) {
            (Some((ours, ..)), Some((theirs, ..))) => theirs < ours,
            (None, Some(_)) => true,
            _ => false,
        };
        if earlier {
            self.stopped = other.stopped;
        }
    }

    fn tell(self, total: usize, seconds: f64, remote: &Remote, output: &mut Output) -> Result {
        let rate = self.written as f64 / seconds.max(0.001);
        let not_tried = total - self.written - self.refused.len();
        if remote.json {
            let refused: Vec<_> = self
                .refused
                .iter()
                .map(|refused| json!({"key": refused.key, "why": refused.why}))
                .collect();
            output.value(&json!({
                "not_tried": not_tried,
                "keys": total,
                "written": self.written,
                "bytes": self.bytes,
                "seconds": seconds,
                "refused": refused,
            }));
        } else {
            output.line(format!(
                "{} of {total} keys written, {} bytes, in {seconds:.1} s ({rate:.0} keys/s)",
                self.written, self.bytes
            ));
            for Refused { key, why } in self.refused.iter().take(NAMED_MAX) {
                output.remark(format!("not written: {:?}: {why}", shortened(key)));
            }
            if self.refused.len() > NAMED_MAX {
                output.remark(format!("and {} more", self.refused.len() - NAMED_MAX));
            }
        }
        if let Some((_, key, error)) = self.stopped {
            return Err(Failed::Failure {
                code: error.code_name(),
                // If some keys were written, the import has had an effect.
                outcome: remote::outcome(&error).filter(|_| self.written == 0),
                message: format!(
                    "the import stopped; the first key not written is {:?}: {}; run the import again: it starts from the beginning and has the same result",
                    shortened(&key),
                    chain(&error)
                ),
            });
        }
        match self.refused.first() {
            None => Ok(()),
            Some(Refused { key, why }) => {
                let ended = match not_tried {
                    0 => String::new(),
                    count => format!(
                        "; the import ended after {} of them, and {count} more keys were not tried",
                        self.refused.len()
                    ),
                };
                Err(Failed::Failure {
                    code: "INVALID_ARGUMENT",
                    outcome: None,
                    message: format!(
                        "{} of {total} keys were refused; the first is {:?}: {why}{ended}",
                        self.refused.len(),
                        shortened(key)
                    ),
                })
            }
        }
    }
}

/// Shortens a key for a message: a key may be too long for the store.
fn shortened(key: &str) -> String {
    match key.char_indices().nth(100) {
        Some((at, _)) => format!("{}...", &key[..at]),
        None => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_no_store_takes_are_set_aside_by_name() {
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        let keys = ["", "fine", long.as_str()];
        let pair = |key: &str| Pair::text((key.to_owned(), String::new()));
        let (kept, refused) = acceptable(keys.into_iter().map(pair).collect());
        assert_eq!(kept, [pair("fine")]);
        assert!(refused[0].why.contains("empty") && refused[1].why.contains("4097 bytes"));
        assert_eq!(shortened(&long).len(), 103);
    }

    #[test]
    fn an_import_that_ends_early_says_how_many_keys_were_not_tried() {
        let refused = |at: usize| Refused { key: format!("key-{at}"), why: "no".to_owned() };
        let report =
            |count| Report { refused: (0..count).map(refused).collect(), ..Report::default() };
        let remote = Remote { endpoints: Vec::new(), timeout: None, json: true };
        let tell = |count, total| {
            let reported = report(count).tell(total, 1.0, &remote, &mut Output::new());
            let Err(Failed::Failure { message, .. }) = reported else { panic!("it did not fail") };
            message
        };
        assert!(tell(1000, 3000).contains("2000 more keys were not tried"));
        assert!(!tell(2, 2).contains("not tried"));
    }

    #[test]
    fn the_earliest_batch_that_failed_is_the_one_reported() {
        let failed = |number: usize| Report {
            stopped: conclave_client::Client::builder()
                .build()
                .err()
                .map(|error| (number, format!("key-{number}"), error)),
            ..Default::default()
        };
        let mut report = Report::default();
        for number in [5, 2, 9] {
            report.add(failed(number));
        }
        assert_eq!(report.stopped.unwrap().1, "key-2");
    }
}
