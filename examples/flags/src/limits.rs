//! The limits, and the validation of flags. Checked before any change, and again when a snapshot
//! is restored.

use std::collections::BTreeMap;

use conclave_sdk::Failure;

use crate::pb::{Definition, Rule, Value, value::Kind};

/// The longest name of a flag or segment, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The longest subject, attribute name, attribute value or note, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// The longest description, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 1024;
/// The largest value, in bytes: enough for a certificate with its chain.
pub const VALUE_BYTES_MAX: usize = 16 << 10;
/// The maximum number of rules per flag.
pub const RULES_MAX: usize = 32;
/// The maximum number of subjects per rule. Use a segment for more.
pub const RULE_SUBJECTS_MAX: usize = 100;
/// The maximum number of attributes per rule or call.
pub const ATTRIBUTES_MAX: usize = 16;
/// The maximum number of subjects per segment.
pub const SEGMENT_SUBJECTS_MAX: usize = 10_000;
/// The maximum number of flags, including archived ones.
pub const FLAGS_MAX: usize = 10_000;
/// The maximum number of segments.
pub const SEGMENTS_MAX: usize = 1000;
/// The limit for flags and segments together, in bytes of their messages. In memory they take a few
/// times as much, plus the same again during a snapshot. This is far below the host's default limit
/// of 1 GiB.
pub const BYTES_MAX: usize = 64 << 20;
/// The number of changes in the history.
pub const CHANGES_MAX: usize = 1000;
/// The maximum number of flags or changes per page.
pub const PAGE_MAX: usize = 100;
/// The maximum number of evaluations per page.
pub const EVALUATIONS_MAX: usize = 1000;
/// The size at which a page ends early, in bytes.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
/// The number of buckets of a rollout. Each is a hundredth of a percent.
pub const BUCKETS: u32 = 10_000;

pub(crate) fn invalid(what: impl Into<String>) -> Failure {
    Failure::invalid_argument(what)
}

/// Fails unless `actual` is at most `most`. The failure names `what` and `unit`.
pub(crate) fn within(what: &str, actual: usize, most: usize, unit: &str) -> Result<(), Failure> {
    if actual <= most {
        return Ok(());
    }
    Err(invalid(format!("{what} has {actual} {unit}; at most {most} are allowed")))
}

pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    Err(invalid(format!(
        "{what} must have 1 to {NAME_BYTES_MAX} characters out of a-z, 0-9 and . _ - /"
    )))
}

pub(crate) fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<(), Failure> {
    within("the call", attributes.len(), ATTRIBUTES_MAX, "attributes")?;
    for (name, value) in attributes {
        within("an attribute's name", name.len(), TEXT_BYTES_MAX, "bytes")?;
        within("an attribute's value", value.len(), TEXT_BYTES_MAX, "bytes")?;
    }
    Ok(())
}

/// Checks everything about a definition that does not depend on the state.
pub(crate) fn check_definition(definition: &Definition) -> Result<(), Failure> {
    let Definition { description, off, rules, salt, .. } = definition;
    within("the description", description.len(), DESCRIPTION_BYTES_MAX, "bytes")?;
    within("the flag", rules.len(), RULES_MAX, "rules")?;
    if !salt.is_empty() {
        check_name("the salt", salt)?;
    }
    let kind = check_value("the value `off`", off.as_ref())?;
    for (number, rule) in rules.iter().enumerate() {
        check_rule(rule, kind)
            .map_err(|failure| invalid(format!("rule {number}: {}", failure.message)))?;
    }
    Ok(())
}

fn check_rule(rule: &Rule, flag_kind: &'static str) -> Result<(), Failure> {
    within("the rule", rule.subjects.len(), RULE_SUBJECTS_MAX, "subjects")?;
    for subject in &rule.subjects {
        within("a subject", subject.len(), TEXT_BYTES_MAX, "bytes")?;
    }
    if !rule.segment.is_empty() {
        check_name("the segment", &rule.segment)?;
    }
    check_attributes(&rule.attributes)?;
    if let Some(rollout) = rule.rollout.filter(|rollout| *rollout > BUCKETS) {
        return Err(invalid(format!("its rollout is {rollout}; {BUCKETS} means all subjects")));
    }
    let kind = check_value("its value", rule.value.as_ref())?;
    if kind != flag_kind {
        return Err(invalid(format!("its value is a {kind}, the flag's `off` is a {flag_kind}")));
    }
    Ok(())
}

/// Checks a value and returns the name of its kind.
fn check_value(what: &str, value: Option<&Value>) -> Result<&'static str, Failure> {
    let Some(kind) = value.and_then(|value| value.kind.as_ref()) else {
        return Err(invalid(format!("{what} is not set")));
    };
    match kind {
        Kind::Bool(_) => {}
        Kind::Number(number) if number.is_finite() => {}
        Kind::Number(_) => return Err(invalid(format!("{what} is not a finite number"))),
        Kind::Text(text) => within(what, text.len(), VALUE_BYTES_MAX, "bytes")?,
        Kind::Json(json) => {
            within(what, json.len(), VALUE_BYTES_MAX, "bytes")?;
            let parsed = serde_json::from_str::<serde::de::IgnoredAny>(json);
            parsed.map_err(|error| invalid(format!("{what} is not JSON: {error}")))?;
        }
    }
    Ok(kind_name(kind))
}

pub(crate) fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool(_) => "bool",
        Kind::Text(_) => "text",
        Kind::Number(_) => "number",
        Kind::Json(_) => "json",
    }
}
