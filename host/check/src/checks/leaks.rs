//! Whether what is done again and again takes ever more memory.

use super::{Bench, different};
use crate::{
    calls::{Step, contexts},
    finding::{Finding, Stop},
    player::{Answer, Player, timed},
    usage::size,
};

/// Bytes of state that are moved in each third of the rounds, and the fuel that they may take: a second
/// or so of each.
const BYTES_A_THIRD: usize = 64 << 20;
const FUEL_A_THIRD: u64 = 400_000_000;
/// What a round costs beside its bytes, in bytes.
const ROUND_BYTES: usize = 32 << 10;
/// Rounds of a third. With a small state so many that a leak of some tens of bytes fills a page of 64 KiB.
const ROUNDS: std::ops::RangeInclusive<usize> = 16..=2_000;
/// A node may take so many snapshots before it is restarted. What leaks so little that the limit of memory
/// is reached later is no breach: runtimes of other languages do. Queries come in millions: none may leak.
const ROUNDS_TO_LIMIT: usize = 100_000;
/// Questions of one round.
const QUESTIONS_MAX: usize = 8;

/// Restores the state at the end of the log, snapshots it and asks about it, each many times.
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

/// Asks the log's questions again and again.
fn ask(player: &mut Player, steps: &[Step]) -> Result<Grown, Stop> {
    let questions = different(steps, Step::is_query, QUESTIONS_MAX);
    let Some(context) = contexts(steps).last().copied().filter(|_| !questions.is_empty()) else {
        return Ok(Grown { rounds: 0, memory_bytes: [0; 3] });
    };
    let mut trapped = false;
    grows(player, 0, |player| {
        for call in questions.iter().filter_map(Step::call) {
            // A question of earlier may trap here, which is for `traps` to say.
            trapped = trapped || matches!(player.ask(call, context)?, Answer::Trapped(_));
        }
        Ok(())
    })
}

/// What an instance held after each third of the rounds.
struct Grown {
    /// Of a third.
    rounds: usize,
    memory_bytes: [usize; 3],
}

impl Grown {
    /// The bytes that a round leaves behind. Memory is taken from the host in pages, and an allocator
    /// settles down after some rounds: only what grows in the second third and still in the last is a leak.
    fn leaked(&self) -> Option<usize> {
        let [first, second, third] = self.memory_bytes;
        let leaks = first < second && second < third;
        leaks.then(|| (third - first).div_ceil(2 * self.rounds.max(1)))
    }
}

/// Does the same again and again.
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
