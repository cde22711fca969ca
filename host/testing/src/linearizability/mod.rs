//! A linearizability checker: searches for one order of the operations that explains all answers.
//!
//! The algorithm is that of Wing and Gong ("Testing and verifying concurrent objects", 1993), with
//! Lowe's memory of visited configurations ("Testing for linearizability", 2017). It is a
//! depth-first search over the operations that may come next. A branch ends if its set of placed
//! operations and its state have been visited before.
//!
//! Groups of keys that are never used in the same operation are independent objects, and are
//! checked separately. A history is linearizable if and only if it is linearizable for each object
//! (Herlihy and Wing).
//!
//! # Outcomes
//!
//! - An operation with an answer takes effect between its beginning and its end.
//! - An operation with an unknown outcome takes effect at any time after its beginning, or never.
//! - An operation that failed never takes effect.
//!
//! # Optimizations that do not change the verdict
//!
//! - A read that may come next and fits the state is placed immediately. It changes nothing, so
//!   every order with the read at a later place is also valid with the read here.
//! - Writes with an unknown outcome are interchangeable if they differ only in values that no
//!   answer contains. Of these, only the one that began first is tried: it may stand wherever a
//!   later one may.

mod model;
mod search;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use self::search::Search;
use crate::history::{Operation, Outcome};

pub use self::search::Stuck;

/// Maximum number of configurations per group of keys. Each takes some hundred bytes of memory.
const CONFIGURATIONS_MAX: usize = 2_000_000;

/// The verdict of the checker on a history.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of groups of keys that were checked.
    pub groups: usize,
    /// Number of operations in these groups.
    pub operations: usize,
    /// Number of these operations whose outcome is unknown.
    pub unknown: usize,
    /// The groups for which no valid order exists.
    pub violations: Vec<Violation>,
    /// The groups for which the search reached its limit.
    pub undecided: Vec<Vec<String>>,
}

/// A group of operations for which no valid order exists.
#[derive(Debug)]
pub struct Violation {
    /// The keys of these operations.
    pub keys: Vec<String>,
    /// The operations, in the order of their beginning.
    pub operations: Vec<Operation>,
    /// The longest order found, and the reason why it cannot be continued.
    pub stuck: Stuck,
}

/// Checks all operations except stale reads.
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

/// Groups the operations that may have taken effect by the keys that are used together.
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
