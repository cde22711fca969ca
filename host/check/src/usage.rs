//! Checks how much of a node's limits the calls use: fuel and memory.

use std::collections::BTreeMap;

use super::{
    bench::Bench,
    finding::Stop,
    player::{Player, timed},
    report::{Checked, Verdict, size},
    survey::Survey,
};

/// A call that uses more than one part in `HEADROOM` of its limit gets a warning.
const HEADROOM: u64 = 4;
/// Number of methods in the summary.
const NAMED_MAX: usize = 2;

/// Reports the fuel by method.
pub(super) fn fuel(bench: &Bench<'_>, survey: &Survey) -> Checked {
    let limits = bench.component.engine().limits();
    let mut methods: BTreeMap<(&str, bool), Vec<u64>> = BTreeMap::new();
    for (step, fuel) in survey.calm.iter().zip(&survey.fuel) {
        methods.entry((step.name(), step.is_query())).or_default().push(*fuel);
    }
    let limit = |query: bool| {
        if query { limits.cluster.fuel_per_query } else { limits.cluster.fuel_per_call }
    };
    let mut rows: Vec<_> = methods
        .into_iter()
        .filter_map(|((name, query), mut fuel)| {
            fuel.sort_unstable();
            let (median, most) = (*fuel.get(fuel.len() / 2)?, *fuel.last()?);
            Some((most / (limit(query) / 1_000_000).max(1), name, query, median, most))
        })
        .collect();
    rows.sort_by(|left, right| right.cmp(left));
    let near =
        rows.iter().any(|(_, _, query, _, most)| most.saturating_mul(HEADROOM) > limit(*query));
    let said: Vec<_> = rows
        .iter()
        .take(NAMED_MAX)
        .map(|(_, name, query, median, most)| {
            let times = limit(*query) / (*most).max(1);
            format!("{name} {median}, at most {most} (1/{times} of the limit)")
        })
        .collect();
    let verdict = if near { Verdict::Warned } else { Verdict::Ok };
    let mut checked = Checked::new(
        "fuel",
        "every call uses a small part of its fuel limit",
        verdict,
        if said.is_empty() { "no calls".to_owned() } else { said.join("; ") },
    );
    if near {
        checked.advice =
            "A call that uses up its fuel is rolled back. This log is small, and a cluster \
                          holds more data. Limit how much data one call may process."
                .to_owned();
    }
    checked
}

/// Reports the linear memory at the start, at the end, and of a restored instance.
pub(super) fn memory(bench: &Bench<'_>, survey: &Survey) -> Result<Checked, Stop> {
    let limit = bench.component.engine().limits().cluster.memory_bytes_max;
    let limit = limit.min(bench.component.memory().declared_bytes_max);
    let (started, ended) = survey.memory_bytes;
    let mut player = Player::start(bench.component)?;
    let whole = player.play(timed(&survey.calm))?.whole();
    let restored = match whole {
        true => {
            let state = player.save(survey.calm.len())?;
            let restored = Player::restored(bench.component, &state, survey.calm.len())?;
            format!("{} after a restore of {}", size(restored.memory_bytes()), size(state.len()))
        }
        false => "not restored".to_owned(),
    };
    let near = ended.saturating_mul(HEADROOM as usize) > limit;
    let said = format!(
        "{} at the start, {} after {} steps, {restored}; the limit is {}",
        size(started),
        size(ended),
        survey.calm.len(),
        size(limit)
    );
    let verdict = if near { Verdict::Warned } else { Verdict::Ok };
    let mut checked =
        Checked::new("memory", "the log uses a small part of the memory limit", verdict, said);
    if near {
        checked.advice =
            "Count the bytes of the state, and fail with RESOURCE_EXHAUSTED at about a quarter of the limit: \
             near the limit, replicas may not agree on which call still fits."
                .to_owned();
    }
    Ok(checked)
}
