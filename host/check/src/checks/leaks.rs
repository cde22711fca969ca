//! Checks that repeated operations do not use more and more memory.

use super::different;
use crate::{
    bench::Bench,
    calls::{Step, contexts},
    finding::{Finding, Stop},
    player::{Answer, Player, timed},
    report::size,
};

/// Limits of a third of the rounds: bytes of state that are moved, and fuel. Each takes about a second.
const BYTES_A_THIRD: usize = 64 << 20;
const FUEL_A_THIRD: u64 = 400_000_000;
/// Fixed cost of a round, expressed in bytes.
const ROUND_BYTES: usize = 32 << 10;
/// Number of rounds in a third. With a small state it is large enough that a leak of some tens of
/// bytes fills a page of 64 KiB.
const ROUNDS: std::ops::RangeInclusive<usize> = 16..=2_000;
/// A node may take this many snapshots before it is restarted. A leak that reaches the memory limit
/// later than that is no breach, because runtimes of some languages leak a little. Queries come in
/// millions, so they must not leak at all.
const ROUNDS_TO_LIMIT: usize = 100_000;
/// Number of queries in one round.
const QUESTIONS_MAX: usize = 8;

/// Repeats a restore, a snapshot and queries many times in the state at the end of the log.
pub(super) fn leaks(bench: &Bench<'_>, steps: &[Step]) -> Result<String, Stop> {
    let mut player = Player::start(bench.component)?;
    let played = player.play(timed(steps))?;
    if !played.whole() {
        return Ok(String::new());
    }
    let at = steps.len();
    let state = player.save(at)?;
    let restores = grows(&mut player, state.len(), |player| player.restore(&state, 1 << 20, at))?;
    let snapshots = grows(&mut player, state.len(), |player| player.save(at).map(drop))?;
    let queries = ask(&mut player, steps)?;
    let mut mild = Vec::new();
    for (what, grown, enough) in [
        ("restore of the same snapshot", &restores, ROUNDS_TO_LIMIT),
        ("snapshot of the same state", &snapshots, ROUNDS_TO_LIMIT),
        ("round of the same queries", &queries, usize::MAX),
    ] {
        let Some(leaked) = grown.leaked() else { continue };
        let limit = bench.component.engine().limits().cluster.memory_bytes_max;
        let what = format!(
            "each {what} leaves about {leaked} bytes behind: the limit of {} is reached after {} of them",
            size(limit),
            limit / leaked
        );
        if limit / leaked < enough {
            return Err(Stop::Found(Finding::new(what, usize::MAX)));
        }
        mild.push(what);
    }
    if !mild.is_empty() {
        let mut finding = Finding::new(mild.join("; "), 0);
        finding.mild = true;
        return Err(Stop::Found(finding));
    }
    let rounds = [&restores, &snapshots, &queries].map(|grown| 3 * grown.rounds);
    let [restores, snapshots, queries] = rounds;
    Ok(format!("{restores} restores, {snapshots} snapshots, {queries} rounds of queries"))
}

/// Repeats the log's queries.
fn ask(player: &mut Player, steps: &[Step]) -> Result<Grown, Stop> {
    let questions = different(steps, Step::is_query, QUESTIONS_MAX);
    let Some(context) = contexts(steps).last().copied().filter(|_| !questions.is_empty()) else {
        return Ok(Grown { rounds: 0, memory_bytes: [0; 3] });
    };
    let mut trapped = false;
    grows(player, 0, |player| {
        for call in questions.iter().filter_map(Step::call) {
            // A query from an earlier part of the log may trap here. The check `traps` reports that.
            trapped = trapped || matches!(player.ask(call, context)?, Answer::Trapped(_));
        }
        Ok(())
    })
}

/// Memory of an instance after each third of the rounds.
struct Grown {
    /// Number of rounds in a third.
    rounds: usize,
    memory_bytes: [usize; 3],
}

impl Grown {
    /// The bytes that a round leaves behind. An instance gets memory from the host in pages, and an
    /// allocator needs some rounds to settle. So only growth in both the second and the last third
    /// is a leak.
    fn leaked(&self) -> Option<usize> {
        let [first, second, third] = self.memory_bytes;
        let leaks = first < second && second < third;
        leaks.then(|| (third - first).div_ceil(2 * self.rounds.max(1)))
    }
}

/// Repeats a round many times.
fn grows(
    player: &mut Player,
    bytes: usize,
    mut round: impl FnMut(&mut Player) -> Result<(), Stop>,
) -> Result<Grown, Stop> {
    let before = player.fuel_used_in_all();
    round(player)?;
    let fuel = (player.fuel_used_in_all() - before).max(1);
    let rounds = usize::try_from(FUEL_A_THIRD / fuel)
        .unwrap_or(usize::MAX)
        .min(BYTES_A_THIRD / (bytes + ROUND_BYTES))
        .clamp(*ROUNDS.start(), *ROUNDS.end());
    let mut memory_bytes = [0; 3];
    for held in &mut memory_bytes {
        for _ in 0..rounds {
            round(player)?;
        }
        *held = player.memory_bytes();
    }
    Ok(Grown { rounds, memory_bytes })
}
