//! Serialization of the state: the message `Snapshot`, with everything in order.

use conclave_sdk::{Failure, prost::Message as _};

use crate::{
    limits::{NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, RECEIVES_MAX, check},
    line::{Key, Line, Message, Place},
    pb,
    state::State,
};

pub(crate) fn save(state: &State) -> Vec<u8> {
    let queues = state.lines().map(|(name, line)| pb::snapshot::Queue {
        name: name.clone(),
        receives_max: line.receives_max,
        messages: line.messages.iter().map(|(&id, message)| save_message(id, message)).collect(),
        keys: save_keys(line),
    });
    pb::Snapshot { last_id: state.last_id, queues: queues.collect() }.encode_to_vec()
}

fn save_message(id: u64, message: &Message) -> pb::snapshot::Message {
    let (receipt, leased_until_ms) = match message.place {
        Place::Leased { receipt, until_ms } => (receipt, until_ms),
        Place::Ready | Place::Dead => (0, 0),
    };
    pb::snapshot::Message {
        id,
        payload: message.payload.clone(),
        enqueued_at_ms: message.enqueued_at_ms,
        receives: message.receives,
        receipt,
        leased_until_ms,
        dead: message.place == Place::Dead,
    }
}

fn save_keys(line: &Line) -> Vec<pb::snapshot::Key> {
    let keys = line.keys.iter().map(|(key, made)| pb::snapshot::Key {
        key: key.clone(),
        id: made.id,
        kept_until_ms: made.kept_until_ms,
    });
    keys.collect()
}

/// Restores a state. The bytes are not trusted: names, payloads, ids and message states are checked.
pub(crate) fn load(bytes: &[u8]) -> Result<State, Failure> {
    let snapshot = pb::Snapshot::decode(bytes)
        .map_err(|error| damaged(&format!("it does not decode: {error}")))?;
    let mut state = State::new(snapshot.last_id);
    for queue in snapshot.queues {
        let name = queue.name;
        check("the length of a queue's name", name.len(), (1, NAME_BYTES_MAX))?;
        check("receives_max", queue.receives_max, (1, RECEIVES_MAX))?;
        if state.line(&name).is_some() {
            return Err(damaged(&format!("the queue {name:?} occurs twice")));
        }
        state.line_mut(&name).receives_max = queue.receives_max;
        let mut last_id = 0;
        for saved in queue.messages {
            check("the length of a payload", saved.payload.len(), (0, PAYLOAD_BYTES_MAX))?;
            check("a message's id", saved.id, (last_id + 1, snapshot.last_id))?;
            last_id = saved.id;
            let place = match (saved.dead, saved.receipt) {
                (true, 0) => Place::Dead,
                (false, 0) => Place::Ready,
                (false, receipt) => Place::Leased { receipt, until_ms: saved.leased_until_ms },
                (true, _) => return Err(damaged("a dead letter is leased")),
            };
            let message = Message {
                payload: saved.payload,
                enqueued_at_ms: saved.enqueued_at_ms,
                receives: saved.receives,
                place,
            };
            state.insert(&name, saved.id, message);
        }
        for key in queue.keys {
            let made = Key { id: key.id, kept_until_ms: key.kept_until_ms };
            state.insert_key(&name, key.key, made);
        }
    }
    Ok(state)
}

fn damaged(what: &str) -> Failure {
    Failure::invalid_argument(format!("not a valid snapshot of queues: {what}"))
}
