//! `conclave kv list`: lists keys under a prefix, page by page.

use clap::Args;
use conclave_client::proto::kv::{KeyValue, RangeRequest, key_value};

use super::single::as_json;
use crate::{
    Result,
    output::Output,
    remote::{Freshness, Remote},
};

/// Keys per page: with values of a few KiB, a page stays far below the maximum message size.
const PAGE_KEYS: u64 = 500;

/// List keys with their values, in order
///
/// One key per line, followed by a tab and its value. A value with control characters is quoted and
/// escaped. A value that is not text is shown by its size. Pages are read one after the other, so
/// writes during the listing may or may not be included.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave kv list
  conclave kv list app/
  conclave kv list app/ --keys-only --limit 10
  conclave kv list app/ --json | jq -r '.[].key'")]
pub(super) struct List {
    /// Prefix of the keys to list [default: all keys]
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,

    /// Leave out the values
    #[arg(long)]
    keys_only: bool,

    /// Maximum number of keys to list [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    #[command(flatten)]
    freshness: Freshness,
}

impl List {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let kv = remote.client_reading(self.freshness.consistency())?.kv();
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut request = RangeRequest {
            prefix: self.prefix.clone(),
            keys_only: self.keys_only,
            ..Default::default()
        };
        let mut printed = 0_u64;
        loop {
            request.limit = left.min(PAGE_KEYS) as _;
            let page = kv.range(&request).await.map_err(|error| remote.failed(&error))?;
            left = left.saturating_sub(page.kvs.len() as u64);
            for found in &page.kvs {
                match remote.json {
                    true => {
                        let comma = if printed == 0 { "[" } else { "," };
                        output.line(format!("{comma}{}", as_json(found, !self.keys_only)));
                    }
                    false => output.line(self.line(found)),
                }
                printed += 1;
            }
            if page.next_page_token.is_empty() || left == 0 {
                break;
            }
            request.page_token = page.next_page_token;
        }
        if remote.json {
            output.line(if printed == 0 { "[]" } else { "]" });
        }
        Ok(())
    }

    fn line(&self, found: &KeyValue) -> String {
        let key = plain(&found.key);
        match &found.content {
            _ if self.keys_only => key,
            Some(key_value::Content::Text(text)) => format!("{key}\t{}", plain(text)),
            Some(key_value::Content::Value(bytes)) => format!("{key}\t<{} bytes>", bytes.len()),
            None => format!("{key}\t"),
        }
    }
}

/// Quotes and escapes a text that would break the line or control the terminal.
fn plain(text: &str) -> String {
    match text.chars().any(char::is_control) {
        true => format!("{text:?}"),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_line_is_escaped() {
        assert_eq!(plain("grün"), "grün");
        assert_eq!(plain("a\nb\x1b[2J"), r#""a\nb\u{1b}[2J""#);
    }
}
