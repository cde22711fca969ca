//! Goal: a set of timers returns due keys in one order, regardless of how it was built, and
//! survives a snapshot.
//! Method: random operations, compared with a map that is scanned completely.

use std::collections::BTreeMap;

use conclave_sdk::Timers;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Action {
    Set(String, u64),
    Cancel(String),
    Due(u64, usize),
}

/// Few keys and times, so that actions often concern the same timer.
fn action() -> impl Strategy<Value = Action> {
    let key = || "[a-d]";
    prop_oneof![
        4 => (key(), 0..8_u64).prop_map(|(key, at_ms)| Action::Set(key, at_ms)),
        1 => key().prop_map(Action::Cancel),
        1 => (0..10_u64, 0..4_usize).prop_map(|(now_ms, limit)| Action::Due(now_ms, limit)),
    ]
}

/// The keys that are due, in order, found by scanning all keys.
fn due(model: &mut BTreeMap<String, u64>, now_ms: u64, limit: usize) -> Vec<String> {
    let mut due: Vec<_> = model
        .iter()
        .filter(|(_, at_ms)| **at_ms <= now_ms)
        .map(|(key, at)| (*at, key.clone()))
        .collect();
    due.sort();
    due.truncate(limit);
    due.into_iter().map(|(_, key)| key).inspect(|key| _ = model.remove(key)).collect()
}

proptest! {
    #[test]
    fn timers_behave_as_a_map_of_times(actions in prop::collection::vec(action(), 0..60)) {
        let (mut timers, mut model) = (Timers::new(), BTreeMap::new());
        for action in actions {
            match action {
                Action::Set(key, at_ms) => {
                    prop_assert_eq!(timers.set(key.clone(), at_ms), model.insert(key, at_ms));
                }
                Action::Cancel(key) => {
                    prop_assert_eq!(timers.cancel(key.as_str()), model.remove(&key));
                }
                Action::Due(now_ms, limit) => {
                    prop_assert_eq!(timers.due(now_ms, limit), due(&mut model, now_ms, limit));
                }
            }
            prop_assert_eq!(timers.next(), model.values().min().copied());
            prop_assert_eq!((timers.len(), timers.is_empty()), (model.len(), model.is_empty()));
            for key in ["a", "b", "c", "d"] {
                prop_assert_eq!(timers.get(key), model.get(key).copied());
            }
            // The pairs are in the order of the keys and contain the whole state: a set collected
            // from them has equal fields, including the order of due times.
            let saved: Vec<_> = timers.iter().map(|(key, at_ms)| (key.clone(), at_ms)).collect();
            prop_assert!(saved.is_sorted());
            prop_assert_eq!(&saved.iter().cloned().collect::<Timers<_>>(), &timers);
            prop_assert_eq!(saved.into_iter().rev().collect::<Timers<_>>(), timers.clone());
            prop_assert_eq!(timers.clone().into_iter().collect::<BTreeMap<_, _>>(), model.clone());
        }
        let (all, expected) = (timers.due(u64::MAX, usize::MAX), due(&mut model, u64::MAX, usize::MAX));
        prop_assert_eq!(all, expected);
        prop_assert_eq!(timers, Timers::default());
    }
}

#[test]
fn timers_of_one_time_are_due_in_the_order_of_their_keys_and_the_rest_stays_due() {
    let mut timers: Timers<_> =
        [("c", 5), ("a", 5), ("z", 4), ("b", 5), ("y", 6)].into_iter().collect();
    assert_eq!(timers.due(3, 10), [""; 0]);
    assert_eq!(timers.due(5, 2), ["z", "a"]);
    assert_eq!(timers.next(), Some(5), "as soon as possible");
    assert_eq!(timers.due(5, 10), ["b", "c"]);
    assert_eq!(timers.next(), Some(6));
    assert_eq!(timers.due(6, 0), [""; 0]);
}
