//! Evaluation of a flag for a subject: pure functions of the flag, the segments and the call.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::{
    limits::BUCKETS,
    pb::{Evaluation, Flag, Rule, evaluation::Reason},
    state::State,
};

/// The subject of a decision.
pub(crate) struct Subject<'a> {
    pub(crate) name: &'a str,
    pub(crate) attributes: &'a BTreeMap<String, String>,
}

/// Returns the bucket of a subject, 0 to 9,999: the same in every call and every release, as
/// specified in proto/flags/v1. A change of this function would change the selected subjects of
/// every rollout.
pub fn bucket(salt: &str, subject: &str) -> u32 {
    let mut hash = Sha256::new();
    hash.update(salt.as_bytes());
    // No salt contains a zero byte, so different pairs give different bytes.
    hash.update([0]);
    hash.update(subject.as_bytes());
    let first = hash.finalize().iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    (first % u64::from(BUCKETS)) as u32
}

pub(crate) fn evaluate(state: &State, flag: &Flag, subject: &Subject<'_>) -> Evaluation {
    let mut evaluation =
        Evaluation { name: flag.name.clone(), version: flag.version, ..Evaluation::default() };
    let Some(definition) = &flag.definition else { return evaluation };
    evaluation.value.clone_from(&definition.off);
    let salt = if definition.salt.is_empty() { &flag.name } else { &definition.salt };
    let rule = if flag.archived {
        evaluation.set_reason(Reason::Archived);
        None
    } else if !definition.enabled {
        evaluation.set_reason(Reason::Disabled);
        None
    } else {
        evaluation.set_reason(Reason::NoRule);
        definition.rules.iter().position(|rule| holds(state, rule, salt, subject))
    };
    if let Some(number) = rule {
        evaluation.set_reason(Reason::Rule);
        evaluation.rule = Some(number as u32);
        evaluation.value.clone_from(&definition.rules[number].value);
    }
    evaluation
}

fn holds(state: &State, rule: &Rule, salt: &str, subject: &Subject<'_>) -> bool {
    let listed = rule.subjects.is_empty() || rule.subjects.iter().any(|one| one == subject.name);
    let in_segment = rule.segment.is_empty()
        || state.segment(&rule.segment).is_some_and(|s| s.subjects.contains(subject.name));
    let attributes = rule
        .attributes
        .iter()
        .all(|(name, value)| subject.attributes.get(name).is_some_and(|given| given == value));
    // Evaluated last, because it is the most expensive condition.
    let in_share = |share: u32| bucket(salt, subject.name) < share;
    listed && in_segment && attributes && rule.rollout.is_none_or(in_share)
}
