//! Random sequences of log operations, compared with a vector as the model. A failure prints the
//! minimized sequence, and proptest stores its seed.

use std::collections::BTreeMap;

use conclave_storage::raft_types::{Entry, Vote};
use openraft::{RaftLogReader, storage::RaftLogStorage};
use proptest::prelude::*;

use crate::support::*;

#[derive(Clone, Debug)]
enum Step {
    /// Appends entries of these sizes, without waiting for the disk.
    Append(Vec<usize>),
    /// Truncates to this share of the log, in percent.
    Truncate(u64),
    Purge(u64),
    Vote(u64),
    Record(u8, bool),
    /// Waits for the disk, and opens a copy of the directory in its state after a crash.
    Crash,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => 0..2000_usize, 1 => 100_000..300_000_usize];
    prop_oneof![
        6 => prop::collection::vec(size, 1..20).prop_map(Step::Append),
        2 => (0..=100_u64).prop_map(Step::Truncate),
        1 => (0..=100_u64).prop_map(Step::Purge),
        1 => (0..9_u64).prop_map(Step::Vote),
        1 => (0..4_u8, any::<bool>()).prop_map(|(name, keeps)| Step::Record(name, keeps)),
        1 => Just(Step::Crash),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_what_a_vector_would_be(steps in prop::collection::vec(step(), 1..40)) {
        runtime().block_on(run(steps));
    }
}

async fn run(steps: Vec<Step>) {
    let (dir, mut storage) = fresh();
    let mut model: Vec<Entry> = Vec::new();
    let mut records = BTreeMap::new();
    let mut purged = None;
    let mut vote = None;
    let mut next = 0;
    for (term, step) in (1..).zip(steps) {
        let mut log = storage.log.clone();
        match step {
            Step::Append(sizes) => {
                let entries: Vec<_> =
                    (next..).zip(sizes).map(|(index, size)| entry(term, index, size)).collect();
                next += entries.len() as u64;
                model.extend(entries.clone());
                let noop = openraft::storage::IOFlushed::noop();
                log.append(entries, noop).await.unwrap();
            }
            Step::Truncate(percent) => {
                let keep = model.len() * percent as usize / 100;
                model.truncate(keep);
                let after = model.last().map(|entry| entry.log_id).or(purged);
                next = after.map_or(0, |after| after.index + 1);
                log.truncate_after(after).await.unwrap();
            }
            Step::Purge(percent) => {
                let gone = model.len() * percent as usize / 100;
                if let Some(last) = model.drain(..gone).next_back() {
                    purged = Some(last.log_id);
                    log.purge(last.log_id).await.unwrap();
                }
            }
            Step::Vote(node) => {
                vote = Some(Vote::new(term, node));
                log.save_vote(&Vote::new(term, node)).await.unwrap();
            }
            Step::Record(name, keeps) => {
                let name = format!("record {name}");
                let value = keeps.then(|| vec![term as u8; 20]);
                log.put_record(&name, value.clone()).unwrap();
                match value {
                    Some(value) => records.insert(name, value),
                    None => records.remove(&name),
                };
            }
            Step::Crash => {
                // A vote completes after all earlier operations.
                vote = Some(Vote::new(term, 0));
                log.save_vote(&Vote::new(term, 0)).await.unwrap();
                let crashed = copy(dir.path());
                assert!(all(&open(crashed.path()).log) == model);
            }
            Step::Reopen => {
                drop((log, storage));
                storage = open(dir.path());
            }
        }
        let mut log = storage.log.clone();
        assert!(all(&log) == model);
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, purged);
        assert_eq!(state.last_log_id, model.last().map(|entry| entry.log_id).or(purged));
        assert_eq!(log.read_vote().await.unwrap(), vote);
        assert!(log.list_records("").unwrap() == records.clone().into_iter().collect::<Vec<_>>());
    }
}
