//! Serialization of the state: the message `Snapshot`, with locks in the order of their names.

use conclave_sdk::{Failure, prost::Message};

use crate::{
    lease,
    limits::{LOCKS_MAX, WAITING_MAX, WAITING_TOTAL_MAX, check_name, check_ttl},
    pb,
    state::{Held, State, Waiter},
};

pub(crate) fn save(state: &State) -> Vec<u8> {
    let locks = state.after("").map(|(name, held)| pb::snapshot::Held {
        lease: Some(lease(name, held)),
        waiting: held
            .waiting
            .iter()
            .map(|waiter| pb::snapshot::Waiter {
                owner: waiter.owner.clone(),
                ttl_ms: waiter.ttl_ms,
            })
            .collect(),
    });
    pb::Snapshot { last_token: state.last_token(), locks: locks.collect() }.encode_to_vec()
}

/// Restores a state. Validates all bytes: a state that the state machine could not have reached
/// is rejected.
pub(crate) fn load(bytes: &[u8]) -> Result<State, Failure> {
    let snapshot = pb::Snapshot::decode(bytes)
        .map_err(|error| damaged(&format!("it does not decode: {error}")))?;
    let mut state = State::new(snapshot.last_token);
    let mut last_name = String::new();
    for lock in snapshot.locks {
        let lease = lock.lease.ok_or_else(|| damaged("a lock has no lease"))?;
        check_name("a name", &lease.name)?;
        check_name("an owner", &lease.owner)?;
        if lease.name <= last_name {
            return Err(damaged(&format!("the name {:?} is out of order", lease.name)));
        }
        if !(1..=snapshot.last_token).contains(&lease.token) {
            return Err(damaged(&format!(
                "the token {} was never given; the last one was {}",
                lease.token, snapshot.last_token
            )));
        }
        for waiter in &lock.waiting {
            check_name("an owner", &waiter.owner)?;
            check_ttl(waiter.ttl_ms)?;
        }
        if lock.waiting.len() > WAITING_MAX {
            return Err(damaged(&format!("more than {WAITING_MAX} wait for {:?}", lease.name)));
        }
        let waiting = lock.waiting.into_iter();
        let held = Held {
            owner: lease.owner,
            token: lease.token,
            expires_at_ms: lease.expires_at_ms,
            waiting: waiting.map(|w| Waiter { owner: w.owner, ttl_ms: w.ttl_ms }).collect(),
        };
        state.insert(&lease.name, held);
        last_name = lease.name;
    }
    if state.len() > LOCKS_MAX || state.waiting_total() > WAITING_TOTAL_MAX {
        return Err(damaged("it exceeds a limit of the state machine"));
    }
    Ok(state)
}

fn damaged(what: &str) -> Failure {
    Failure::invalid_argument(format!("not a valid snapshot of locks: {what}"))
}
