//! The document of `conclave kv export`, which `conclave kv import` reads.
//!
//! ```json
//! {"format": "conclave kv export 1", "revision": 42, "keys": [
//! {"key": "app/color", "text": "green"},
//! {"key": "app/tls.key", "value": "3q2+7w==", "expires_at_ms": 1790000000000}
//! ]}
//! ```
//! A value that is not text is in base64. An ordinary document of an import is taken for an export
//! only if it has exactly these members and this format.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use conclave_client::proto::kv::{KeyValue, key_value, put_request::Content};
use serde::Deserialize;
use serde_json::{Value, json};

use super::batches::Pair;
use conclave_types::error::chain;

const FORMAT: &str = "conclave kv export 1";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    #[serde(rename = "revision")]
    _revision: u64,
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: String,
    text: Option<String>,
    value: Option<String>,
    #[serde(default)]
    expires_at_ms: u64,
}

/// Returns the beginning of a document, before its entries.
pub(super) fn begin(revision: u64) -> String {
    format!(r#"{{"format": {}, "revision": {revision}, "keys": ["#, json!(FORMAT))
}

/// Returns the end of a document.
pub(super) const END: &str = "]}";

/// Formats a key of the document.
pub(super) fn entry(found: &KeyValue) -> Value {
    let mut entry = json!({"key": found.key});
    match &found.content {
        Some(key_value::Content::Text(text)) => entry["text"] = json!(text),
        Some(key_value::Content::Value(bytes)) => entry["value"] = json!(BASE64.encode(bytes)),
        None => entry["value"] = json!(""),
    }
    if found.expires_at_ms != 0 {
        entry["expires_at_ms"] = json!(found.expires_at_ms);
    }
    entry
}

/// The keys of an export.
#[derive(Debug, PartialEq)]
pub(super) struct Exported {
    /// The keys that exist at `now_ms`.
    pub(super) pairs: Vec<Pair>,
    /// The number of keys that have expired since the export.
    pub(super) expired: usize,
}

/// Reads an export. `None`: the document is not one. Times to live are computed from `now_ms`,
/// milliseconds since the Unix epoch.
///
/// # Errors
/// An entry has no value, two values, or a value that is not base64.
pub(super) fn read(document: &[u8], prefix: &str, now_ms: u64) -> Result<Option<Exported>, String> {
    let Ok(document) = serde_json::from_slice::<Document>(document) else { return Ok(None) };
    if document.format != FORMAT {
        return Ok(None);
    }
    let mut exported = Exported { pairs: Vec::with_capacity(document.keys.len()), expired: 0 };
    for Entry { key, text, value, expires_at_ms } in document.keys {
        let content = match (text, value) {
            (Some(text), None) => Content::Text(text),
            (None, Some(value)) => {
                let bytes = BASE64.decode(value);
                let why =
                    |error: base64::DecodeError| format!("the value of {key:?}: {}", chain(&error));
                Content::Value(bytes.map_err(why)?)
            }
            _ => return Err(format!("the key {key:?} needs either a text or a value")),
        };
        if expires_at_ms != 0 && expires_at_ms <= now_ms {
            exported.expired += 1;
            continue;
        }
        let ttl_ms = i64::try_from(expires_at_ms.saturating_sub(now_ms)).unwrap_or(i64::MAX);
        exported.pairs.push(Pair { key: format!("{prefix}{key}"), content, ttl_ms });
    }
    Ok(Some(exported))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(key: &str, content: key_value::Content, expires_at_ms: u64) -> KeyValue {
        let (key, content) = (key.to_owned(), Some(content));
        KeyValue { key, content, expires_at_ms, ..KeyValue::default() }
    }

    #[test]
    fn export_comes_back_with_bytes_and_times_to_live() {
        let keys = [
            found("a", key_value::Content::Text("grün\n".into()), 0),
            found("a/b", key_value::Content::Value(vec![0, 255]), 5_000),
            found("gone", key_value::Content::Text("x".into()), 900),
        ];
        let entries: Vec<_> = keys.iter().map(|found| entry(found).to_string()).collect();
        let document = format!("{}{}{END}", begin(7), entries.join(","));
        let pair = |key: &str, content, ttl_ms| Pair { key: key.into(), content, ttl_ms };
        let expected = Exported {
            pairs: vec![
                pair("p/a", Content::Text("grün\n".into()), 0),
                pair("p/a/b", Content::Value(vec![0, 255]), 4_000),
            ],
            expired: 1,
        };
        assert_eq!(read(document.as_bytes(), "p/", 1_000), Ok(Some(expected)));
    }

    #[test]
    fn other_documents_are_no_exports() {
        for other in [
            r#"{"format": "x", "revision": 1, "keys": []}"#,
            r#"{"format": "conclave kv export 1", "revision": 1, "keys": [], "more": 1}"#,
            r#"{"a": 1}"#,
            "[]",
        ] {
            assert_eq!(read(other.as_bytes(), "", 0), Ok(None), "{other}");
        }
        let both = r#"{"format": "conclave kv export 1", "revision": 1, "keys": [{"key": "a"}]}"#;
        assert!(read(both.as_bytes(), "", 0).is_err());
    }
}
