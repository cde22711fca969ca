//! Staging compared with a model of a log. After each batch the tree and the model have the same
//! content. After each step of a batch, where a crash may occur, the log has no gap.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{cell::RefCell, collections::HashSet};

use proptest::prelude::*;

use super::*;
use crate::{format::BlockHead, raft_types::Payload};

/// A tree in memory.
#[derive(Default)]
struct Memory {
    values: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// The log that results from the work staged so far.
    expected: RefCell<Vec<LogId>>,
}

impl Target for Memory {
    fn apply(&self, changes: Changes) -> io::Result<()> {
        assert!(!changes.is_empty(), "a step without changes");
        let before = self.log();
        for (key, value) in changes {
            match value {
                Some(value) => drop(self.values.borrow_mut().insert(key, value)),
                None => drop(self.values.borrow_mut().remove(&key)),
            }
        }
        // A crash may occur here. The log must have no gap, and must contain every entry that is to stay.
        let after: HashSet<_> = self.log().into_iter().map(|log_id| log_id.index).collect();
        let expected: HashSet<_> = self.expected.borrow().iter().map(LogId::to_string).collect();
        for log_id in before.iter().filter(|log_id| expected.contains(&log_id.to_string())) {
            assert!(after.contains(&log_id.index), "{log_id} is temporarily missing");
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.values.borrow().get(key).cloned())
    }

    fn read_pack(&self, first: u64) -> io::Result<Vec<Entry>> {
        let head = BlockHead::parse(self.get(&format::part_key(first, 0))?.unwrap()).unwrap();
        assert_eq!(head.parts, 1, "these entries are small");
        Ok(head.decode(first).unwrap())
    }
}

impl Memory {
    fn body(&self, key: &[u8]) -> Option<Bytes> {
        let value = self.values.borrow().get(key).cloned()?;
        Some(format::split_value(value).unwrap().1)
    }

    fn purged(&self) -> Option<LogId> {
        self.body(format::PURGED).and_then(|body| format::decode_log_id(body).unwrap())
    }

    /// Returns the entries after the purged ones. Each block is linked to its predecessor by
    /// sequence number.
    fn log(&self) -> Vec<LogId> {
        let purged = self.purged().map(|purged| purged.index);
        let (mut log, mut previous) = (Vec::<LogId>::new(), None);
        for (key, value) in &*self.values.borrow() {
            let Some((first, part)) = format::parse_part_key(key) else { continue };
            assert_eq!(part, 0);
            let head = BlockHead::parse(value.clone()).unwrap();
            assert!(
                previous.is_none_or(|previous| head.previous == previous),
                "blocks out of order"
            );
            previous = Some(head.sequence);
            log.extend(head.decode(first).unwrap().iter().map(|entry| entry.log_id));
        }
        log.retain(|log_id| Some(log_id.index) > purged);
        for two in log.windows(2) {
            assert_eq!(two[0].index + 1, two[1].index, "a gap in {log:?}");
        }
        log
    }
}

/// The expected content of the tree.
#[derive(Default)]
struct Model {
    log: Vec<LogId>,
    purged: Option<LogId>,
    term: u64,
    vote: Option<Vote>,
    records: BTreeMap<String, Bytes>,
}

impl Model {
    fn next(&self) -> u64 {
        let last = self.log.last().or(self.purged.as_ref());
        last.map_or(0, |last| last.index + 1)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    /// Truncates to this share of the log, in per mille.
    Truncate(u64),
    /// Purges this share of the log, in per mille. More than 1,000 purges beyond the end.
    Purge(u64),
    Vote,
    Record(u8, bool),
    Reseal,
    /// Ends the batch.
    Finish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..2_000_u64).prop_map(Step::Append),
        1 => (0..1_000_u64).prop_map(Step::Truncate),
        1 => (0..1_200_u64).prop_map(Step::Purge),
        1 => Just(Step::Vote),
        1 => (0..3_u8, any::<bool>()).prop_map(|(name, put)| Step::Record(name, put)),
        1 => Just(Step::Reseal),
        3 => Just(Step::Finish),
    ]
}

fn empty() -> Staging {
    Staging {
        watermark: Watermark::default(),
        blocks: VecDeque::new(),
        records: BTreeMap::new(),
        purged: None,
        changes: Vec::new(),
        block: BlockBuilder::default(),
        encoded: Vec::new(),
    }
}

fn run(steps: Vec<Step>) {
    let (mut staging, tree, mut model) = (empty(), Memory::default(), Model::default());
    for step in steps.into_iter().chain([Step::Finish]) {
        match step {
            Step::Append(count) => {
                let log_id = |index| LogId::new_term_index(model.term, index);
                let entries: Vec<_> = (model.next()..model.next() + count)
                    .map(|index| Entry { log_id: log_id(index), payload: Payload::Blank })
                    .collect();
                model.log.extend(entries.iter().map(|entry| entry.log_id));
                staging.stage(Work::Append(entries), &tree).unwrap();
            }
            Step::Truncate(share) => {
                model.log.truncate(model.log.len() * share as usize / 1_000);
                model.term += 1;
                let after = model.next().checked_sub(1);
                tree.expected.replace(model.log.clone());
                staging.stage(Work::Truncate(after), &tree).unwrap();
            }
            Step::Purge(share) => {
                let count = model.log.len() * share as usize / 1_000;
                let to = match model.log.get(count) {
                    Some(to) => *to,
                    None => LogId::new_term_index(model.term, model.next() + share),
                };
                model.log.retain(|log_id| log_id.index > to.index);
                model.purged = Some(to);
                staging.stage(Work::Purge(to), &tree).unwrap();
            }
            Step::Vote => {
                let vote = Vote::new(model.term, 1);
                model.vote = Some(vote);
                staging.stage(Work::Vote(vote), &tree).unwrap();
            }
            Step::Record(name, put) => {
                let name = name.to_string();
                let value = put.then(|| Bytes::from(model.term.to_string()));
                match &value {
                    Some(value) => drop(model.records.insert(name.clone(), value.clone())),
                    None => drop(model.records.remove(&name)),
                }
                staging.stage_records([(name, value)].into());
            }
            // The state is as after a start: no changes are staged.
            Step::Reseal if staging.changes.is_empty() && staging.block.is_empty() => {
                staging.reseal(&tree).unwrap();
            }
            Step::Reseal => {}
            Step::Finish => {
                tree.expected.replace(model.log.clone());
                staging.finish(&tree).unwrap();
                check(&staging, &tree, &model);
            }
        }
    }
}

fn check(staging: &Staging, tree: &Memory, model: &Model) {
    assert_eq!(tree.log(), model.log);
    assert_eq!(tree.purged(), model.purged);
    let vote = tree.body(format::VOTE).map(|body| prost::Message::decode(body).unwrap());
    assert_eq!(vote.map(|vote| crate::convert::vote_from_wire(&vote)), model.vote);
    let mut sum = 0;
    for name in (0..3).map(|name: u8| name.to_string()) {
        let key = format::record_key(&name);
        assert_eq!(tree.body(&key).as_ref(), model.records.get(&name));
        let value = tree.get(&key).unwrap();
        let sequence = value.map(|value| format::split_value(value).unwrap().0);
        sum = change_record_sum(sum, &name, None, sequence);
    }
    // The watermark describes the content of the tree, and no value is newer.
    let values = tree.values.borrow();
    let newest = values.values().map(|value| format::split_value(value.clone()).unwrap().0).max();
    let mut parts = values.iter().filter(|(key, _)| format::parse_part_key(key).is_some());
    let last_pack =
        parts.next_back().map(|(_, value)| BlockHead::parse(value.clone()).unwrap().sequence);
    let watermark = staging.watermark();
    assert_eq!(watermark.records, sum);
    assert_eq!(watermark.last_pack, last_pack.unwrap_or_default());
    assert!(newest.unwrap_or_default() <= watermark.sequence);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tree_holds_what_the_model_holds_after_each_batch(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run(steps);
    }
}
