//! The specification: a small map from keys to values and versions. Operations change it one at a time.

use crate::history::{Answer, Compare, Gave, Operation, Outcome, Request, Seen, Step, Value};

/// The contents of the keys of one group, by the key's index in the group.
pub(super) type State = Vec<Option<Seen>>;

/// An operation in which keys are replaced by their indexes.
pub(super) struct Compiled<'a> {
    compares: Vec<(usize, &'a Compare)>,
    then: Vec<(usize, &'a Step)>,
    otherwise: Vec<(usize, &'a Step)>,
    answer: Option<&'a Answer>,
}

impl<'a> Compiled<'a> {
    /// Compiles an operation. `keys` must be sorted and contain all keys of the operation.
    pub(super) fn new(keys: &[String], operation: &'a Operation) -> Self {
        let number = |key: &str| keys.binary_search_by(|known| (**known).cmp(key)).unwrap_or(0);
        let Request { compares, then, otherwise } = &operation.request;
        let steps =
            |steps: &'a [Step]| steps.iter().map(|step| (number(step.key()), step)).collect();
        Self {
            compares: compares.iter().map(|compare| (number(compare.key()), compare)).collect(),
            then: steps(then),
            otherwise: steps(otherwise),
            answer: match &operation.outcome {
                Outcome::Done(answer) => Some(answer),
                Outcome::Unknown(_) | Outcome::Failed(_) => None,
            },
        }
    }

    /// The state after the operation. `None` if the recorded answer does not fit the state.
    pub(super) fn apply(&self, state: &State) -> Option<State> {
        let succeeded = self.compares.iter().all(|(key, compare)| holds(state[*key], compare));
        let steps = if succeeded { &self.then } else { &self.otherwise };
        if let Some(answer) = self.answer
            && (answer.succeeded != succeeded || answer.results.len() != steps.len())
        {
            return None;
        }
        let mut next = state.clone();
        for (at, (key, step)) in steps.iter().enumerate() {
            let gave = run(&mut next[*key], step);
            if let Some(answer) = self.answer
                && answer.results[at] != gave
            {
                return None;
            }
        }
        Some(next)
    }
}

fn holds(record: Option<Seen>, compare: &Compare) -> bool {
    match compare {
        Compare::Holds(_, value) => record.is_some_and(|seen| seen.value == *value),
        Compare::Exists(_, expected) => record.is_some() == *expected,
    }
}

fn run(record: &mut Option<Seen>, step: &Step) -> Gave {
    match step {
        Step::Put(_, value) => Gave::Put(put(record, *value)),
        Step::Delete(_) => Gave::Delete(record.take().is_some()),
        Step::Get(_) => Gave::Get(*record),
    }
}

fn put(record: &mut Option<Seen>, value: Value) -> u64 {
    let version = record.map_or(0, |seen| seen.version) + 1;
    *record = Some(Seen { value, version });
    version
}
