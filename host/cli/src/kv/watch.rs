//! `conclave kv watch`: prints changes as they happen.

use clap::Args;
use conclave_client::proto::kv::{WatchRequest, WatchResponse, key_value, watch_response::Kind};

use serde_json::json;

use super::single::as_json;
use crate::{Failed, Result, output::Output, remote::Remote};
use conclave_types::error::chain;

/// Print changes of keys as they happen
///
/// Prints one line per change until interrupted: put, delete or expire, the key, and the new value,
/// with control characters escaped. If a node is lost, the watch continues at another one without
/// losing or repeating a change. If no node can be reached, the watch waits for one. --json prints
/// one object per line, whose index can be passed to --from-index.
///
/// Nodes keep only the latest changes. If changes are missing after a long outage, the watch prints
/// the line `relist`, all present keys (`initial`), and `ready`. A key that is not printed again
/// was deleted.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave kv watch
  conclave kv watch app/ --initial
  conclave kv watch --key app/color --json | jq -r .text
  conclave kv watch app/ --from-index 4711")]
pub(super) struct Watch {
    /// Prefix of the keys to watch [default: all keys]
    prefix: Option<String>,

    /// Watch this key alone
    #[arg(long, conflicts_with = "prefix")]
    key: Option<String>,

    /// Print the present keys first
    #[arg(long, conflicts_with = "from_index")]
    initial: bool,

    /// Resume after this log index, if a node still keeps the changes since then
    #[arg(long, value_name = "INDEX")]
    from_index: Option<u64>,

    /// Fail if changes are missing, instead of printing the keys again
    #[arg(long)]
    no_relist: bool,

    /// Number of changes after which the watch ends [default: no limit]
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
}

impl Watch {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let request = WatchRequest {
            key: self.key.unwrap_or_default(),
            prefix: self.prefix.unwrap_or_default(),
            initial: self.initial,
        };
        let failed = |error| remote.failed(&error);
        let kv = remote.client()?.kv();
        let watch = kv.watch(request, self.from_index).await.map_err(failed)?;
        let mut watch = watch.relists(!self.no_relist);
        let mut left = self.count.unwrap_or(u64::MAX);
        let (mut relisted, mut waits) = (false, false);
        while left > 0 {
            let change = match watch.next().await {
                Ok(change) => change,
                Err(error) if error.is_unavailable() || error.is_deadline() => {
                    if !waits {
                        output.remark(format!(
                            "conclave: no node serves the watch; waiting for one: {}",
                            chain(&error)
                        ));
                    }
                    waits = true;
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            waits = false;
            match change.kind() {
                Kind::Ready if !relisted => continue,
                Kind::Ready => {}
                Kind::Relist => relisted = true,
                _ => left -= 1,
            }
            if !output.stream(line(&change, remote.json)?) {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn line(change: &WatchResponse, json: bool) -> Result<String> {
    let kind = match change.kind() {
        Kind::Put => "put",
        Kind::Delete => "delete",
        Kind::Expire => "expire",
        Kind::Initial => "initial",
        Kind::Ready | Kind::Relist => {
            let kind = if change.kind() == Kind::Ready { "ready" } else { "relist" };
            let object = json!({"kind": kind, "index": change.index, "revision": change.revision});
            return Ok(if json { object.to_string() } else { kind.to_owned() });
        }
    };
    let Some(kv) = &change.kv else {
        return Err(Failed::local(format!("the node sent a change without a key: {kind}")));
    };
    if json {
        let mut value = as_json(kv, true);
        value["kind"] = kind.into();
        value["revision"] = change.revision.into();
        value["index"] = change.index.into();
        return Ok(value.to_string());
    }
    let value = match &kv.content {
        Some(key_value::Content::Text(text)) => text.escape_debug().to_string(),
        Some(key_value::Content::Value(bytes)) => bytes.escape_ascii().to_string(),
        None => String::new(),
    };
    let line = format!("{kind} {} {value}", kv.key.escape_debug());
    Ok(line.trim_end().to_owned())
}
