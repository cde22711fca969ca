//! `conclave kv export`: writes all keys at one revision as JSON.
//!
//! A page of keys shows the state at its own index. If the store changed between the first page and
//! the last, the changes in between are read from a watch, and applied to the pages. After them, the
//! keys are those of the last page's index. A change that a page already contains is harmless,
//! because the last change of a key counts.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::Args;
use conclave_client::{
    CallOptions, Client, Code, Error,
    proto::kv::{
        KeyValue, RangeRequest, RangeResponse, WatchRequest, WatchResponse, watch_response::Kind,
    },
};
use prost::Message;
use serde_json::json;
use tokio::time::timeout;

use super::exported;
use crate::{
    Failed, Result,
    output::Output,
    remote::Remote,
    whole_file::{Existing, WholeFile},
};
use conclave_types::error::chain;

/// Keys per page.
const PAGE_KEYS: u32 = 1000;
/// The number of times that an export begins again because no node has the changes any more.
const ATTEMPTS_MAX: u32 = 5;
/// The interval at which the progress of a watch without changes is examined.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Export keys with their values and times of expiry, at one revision
///
/// The JSON document has the state of all keys at one revision, also while they change. `conclave kv
/// import` reads it, on another cluster too. Values that are not text are in base64.
///
/// For a copy of the whole cluster, with the versions of keys and the components, use `conclave
/// backup`. An export is not encrypted.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave kv export keys.json
  conclave kv export app.json --prefix app/
  conclave kv export - | jq -r '.keys[].key'
  conclave kv export - | conclave kv import - --endpoints 10.0.0.9:7101

An existing file is replaced, once the new one is complete. The file can be read by its owner only.")]
pub(super) struct Export {
    /// File to write, - for stdout
    file: PathBuf,

    /// Export only the keys with this prefix
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
}

/// The keys at one revision.
struct Keys {
    revision: u64,
    by_key: BTreeMap<String, KeyValue>,
}

impl Export {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let to_stdout = self.file.as_os_str() == "-";
        let mut file = match to_stdout {
            true => None,
            false => Some(WholeFile::create(&self.file, Existing::Replaced)?),
        };
        let keys = read(remote, &self.prefix).await?;
        let mut write = |line: String| match &mut file {
            Some(file) => file.write(line.as_bytes()),
            None => {
                output.bytes(line.as_bytes());
                Ok(())
            }
        };
        write(exported::begin(keys.revision))?;
        let mut separator = "\n";
        for found in keys.by_key.values() {
            write(format!("{separator}{}", exported::entry(found)))?;
            separator = ",\n";
        }
        write(format!("\n{}\n", exported::END))?;
        let Some(mut file) = file else { return Ok(()) };
        file.finish()?;
        let (count, revision) = (keys.by_key.len(), keys.revision);
        match remote.json {
            true => output.value(&json!({"keys": count, "revision": revision})),
            false => output.remark(format!("exported {count} keys at revision {revision}")),
        }
        Ok(())
    }
}

/// Reads all keys with a prefix, at one revision.
async fn read(remote: &Remote, prefix: &str) -> Result<Keys> {
    let client = remote.client()?;
    let mut attempt = 1;
    loop {
        match read_once(&client, prefix).await {
            Ok(keys) => return Ok(keys),
            // The changes since the first page are no longer kept, or the node has stopped.
            Err(Ended::Call(error))
                if attempt < ATTEMPTS_MAX
                    && matches!(error.code(), Code::OutOfRange | Code::Unavailable) =>
            {
                attempt += 1;
            }
            Err(Ended::Call(error)) => return Err(remote.failed(&error)),
            Err(Ended::Malformed(reason)) => {
                return Err(Failed::local(format!(
                    "a response of the node is malformed: {reason}"
                )));
            }
        }
    }
}

/// The reason why an attempt ended without keys.
enum Ended {
    Call(Error),
    Malformed(String),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

async fn read_once(client: &Client, prefix: &str) -> std::result::Result<Keys, Ended> {
    let mut keys = Keys { revision: 0, by_key: BTreeMap::new() };
    let mut request =
        RangeRequest { prefix: prefix.to_owned(), limit: PAGE_KEYS, ..RangeRequest::default() };
    let mut first = None;
    loop {
        let encoded = request.encode_to_vec();
        let answer = client.call_raw_with("kv.v1.KV/Range", encoded, &CallOptions::read()).await?;
        let page =
            RangeResponse::decode(answer.message).map_err(|error| malformed(chain(&error)))?;
        let index = answer.index.ok_or_else(|| malformed("the response has no index"))?;
        let (first_index, first_revision) = *first.get_or_insert((index, page.revision));
        keys.revision = page.revision;
        keys.by_key.extend(page.kvs.into_iter().map(|found| (found.key.clone(), found)));
        if !page.next_page_token.is_empty() {
            request.page_token = page.next_page_token;
            continue;
        }
        if first_revision != page.revision {
            apply_changes(client, prefix, first_index, index, &mut keys.by_key).await?;
        }
        return Ok(keys);
    }
}

/// Applies the changes after `from` up to the index `to`.
async fn apply_changes(
    client: &Client,
    prefix: &str,
    from: u64,
    to: u64,
    keys: &mut BTreeMap<String, KeyValue>,
) -> std::result::Result<(), Ended> {
    let request = WatchRequest { prefix: prefix.to_owned(), ..WatchRequest::default() };
    let options = CallOptions::read();
    let request = request.encode_to_vec();
    let mut changes = client.subscribe_raw("kv.v1.KV/Watch", request, Some(from), &options).await?;
    loop {
        let Ok(next) = timeout(POLL_INTERVAL, changes.next()).await else {
            if changes.reached().is_some_and(|reached| reached >= to) {
                return Ok(());
            }
            continue;
        };
        let message = next?.ok_or_else(|| malformed("the watch ended"))?;
        let change = WatchResponse::decode(message).map_err(|error| malformed(chain(&error)))?;
        if change.index > to {
            return Ok(());
        }
        apply(&change, keys);
    }
}

fn apply(change: &WatchResponse, keys: &mut BTreeMap<String, KeyValue>) {
    let Some(found) = &change.kv else { return };
    match change.kind() {
        Kind::Put => {
            keys.insert(found.key.clone(), found.clone());
        }
        Kind::Delete | Kind::Expire => {
            keys.remove(&found.key);
        }
        Kind::Initial | Kind::Ready | Kind::Relist => {}
    }
}

fn malformed(why: impl Into<String>) -> Ended {
    Ended::Malformed(why.into())
}
