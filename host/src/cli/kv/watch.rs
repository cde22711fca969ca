//! `conclave kv watch`: changes as they happen.

use clap::Args;
use conclave_client::proto::kv::{WatchRequest, WatchResponse, key_value, watch_response::Kind};

use super::single::as_json;
use crate::cli::{Failed, Result, output::Output, remote::Remote};

/// Print changes of keys as they happen
///
/// One line a change, until interrupted: put, delete or expire, the key, and the value that was put, with
/// control characters escaped. A node that is lost on the way is replaced by another, without a change lost
/// or printed twice. --json prints one object a line, whose index --from-index takes.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave kv watch
  conclave kv watch app/ --initial
  conclave kv watch --key app/color --json | jq -r .text
  conclave kv watch app/ --from-index 4711")]
pub(super) struct Watch {
    /// Keys that begin with this [default: all]
    prefix: Option<String>,

    /// This key alone
    #[arg(long, conflicts_with = "prefix")]
    key: Option<String>,

    /// Begin with the keys as they are now
    #[arg(long, conflicts_with = "from_index")]
    initial: bool,

    /// Go on after this index of the log, for as long as a node keeps what came then
    #[arg(long, value_name = "INDEX")]
    from_index: Option<u64>,

    /// End after so many changes
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
        let mut watch = kv.watch(request, self.from_index).await.map_err(failed)?;
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            let change = watch.next().await.map_err(failed)?;
            if change.kind() == Kind::Ready {
                continue;
            }
            left -= 1;
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
        Kind::Ready => "ready",
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
