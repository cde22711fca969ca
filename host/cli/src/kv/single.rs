//! `conclave kv put|get|delete`: reads and writes single keys.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use clap::Args;
use conclave_client::proto::kv::{
    KeyValue, Operation, PutRequest, key_value, operation, put_request,
};
use serde_json::{Value, json};

use super::batches::Pair;
use crate::{
    Failed, Result,
    output::Output,
    remote::{Freshness, Remote, file, lifetime, stdin},
};

/// Set a key to a value
///
/// A value that is UTF-8 is stored as text, any other value as bytes. For secrets, use --file or
/// `-`: command-line arguments are visible in the process list.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave kv put app/color green
  conclave kv put app/tls.key --file tls.key
  pass show db | conclave kv put app/db/password -
  conclave kv put session/42 alice --ttl 10m
  conclave kv put app/license abc --ttl 30d")]
pub(super) struct Put {
    /// Key to set
    key: String,

    /// Value to store, - for stdin (all of it, including its last newline)
    #[arg(required_unless_present = "file", allow_hyphen_values = true)]
    value: Option<String>,

    /// Read the value from a file
    #[arg(long, conflicts_with = "value")]
    file: Option<PathBuf>,

    /// Expire the key after this duration: 10m, 1h30m, 7d, 1y
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    ttl: Option<Duration>,
}

impl Put {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let bytes = match (&self.file, self.value) {
            (Some(path), _) => file(path)?,
            (None, Some(value)) if value == "-" => stdin()?,
            (None, value) => value.unwrap_or_default().into_bytes(),
        };
        let content = match String::from_utf8(bytes) {
            Ok(text) => put_request::Content::Text(text),
            Err(not_text) => put_request::Content::Value(not_text.into_bytes()),
        };
        let ttl_ms = self.ttl.map_or(0, |ttl| ttl.as_millis() as i64);
        let request = PutRequest { key: self.key, content: Some(content), ttl_ms };
        let response =
            remote.client()?.kv().put(&request).await.map_err(|error| remote.failed(&error))?;
        if remote.json {
            output.value(&json!({"key": request.key, "revision": response.revision}));
        }
        Ok(())
    }
}

/// Returns a put as an operation of a batch.
pub(super) fn put_operation(Pair { key, content, ttl_ms }: &Pair) -> Operation {
    let (key, content) = (key.clone(), Some(content.clone()));
    let put = PutRequest { key, content, ttl_ms: *ttl_ms };
    Operation { operation: Some(operation::Operation::Put(put)) }
}

/// Print the value of a key
///
/// Text is printed with a newline after it. A value that is not text is refused unless --raw or
/// --json is given. The remaining lifetime of a key that expires is printed to standard error.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave kv get app/color
  conclave kv get app/tls.key --raw > tls.key
  conclave kv get app/color --json
  conclave kv get app/color --stale

Exit code 3 means that there is no such key.")]
pub(super) struct Get {
    /// Key to read
    key: String,

    /// Print only the bytes of the value, without a newline
    #[arg(long, conflicts_with = "json")]
    raw: bool,

    #[command(flatten)]
    freshness: Freshness,
}

impl Get {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let client = remote.client_reading(self.freshness.consistency())?;
        let missing = || Failed::NotFound(format!("there is no key {:?}", self.key));
        let found = match client.kv().get(&self.key).await {
            Ok(response) => response.kv.ok_or_else(missing)?,
            Err(error) if error.is_not_found() => return Err(missing()),
            Err(error) => return Err(remote.failed(&error)),
        };
        if remote.json {
            output.value(&as_json(&found, true));
            return Ok(());
        }
        if let Some(left) = time_left(&found).filter(|_| !self.raw) {
            output.remark(format!("expires in {}", conclave_types::duration::text(left)));
        }
        match (self.raw, &found.content) {
            (_, None) => {}
            (true, Some(key_value::Content::Text(text))) => output.bytes(text.as_bytes()),
            (true, Some(key_value::Content::Value(bytes))) => output.bytes(bytes),
            (false, Some(key_value::Content::Text(text))) => output.line(text),
            (false, Some(key_value::Content::Value(bytes))) => match str::from_utf8(bytes) {
                Ok(text) => output.line(text),
                Err(_) => {
                    return Err(Failed::local(format!(
                        "the value of {:?} is {} bytes that are not text; use --raw or --json",
                        self.key,
                        bytes.len()
                    )));
                }
            },
        }
        Ok(())
    }
}

/// Returns the remaining lifetime of a key by this computer's clock; `None` if it does not expire.
fn time_left(found: &KeyValue) -> Option<Duration> {
    let expires = UNIX_EPOCH + Duration::from_millis(found.expires_at_ms);
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    (found.expires_at_ms != 0).then_some(Duration::from_secs(left.as_secs()))
}

/// Formats a key as JSON, with its value as `text` or, if it is not text, as `value` in base64.
pub(super) fn as_json(found: &KeyValue, with_value: bool) -> Value {
    let mut json = json!({
        "key": found.key,
        "create_revision": found.create_revision,
        "mod_revision": found.mod_revision,
        "version": found.version,
    });
    if found.expires_at_ms != 0 {
        json["expires_at_ms"] = found.expires_at_ms.into();
    }
    match &found.content {
        _ if !with_value => {}
        Some(key_value::Content::Text(text)) => json["text"] = json!(text),
        Some(key_value::Content::Value(bytes)) => json["value"] = json!(BASE64.encode(bytes)),
        None => {}
    }
    json
}

/// Delete keys
///
/// A key that does not exist is not an error.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave kv delete app/color
  conclave kv delete app/a app/b
  conclave kv list tmp/ --keys-only | xargs conclave kv delete")]
pub(super) struct Delete {
    /// Keys to delete
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

impl Delete {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let kv = remote.client()?.kv();
        let mut deleted = 0_u64;
        for key in &self.keys {
            let response = kv.delete(key).await.map_err(|error| remote.failed(&error))?;
            deleted += u64::from(response.deleted);
        }
        match remote.json {
            true => output.value(&json!({"deleted": deleted, "keys": self.keys.len()})),
            false => output.remark(format!("deleted {deleted} of {}", self.keys.len())),
        }
        Ok(())
    }
}
