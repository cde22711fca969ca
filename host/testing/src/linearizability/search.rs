//! Search for a valid order of operations.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use super::model::{Compiled, State};
use crate::history::{Compare, Gave, Operation, Outcome, Request, Step, Value};

/// The longest order found.
#[derive(Clone, Debug, Default)]
pub struct Stuck {
    /// Indexes of the operations, in this order.
    pub order: Vec<usize>,
    /// Operations that may come next, but whose answers do not fit.
    pub next: Vec<usize>,
    /// The contents of the keys after these operations, as text.
    pub state: String,
}

pub(super) enum Verdict {
    Linearizable,
    Stuck(Stuck),
    Undecided,
}

pub(super) struct Search<'a> {
    keys: &'a [String],
    operations: Vec<Candidate<'a>>,
    /// Number of operations with an answer. All of these must be placed.
    required: usize,
}

struct Candidate<'a> {
    compiled: Compiled<'a>,
    begun: Duration,
    /// End of the operation. `None` if the outcome is unknown.
    ended: Option<Duration>,
    reads: bool,
    /// Operations with the same number are interchangeable, because no answer distinguishes them.
    alike: Option<usize>,
}

/// A configuration whose successors are tried one after the other.
struct Frame {
    state: State,
    candidates: Vec<usize>,
    tried: usize,
    /// Length of the order before the candidate that is being tried.
    placed: usize,
}

/// The set of placed operations.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Placed(Box<[u64]>);

impl Placed {
    fn none(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)].into())
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    fn flip(&mut self, at: usize) {
        self.0[at / 64] ^= 1 << (at % 64);
    }
}

impl<'a> Search<'a> {
    /// Prepares a search. `operations` must be sorted by their beginning, and `keys` must contain
    /// all their keys, sorted.
    pub(super) fn new(keys: &'a [String], operations: &[&'a Operation]) -> Self {
        let seen = seen_values(operations);
        let mut shapes = BTreeMap::new();
        let operations: Vec<_> = operations
            .iter()
            .map(|operation| Candidate {
                compiled: Compiled::new(keys, operation),
                begun: operation.begun,
                ended: operation.answer().map(|_| operation.ended),
                reads: operation.request.only_reads(),
                alike: unseen_shape(operation, &seen).map(|shape| {
                    let next = shapes.len();
                    *shapes.entry(shape).or_insert(next)
                }),
            })
            .collect();
        let required = operations.iter().filter(|operation| operation.ended.is_some()).count();
        Self { keys, operations, required }
    }

    pub(super) fn run(&self, configurations_max: usize) -> Verdict {
        let mut placed = Placed::none(self.operations.len());
        let mut order = Vec::new();
        let mut known = HashSet::new();
        let mut frames: Vec<Frame> = Vec::new();
        let mut stuck = Stuck::default();
        let mut longest = None;
        let mut state: State = vec![None; self.keys.len()];
        loop {
            // `placed` and `state` are the next configuration.
            self.place_reads(&state, &mut placed, &mut order);
            let answered = order.iter().filter(|at| self.operations[**at].ended.is_some()).count();
            if answered == self.required {
                return Verdict::Linearizable;
            }
            if known.len() >= configurations_max {
                return Verdict::Undecided;
            }
            let candidates = match known.insert((placed.clone(), state.clone())) {
                true => self.candidates(&placed),
                false => Vec::new(),
            };
            if longest.is_none_or(|longest| answered > longest) {
                longest = Some(answered);
                stuck = Stuck {
                    order: order.clone(),
                    next: candidates.iter().copied().filter(|at| self.required(*at)).collect(),
                    state: self.text(&state),
                };
            }
            frames.push(Frame { state, candidates, tried: 0, placed: order.len() });
            // The next configuration comes from the last frame that has an untried candidate.
            state = loop {
                let Some(frame) = frames.last_mut() else { return Verdict::Stuck(stuck) };
                for at in order.drain(frame.placed..) {
                    placed.flip(at);
                }
                let Some(&at) = frame.candidates.get(frame.tried) else {
                    frames.pop();
                    continue;
                };
                frame.tried += 1;
                if let Some(next) = self.operations[at].compiled.apply(&frame.state) {
                    placed.flip(at);
                    order.push(at);
                    break next;
                }
            };
        }
    }

    fn required(&self, at: usize) -> bool {
        self.operations[at].ended.is_some()
    }

    /// Places every read that may come next and fits the state.
    fn place_reads(&self, state: &State, placed: &mut Placed, order: &mut Vec<usize>) {
        loop {
            let reads = self.next(placed).into_iter().filter(|at| self.operations[*at].reads);
            let fitting = reads.filter(|at| self.operations[*at].compiled.apply(state).is_some());
            let fitting: Vec<usize> = fitting.collect();
            if fitting.is_empty() {
                return;
            }
            for at in fitting {
                placed.flip(at);
                order.push(at);
            }
        }
    }

    /// The operations that may come next: those that began before the end of every operation not yet placed.
    fn next(&self, placed: &Placed) -> Vec<usize> {
        let mut next = Vec::new();
        let mut first_end = Duration::MAX;
        for (at, operation) in self.operations.iter().enumerate() {
            if operation.begun > first_end {
                break;
            }
            if !placed.has(at) {
                next.push(at);
                first_end = first_end.min(operation.ended.unwrap_or(Duration::MAX));
            }
        }
        next.retain(|at| self.operations[*at].begun <= first_end);
        next
    }

    /// The operations of [`Self::next`] to try, and only one of each interchangeable set. Sorted by
    /// their end, with unknown outcomes last.
    fn candidates(&self, placed: &Placed) -> Vec<usize> {
        let mut alike = BTreeSet::new();
        let mut next = self.next(placed);
        next.retain(|at| match self.operations[*at].alike {
            Some(number) => alike.insert(number),
            None => true,
        });
        // The operation that ended first most likely took effect first.
        next.sort_by_key(|at| self.operations[*at].ended.unwrap_or(Duration::MAX));
        next
    }

    fn text(&self, state: &State) -> String {
        let records = self.keys.iter().zip(state).map(|(key, record)| match record {
            Some(seen) => format!("{key}={} (version {})", seen.value, seen.version),
            None => format!("no {key}"),
        });
        records.collect::<Vec<_>>().join(", ")
    }
}

/// The values that answers contain or conditions name.
fn seen_values(operations: &[&Operation]) -> BTreeSet<Value> {
    let mut seen = BTreeSet::new();
    for operation in operations {
        for compare in &operation.request.compares {
            if let Compare::Holds(_, value) = compare {
                seen.insert(*value);
            }
        }
        for result in operation.answer().into_iter().flat_map(|answer| &answer.results) {
            if let Gave::Get(Some(read)) = result {
                seen.insert(read.value);
            }
        }
    }
    seen
}

/// The keys that a write with unknown outcome puts and deletes. `None` if the outcome is known, or
/// if an answer or condition contains one of its values.
fn unseen_shape(operation: &Operation, seen: &BTreeSet<Value>) -> Option<String> {
    let Request { compares, then, otherwise } = &operation.request;
    if !matches!(operation.outcome, Outcome::Unknown(_)) {
        return None;
    }
    let mut shape = format!("{compares:?}");
    for (branch, step) in
        then.iter().map(|step| ("then", step)).chain(otherwise.iter().map(|step| ("else", step)))
    {
        match step {
            Step::Put(_, value) if seen.contains(value) => return None,
            Step::Put(key, _) => shape += &format!(" {branch} put {key}"),
            Step::Delete(key) => shape += &format!(" {branch} delete {key}"),
            Step::Get(_) => {}
        }
    }
    Some(shape)
}
