//! Random schedules from a seed.

use super::{Event, Fault, Schedule, Target};
use crate::random::Random;

/// The faults that this host supports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Available {
    /// Disks that can be made to hang.
    pub disks: bool,
    /// Clocks that can be moved.
    pub clocks: bool,
    /// Another component to activate.
    pub components: bool,
}

impl Schedule {
    /// Generates the schedule of a seed.
    pub fn generate(seed: u64, nodes: u64, length_ms: u64, available: Available) -> Self {
        let mut random = Random::new(seed);
        let snapshots = random.percent(50);
        // Runs with few families of faults find more than runs with all of them.
        let families: &[Family] = match random.below(9) {
            0 | 1 => &[Family::Pauses],
            2 | 3 => &[Family::Links],
            4 => &[Family::Processes],
            5 => &[Family::Pauses, Family::Links],
            6 => &[Family::Hosts],
            7 => &[Family::Hosts, Family::Pauses],
            _ => &[Family::Pauses, Family::Links, Family::Processes, Family::Hosts],
        };
        let mut events = Vec::new();
        // Up to two sequences of faults, so that two faults can overlap.
        let sequences = if random.percent(30) { 2 } else { 1 };
        for _ in 0..sequences {
            let mut at_ms = random.range(500..1500);
            while at_ms + 500 < length_ms {
                let family = random.pick(families).unwrap_or(Family::Pauses);
                let fault = family.fault(&mut random, nodes, available);
                let for_ms = length_of(&fault, &mut random).min(length_ms - at_ms);
                events.push(Event { at_ms, for_ms, fault });
                at_ms += for_ms + random.range(200..1800);
            }
        }
        events.sort_by_key(|event| event.at_ms);
        Self { nodes, length_ms, snapshots, events }
    }
}

#[derive(Clone, Copy)]
enum Family {
    Pauses,
    Links,
    Processes,
    Hosts,
}

impl Family {
    fn fault(self, random: &mut Random, nodes: u64, available: Available) -> Fault {
        let target = target(random, nodes);
        match self {
            Self::Pauses => match random.below(5) {
                0..3 => Fault::Pause(target),
                3 => Fault::HoldInbound(target),
                _ => Fault::LateAnswers(random.percent(50)),
            },
            Self::Links => {
                let other = other(random, target, nodes);
                match random.below(11) {
                    0 => Fault::Isolate(target),
                    1 => Fault::Deafen(target),
                    2 => Fault::Mute(target),
                    3 => Fault::Cut(target, other),
                    4 => Fault::CutOneWay(target, other),
                    5 => Fault::Hold(target),
                    6 => Fault::HoldInbound(target),
                    7 => Fault::Refuse(target),
                    8 => Fault::DelayAll(random.range(5..80)),
                    9 => Fault::Delay(target, random.range(5..400)),
                    _ => Fault::Throttle(target, random.range(20_000..500_000)),
                }
            }
            Self::Processes => match random.below(8) {
                0..4 => Fault::Kill(target),
                4..6 => Fault::Stop(target),
                _ => Fault::KillAll,
            },
            Self::Hosts => match random.below(6) {
                0 if available.disks => Fault::HangDisk(target),
                1 if available.clocks => {
                    let seconds = random.range(1..7200) as i64;
                    Fault::Clock(target, if random.percent(50) { seconds } else { -seconds })
                }
                2 if available.components => Fault::Upgrade,
                3 => Fault::Snapshot(target),
                4 => Fault::Diverge(target),
                _ => Fault::Trap,
            },
        }
    }
}

fn target(random: &mut Random, nodes: u64) -> Target {
    match random.below(10) {
        0..6 => Target::Leader,
        6..8 => Target::Follower(random.range(1..nodes)),
        _ => Target::Node(random.range(1..nodes + 1)),
    }
}

/// A node that is never the same as `target`.
fn other(random: &mut Random, target: Target, nodes: u64) -> Target {
    match target {
        Target::Leader => Target::Follower(random.range(1..nodes)),
        Target::Follower(_) => Target::Leader,
        Target::Node(id) => Target::Node((id + random.below(nodes - 1)) % nodes + 1),
    }
}

/// The duration of a fault. Most last about as long as an election: roughly a second.
fn length_of(fault: &Fault, random: &mut Random) -> u64 {
    match fault {
        Fault::Pause(_) | Fault::HoldInbound(_) | Fault::Hold(_) => random.range(600..1700),
        // The fault determines its own duration. This only reserves the time.
        Fault::LateAnswers(_) => 1200,
        Fault::Trap => random.range(500..3000),
        // Enough for a start and two consistency checks.
        Fault::Diverge(_) => random.range(3000..5000),
        Fault::Snapshot(_) | Fault::Upgrade => random.range(300..1000),
        Fault::Kill(_) | Fault::Stop(_) | Fault::KillAll => random.range(50..2000),
        Fault::Clock(..) => random.range(500..2500),
        Fault::HangDisk(_) => random.range(500..3500),
        _ => match random.percent(20) {
            true => random.range(2000..5000),
            false => random.range(300..2000),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_whose_text_gives_it_again() {
        let all = Available { disks: true, clocks: true, components: true };
        for seed in 0..300 {
            for nodes in [3, 5] {
                let schedule = Schedule::generate(seed, nodes, 20_000, all);
                assert_eq!(schedule, Schedule::generate(seed, nodes, 20_000, all));
                assert_eq!(schedule, schedule.to_string().parse().unwrap(), "seed {seed}");
                assert!(!schedule.events.is_empty(), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_fault_that_is_written_wrongly_is_refused() {
        for line in
            ["pause leader", "1+2 pause", "1+2 stumble leader", "1+2 trap leader", "1+x trap"]
        {
            assert!(line.parse::<Event>().is_err(), "{line}");
        }
    }
}
