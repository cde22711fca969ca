//! A checker of linearizability: is there one order of the operations that explains all answers?
//!
//! The algorithm is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's memo of
//! configurations that were tried ("Testing for linearizability", 2017): a depth-first search over the operations
//! that may come next, which ends a branch whose set of placed operations and state have been seen before.
//!
//! Keys that no operation names together are independent objects, and are checked apart (Herlihy and Wing: a
//! history is linearizable if and only if it is for each object).
//!
//! # Outcomes
//!
//! - An operation with an answer takes effect between its beginning and its end.
//! - One with an unknown outcome takes effect at any time after its beginning, or never.
//! - One that failed never takes effect.
//!
//! # Two shortcuts, which lose nothing
//!
//! - A read that may come next and fits the state is placed at once: it changes nothing, so every order that
//!   has it later is an order with it here, too.
//! - Of writes with unknown outcome whose values no answer contains, and which are alike but for that value, only
//!   the one that began first is tried: wherever a later one may stand, so may the first.

mod model;
mod search;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use self::search::Search;
use crate::history::{Operation, Outcome};

pub use self::search::Stuck;

/// Configurations that are tried for one group of keys before the checker gives up. Each takes some hundred bytes.
const CONFIGURATIONS_MAX: usize = 2_000_000;

/// The verdict of the checker on a history.
#[derive(Debug, Default)]
pub struct Report {
    /// Groups of keys that were checked.
    pub groups: usize,
    /// Operations that were placed in an order.
    pub operations: usize,
    /// Operations of unknown outcome among them.
    pub unknown: usize,
    /// The groups for which no order exists.
    pub violations: Vec<Violation>,
    /// The groups for which the search took too long.
    pub undecided: Vec<Vec<String>>,
}

/// Operations that no order explains.
#[derive(Debug)]
pub struct Violation {
    /// The keys that they name.
    pub keys: Vec<String>,
    /// The operations, by their beginning.
    pub operations: Vec<Operation>,
    /// The longest order that was found, and why it does not go on.
    pub stuck: Stuck,
}

/// Checks all operations but stale reads.
pub fn check(history: &[Operation]) -> Report {
    let mut report = Report::default();
    for (keys, operations) in groups(history) {
        report.groups += 1;
        report.operations += operations.len();
        let unknown = |operation: &&&Operation| matches!(operation.outcome, Outcome::Unknown(_));
        report.unknown += operations.iter().filter(unknown).count();
        match Search::new(&keys, &operations).run(CONFIGURATIONS_MAX) {
            search::Verdict::Linearizable => {}
            search::Verdict::Stuck(stuck) => report.violations.push(Violation {
                keys,
                operations: operations.into_iter().cloned().collect(),
                stuck,
            }),
            search::Verdict::Undecided => report.undecided.push(keys),
        }
    }
    report
}

/// The operations that may have taken effect, by groups of keys that are named together.
fn groups(history: &[Operation]) -> Vec<(Vec<String>, Vec<&Operation>)> {
    let relevant = history.iter().filter(|operation| match &operation.outcome {
        Outcome::Done(_) => operation.is_linearizable(),
        Outcome::Unknown(_) => !operation.request.only_reads(),
        Outcome::Failed(_) => false,
    });
    let relevant: Vec<&Operation> = relevant.collect();
    let mut sets = Sets::default();
    for operation in &relevant {
        let mut keys = operation.request.keys();
        let Some(first) = keys.next() else { continue };
        sets.add(first);
        for key in keys {
            sets.join(first, key);
        }
    }
    let mut groups: BTreeMap<usize, (Vec<String>, Vec<&Operation>)> = BTreeMap::new();
    let keys: Vec<String> = sets.numbers.keys().cloned().collect();
    for key in keys {
        let root = sets.root_of(&key);
        groups.entry(root).or_default().0.push(key);
    }
    for operation in relevant {
        let first = operation.request.keys().next().map(str::to_owned);
        let Some(first) = first else { continue };
        let root = sets.root_of(&first);
        groups.entry(root).or_default().1.push(operation);
    }
    groups.into_values().collect()
}

/// Disjoint sets of keys.
#[derive(Default)]
struct Sets {
    numbers: BTreeMap<String, usize>,
    parents: Vec<usize>,
}

impl Sets {
    fn add(&mut self, key: &str) -> usize {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let number = self.parents.len();
        self.parents.push(number);
        self.numbers.insert(key.to_owned(), number);
        number
    }

    fn root_of(&mut self, key: &str) -> usize {
        let mut at = self.add(key);
        while self.parents[at] != at {
            self.parents[at] = self.parents[self.parents[at]];
            at = self.parents[at];
        }
        at
    }

    fn join(&mut self, one: &str, other: &str) {
        let (one, other) = (self.root_of(one), self.root_of(other));
        self.parents[one] = other;
    }
}
