//! The search for an order.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use super::model::{Compiled, State};
use crate::history::{Compare, Gave, Operation, Outcome, Request, Step, Value};

/// The longest order that was found.
#[derive(Clone, Debug, Default)]
pub struct Stuck {
    /// Places in the list of operations, in the order.
    pub order: Vec<usize>,
    /// Those that could have come next, and whose answers do not fit.
    pub next: Vec<usize>,
    /// The keys after the order, as text.
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
    /// Operations with an answer: all of them must be placed.
    required: usize,
}

struct Candidate<'a> {
    compiled: Compiled<'a>,
    begun: Duration,
    /// `None`: its outcome is unknown.
    ended: Option<Duration>,
    reads: bool,
    /// Operations of the same number are alike, for what anybody has seen of them.
    alike: Option<usize>,
}

/// A configuration whose successors are tried in turn.
struct Frame {
    state: State,
    candidates: Vec<usize>,
    tried: usize,
    /// How much of the order was there before the candidate that is tried now.
    placed: usize,
}

/// Which operations are placed.
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
    /// `operations`: by their beginning. `keys`: all that they name, in order.
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
            // A configuration that is new.
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
            // The next configuration: of the last frame that has one.
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

    /// Places every read that may come next and fits.
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

    /// The operations that may come next: those that began before any that is not placed has ended.
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

    /// Those of [`Self::next`] that are tried: with an answer first, and of those that are alike one.
    fn candidates(&self, placed: &Placed) -> Vec<usize> {
        let mut alike = BTreeSet::new();
        let mut next = self.next(placed);
        next.retain(|at| match self.operations[*at].alike {
            Some(number) => alike.insert(number),
            None => true,
        });
        // By their end: the one that ended first is the likeliest to have come first.
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

/// The values that an answer contains or a condition names.
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

/// The remainder of a write of unknown outcome whose values no read returned: which keys it puts and deletes.
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
