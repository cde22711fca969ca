//! Serialization of the state: the message `Snapshot`, with everything in order.

use conclave_sdk::{Failure, prost::Message as _};

use crate::{
    limits::{CHANGES_MAX, FLAGS_MAX, SEGMENTS_MAX, check_definition, check_name, invalid},
    pb,
    state::{Segment, State},
};

pub(crate) fn save(state: &State) -> Vec<u8> {
    let snapshot = pb::Snapshot {
        last_change: state.last_change,
        flags: state.flags().values().cloned().collect(),
        segments: state.segments().iter().map(|(name, segment)| segment.message(name)).collect(),
        changes: state.changes().cloned().collect(),
    };
    snapshot.encode_to_vec()
}

/// Restores a state. Validates all bytes.
pub(crate) fn load(bytes: &[u8]) -> Result<State, Failure> {
    let snapshot = pb::Snapshot::decode(bytes).map_err(|error| damaged(&error.to_string()))?;
    let mut state = State::new(snapshot.last_change);
    for flag in snapshot.flags {
        check_name("a flag's name", &flag.name)?;
        check_definition(flag.definition.as_ref().ok_or_else(|| damaged("a flag is empty"))?)?;
        check_version(&state, flag.version)?;
        state.insert_flag(flag);
    }
    for pb::Segment { name, version, subjects } in snapshot.segments {
        check_name("a segment's name", &name)?;
        check_version(&state, version)?;
        state.insert_segment(&name, Segment { version, subjects: subjects.into_iter().collect() });
    }
    let too_much = state.flags().len() > FLAGS_MAX
        || state.segments().len() > SEGMENTS_MAX
        || snapshot.changes.len() > CHANGES_MAX;
    if too_much {
        return Err(damaged("it exceeds a limit of the state machine"));
    }
    for change in snapshot.changes {
        state.push_change(change);
    }
    Ok(state)
}

fn check_version(state: &State, version: u64) -> Result<(), Failure> {
    match (1..=state.last_change).contains(&version) {
        true => Ok(()),
        false => Err(damaged(&format!("the version {version} is the number of no change"))),
    }
}

fn damaged(what: &str) -> Failure {
    invalid(format!("not a valid snapshot of flags: {what}"))
}
