//! Errors in the configuration. Their messages never show a key.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{environment::MASTER_KEY_VARIABLE, settings::VARIABLES};
use conclave_types::limits::LimitError;

/// The reason why the settings are invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The configuration file is not TOML, or has an unknown setting. The line is not shown, since
    /// it may contain a secret.
    #[error("the configuration file {}{}: {reason}", path.display(), position(at))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line and the column, starting at 1.
        at: Option<(usize, usize)>,
        /// The mistake, without values.
        reason: String,
    },
    /// A variable of the environment has the former name of a setting.
    #[error("{0}")]
    Renamed(String),
    /// A setting without a default was not set.
    #[error(
        "{name} is not set: give --{flag}, or {variable} in the environment, or {name} in the configuration file"
    )]
    Missing {
        /// The setting.
        name: &'static str,
        /// Its flag.
        flag: &'static str,
        /// Its environment variable.
        variable: &'static str,
    },
    /// A value that is not allowed.
    #[error("{name} = {value}: {rule}")]
    Invalid {
        /// The setting.
        name: &'static str,
        /// The given value.
        value: String,
        /// The allowed values.
        rule: String,
    },
}

impl From<LimitError> for ConfigError {
    fn from(LimitError { name, value, rule }: LimitError) -> Self {
        invalid(name, value, rule)
    }
}

fn position(at: &Option<(usize, usize)>) -> String {
    at.map(|(line, column)| format!(", line {line}, column {column}")).unwrap_or_default()
}

pub(super) fn invalid(
    name: &'static str,
    value: impl ToString,
    rule: impl Into<String>,
) -> ConfigError {
    let (value, rule) = (without_keys(&value.to_string()), without_keys(&rule.into()));
    ConfigError::Invalid { name, value, rule }
}

/// Returns the error for a file with invalid content.
pub(super) fn malformed(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().and_then(|span| text.get(..span.start)).map(|before| {
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        (before.matches('\n').count() + 1, column)
    });
    let renamed = error.message().split('`').nth(1).and_then(renamed);
    let reason = match error.message() {
        message if message.starts_with("unknown field `master_key`") => format!(
            "the master key must not be in this file: put it into a separate file that only its owner can read and set \
             master_key_file to its path, or set {MASTER_KEY_VARIABLE}"
        ),
        message if message.starts_with("unknown field") => {
            renamed.unwrap_or_else(|| without_keys(message))
        }
        message => {
            let line = error.span().and_then(|span| text.get(..span.start)?.rsplit('\n').next());
            let name =
                line.and_then(|line| line.split_once('=')).map_or("", |(name, _)| name.trim());
            let is_known = VARIABLES.iter().any(|(known, _)| *known == name);
            let name = if is_known { format!("{name}: ") } else { String::new() };
            name + &without_keys(message)
        }
    };
    ConfigError::Malformed { path: path.to_owned(), at, reason }
}

/// Returns the advice for the name of a setting that has become a duration.
pub(super) fn renamed(name: &str) -> Option<String> {
    let lower = name.to_lowercase();
    let base = lower.strip_prefix("conclave_").unwrap_or(&lower).strip_suffix("_ms")?;
    let (setting, variable) = VARIABLES.iter().find(|(known, _)| *known == base)?;
    let new = if lower == name { setting } else { variable };
    Some(format!("unknown setting {name}: use {new}, with a unit, such as 100ms or 10s"))
}

/// Replaces every word of the text that is as long as a key.
fn without_keys(text: &str) -> String {
    const KEY_CHARACTERS_MIN: usize = 40;
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    let (mut shown, mut word) = (String::new(), String::new());
    let end = |word: &mut String, shown: &mut String| {
        // A path has several parts. A key rarely has, and then not only short ones.
        let longest = word.split('/').map(str::len).max().unwrap_or(0);
        let is_key = word.len() >= KEY_CHARACTERS_MIN && longest >= KEY_CHARACTERS_MIN / 4;
        shown.push_str(if is_key { "…" } else { word });
        word.clear();
    };
    for c in text.chars() {
        if is_of_key(c) {
            word.push(c);
        } else {
            end(&mut word, &mut shown);
            shown.push(c);
        }
    }
    end(&mut word, &mut shown);
    shown
}

#[cfg(test)]
mod tests {
    use super::renamed;

    #[test]
    fn former_names_lead_to_the_new_ones() {
        let file = "unknown setting heartbeat_ms: use heartbeat, with a unit, such as 100ms or 10s";
        assert_eq!(renamed("heartbeat_ms").as_deref(), Some(file));
        let variable = "unknown setting CONCLAVE_SNAPSHOT_STALL_MS: use CONCLAVE_SNAPSHOT_STALL, with a unit, such as \
                        100ms or 10s";
        assert_eq!(renamed("CONCLAVE_SNAPSHOT_STALL_MS").as_deref(), Some(variable));
        for other in ["heartbeat", "CONCLAVE_HEARTBEAT", "CONCLAVE_LOG", "other_ms", "HEARTBEAT"] {
            assert_eq!(renamed(other), None, "{other}");
        }
    }
}
