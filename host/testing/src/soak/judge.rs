//! The verdict on the samples of a run.
//!
//! # Contract
//! - **Bounded**: in every sample, memory and descriptors are below the limits of [`Limits`]. In
//!   every sample of the second half, a node's data directory takes at most [`DISK_FACTOR`] times the
//!   bytes that the node needs: the entries of its log and its finished snapshots. Both are measured
//!   at the same time. So the check detects a file that grew at a peak and did not shrink afterwards.
//! - **No trend**: the second half is cut into [`WINDOWS`] windows, and a quantity is represented
//!   by its mean in each. It grows if both of the following hold. Single peaks affect neither.
//!   - The windows rise more often than chance explains (Mann-Kendall test, one-sided, p < 0.001).
//!   - The growth over the half is more than [`GROWTH_MAX`] of the median and more than the quantity's
//!     slack. Growth is the median of all slopes between two windows (Theil-Sen), times the length of
//!     the half.
//! - **Coverage**: each node must have taken snapshots, purged its log and trapped. Otherwise the
//!   run fails.

use std::fmt;

use super::sample::{Sample, Usage};

/// Maximum ratio of disk space to needed bytes.
pub const DISK_FACTOR: f64 = 3.0;
/// Number of windows in the second half.
pub const WINDOWS: usize = 20;
/// Growth over the second half that is not a trend, as a share of the median.
pub const GROWTH_MAX: f64 = 0.05;
/// Standard score for p < 0.001.
const SIGNIFICANT: f64 = 3.09;
/// Minimum number of snapshots per node. With fewer, the run does not test snapshots.
const SNAPSHOTS_MIN: u64 = 2;

/// The limits of each node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
}

/// A quantity that must not grow.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// The name of the quantity.
    pub name: &'static str,
    /// Reads the value from a sample.
    pub of: fn(&Usage) -> u64,
    /// Growth over the second half that is not a trend, even if the median is small.
    slack: f64,
}

/// Resident memory.
pub const MEMORY: Quantity =
    Quantity { name: "resident memory", of: |usage| usage.resident_bytes, slack: 8e6 };
/// Open descriptors.
pub const DESCRIPTORS: Quantity =
    Quantity { name: "open descriptors", of: |usage| usage.descriptors, slack: 2.0 };
/// Disk space. The slack is one segment of sled.
pub const DISK: Quantity =
    Quantity { name: "disk space", of: Usage::disk_bytes, slack: 16.0 * 1_048_576.0 };

/// The development of a quantity at one node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Course {
    /// The largest value of the whole run.
    pub peak: u64,
    /// The median over the windows of the second half.
    pub median: f64,
    /// The growth over the second half, from the median slope.
    pub growth: f64,
    /// The standard score of the Mann-Kendall test.
    pub score: f64,
}

/// The summary of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The node's id.
    pub id: u64,
    /// The courses of [`MEMORY`], [`DESCRIPTORS`] and [`DISK`].
    pub courses: [Course; 3],
    /// The largest ratio of disk space to needed bytes in the second half.
    pub disk_factor: f64,
    /// The ratio of the largest disk space to the largest number of needed bytes in the second half.
    pub disk_factor_of_peaks: f64,
    /// The largest ratio of the disk space of `log/` to the entries in it, in the second half. It
    /// has no limit.
    pub log_factor: f64,
    /// Number of observed snapshots.
    pub snapshots: u64,
    /// Number of observed purges of the log.
    pub purges: u64,
    /// Number of traps.
    pub traps: u64,
    /// Number of applied entries.
    pub entries: u64,
}

/// The verdict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// One summary per node.
    pub nodes: Vec<Summary>,
    /// The reasons why the run fails. Empty if it passes.
    pub failures: Vec<String>,
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "median {:.0}, growth {:+.0} (score {:+.1})",
            self.median, self.growth, self.score
        )
    }
}

/// Judges the samples. They must be sorted by time.
pub fn judge(samples: &[Sample], limits: Limits) -> Verdict {
    let mut verdict = Verdict::default();
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        verdict.failures.push("there are no samples".to_owned());
        return verdict;
    };
    let middle = (first.at + last.at) / 2;
    let half = &samples[samples.partition_point(|sample| sample.at < middle)..];
    if half.len() < WINDOWS {
        let found = half.len();
        verdict
            .failures
            .push(format!("{found} samples are too few: {WINDOWS} are needed in the second half"));
        return verdict;
    }
    for node in 0..first.nodes.len() {
        let of = |samples: &[Sample]| {
            samples.iter().map(|sample| sample.nodes[node]).collect::<Vec<_>>()
        };
        let (all, half) = (of(samples), of(half));
        let id = node as u64 + 1;
        let summary = summary(id, &all, &half);
        let failures = failures(&summary, limits);
        verdict
            .failures
            .extend(failures.into_iter().map(|failure| format!("node {id}: {failure}")));
        verdict.nodes.push(summary);
    }
    verdict
}

fn summary(id: u64, all: &[Usage], half: &[Usage]) -> Summary {
    let ratio = |disk: u64, needed: u64| disk as f64 / needed.max(1) as f64;
    let largest = |of: &dyn Fn(&Usage) -> f64| half.iter().map(of).fold(0.0, f64::max);
    let most = |of: fn(&Usage) -> u64| half.iter().map(of).max().unwrap_or(0);
    let (first, last) = (all[0], all[all.len() - 1]);
    let changes = |of: fn(&Usage) -> u64| {
        all.windows(2).filter(|pair| of(&pair[0]) != of(&pair[1])).count() as u64
    };
    Summary {
        id,
        courses: [MEMORY, DESCRIPTORS, DISK].map(|quantity| course(quantity, all, half)),
        disk_factor: largest(&|usage| ratio(usage.disk_bytes(), usage.needed_bytes())),
        disk_factor_of_peaks: ratio(most(Usage::disk_bytes), most(Usage::needed_bytes)),
        log_factor: largest(&|usage| ratio(usage.log_bytes, usage.live_log_bytes)),
        snapshots: changes(|usage| usage.snapshot),
        purges: changes(|usage| usage.purged),
        traps: last.traps.saturating_sub(first.traps),
        entries: last.applied.saturating_sub(first.applied),
    }
}

fn course(quantity: Quantity, all: &[Usage], half: &[Usage]) -> Course {
    let values: Vec<f64> = half.iter().map(|usage| (quantity.of)(usage) as f64).collect();
    let windows = means(&values, WINDOWS);
    let span = (WINDOWS - 1) as f64;
    Course {
        peak: all.iter().map(quantity.of).max().unwrap_or(0),
        median: median(windows.clone()),
        growth: slope(&windows) * span,
        score: score(&windows),
    }
}

fn failures(summary: &Summary, limits: Limits) -> Vec<String> {
    let mut failures = Vec::new();
    let [memory, descriptors, _] = summary.courses;
    for (quantity, peak, limit) in [
        (MEMORY, memory.peak, limits.resident_bytes),
        (DESCRIPTORS, descriptors.peak, limits.descriptors),
    ] {
        if peak > limit {
            failures.push(format!("{} reached {peak}; the limit is {limit}", quantity.name));
        }
    }
    if summary.disk_factor > DISK_FACTOR {
        failures.push(format!(
            "disk space reached {:.2} times its log and snapshots; the limit is {DISK_FACTOR}",
            summary.disk_factor
        ));
    }
    for (quantity, course) in [MEMORY, DESCRIPTORS, DISK].into_iter().zip(summary.courses) {
        if grows(quantity, course) {
            failures.push(format!("{} grows: {course}", quantity.name));
        }
    }
    for (what, count, least) in [
        ("snapshots", summary.snapshots, SNAPSHOTS_MIN),
        ("purges", summary.purges, 1),
        ("traps", summary.traps, 1),
    ] {
        if count < least {
            failures.push(format!("{count} {what}: the run is too short or too slow to judge"));
        }
    }
    failures
}

fn grows(quantity: Quantity, course: Course) -> bool {
    let Course { median, growth, score, .. } = course;
    score > SIGNIFICANT && growth > quantity.slack && growth > median * GROWTH_MAX
}

/// The means of `count` windows of similar size.
fn means(values: &[f64], count: usize) -> Vec<f64> {
    let edge = |number: usize| number * values.len() / count;
    let windows = (0..count).map(|number| &values[edge(number)..edge(number + 1)]);
    windows.map(|window| window.iter().sum::<f64>() / window.len() as f64).collect()
}

/// The median of all slopes between two values (Theil-Sen), per step.
fn slope(values: &[f64]) -> f64 {
    median(pairs(values).map(|(steps, before, after)| (after - before) / steps).collect())
}

/// The standard score of the Mann-Kendall test: by how much more pairs rise than fall, compared with chance.
fn score(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let rising: f64 = pairs(values)
        .map(|(_, before, after)| {
            f64::from(u8::from(after > before)) - f64::from(u8::from(after < before))
        })
        .sum();
    let deviation = (count * (count - 1.0) * (2.0 * count + 5.0) / 18.0).sqrt();
    (rising.abs() - 1.0).max(0.0) * rising.signum() / deviation
}

/// All pairs of values, with the steps between them.
fn pairs(values: &[f64]) -> impl Iterator<Item = (f64, f64, f64)> {
    values.iter().enumerate().flat_map(move |(at, after)| {
        let before = values[..at].iter().enumerate();
        before.map(move |(from, before)| ((at - from) as f64, *before, *after))
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count.is_multiple_of(2) => f64::midpoint(values[count / 2 - 1], values[count / 2]),
        count => values[count / 2],
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::random::Random;

    const LIMITS: Limits = Limits { resident_bytes: 1 << 30, descriptors: 200 };
    const MIB: u64 = 1 << 20;

    /// A run of a healthy node and of one that `change` modifies, with noise and with the
    /// sawtooth of snapshots.
    fn run(change: impl Fn(u64, &mut Usage)) -> Verdict {
        let mut random = Random::new(1);
        let samples = (0..720_u64).map(|number| {
            let cycle = number % 8;
            let usage = Usage {
                resident_bytes: 200 * MIB + cycle * 5 * MIB + random.below(20 * MIB),
                descriptors: 80 + random.below(6),
                log_bytes: 112 * MIB + random.below(2) * 16 * MIB,
                snapshot_bytes: 32 * MIB,
                other_bytes: if cycle == 0 { 30 * MIB } else { MIB },
                live_log_bytes: (32 + 2 * cycle) * MIB,
                applied: number * 500,
                snapshot: number / 8 * 4000,
                purged: number / 8 * 3000,
                traps: number / 2,
                divergences: 0,
            };
            let mut other = usage;
            change(number, &mut other);
            Sample { at: Duration::from_secs(number * 5), nodes: vec![usage, other] }
        });
        judge(&samples.collect::<Vec<_>>(), LIMITS)
    }

    fn only_failure(change: impl Fn(u64, &mut Usage)) -> String {
        let failures = run(change).failures;
        assert_eq!(failures.len(), 1, "{failures:#?}");
        failures[0].clone()
    }

    #[test]
    fn steady_run_passes() {
        let verdict = run(|_, _| {});
        assert_eq!(verdict.failures, Vec::<String>::new());
        let summary = &verdict.nodes[1];
        assert_eq!((summary.snapshots, summary.purges, summary.traps), (89, 89, 359));
        assert!(summary.disk_factor > summary.disk_factor_of_peaks, "{summary:?}");
    }

    #[test]
    fn growing_quantity_fails() {
        // 40 MiB, 20 descriptors and 120 MiB per hour.
        let leak = only_failure(|number, usage| usage.resident_bytes += number * 40 * MIB / 720);
        assert!(leak.starts_with("node 2: resident memory grows"), "{leak}");
        let leak = only_failure(|number, usage| usage.descriptors += number * 20 / 720);
        assert!(leak.starts_with("node 2: open descriptors grows"), "{leak}");
        let leak = only_failure(|number, usage| {
            usage.log_bytes += number * 120 * MIB / 720;
            usage.snapshot_bytes += 100 * MIB;
        });
        assert!(leak.starts_with("node 2: disk space grows"), "{leak}");
    }

    /// A cache that fills in the first half, and a single peak.
    #[test]
    fn growth_in_the_first_half_and_peaks_are_no_trend() {
        let verdict = run(|number, usage| {
            usage.resident_bytes += number.min(300) * MIB / 3;
            if number == 700 {
                usage.resident_bytes += 400 * MIB;
            }
        });
        assert_eq!(verdict.failures, Vec::<String>::new());
    }

    #[test]
    fn quantity_beyond_its_limit_fails() {
        let peak = only_failure(|number, usage| {
            usage.resident_bytes += if number == 10 { 1 << 30 } else { 0 };
        });
        assert!(peak.contains("resident memory reached"), "{peak}");
        let files = only_failure(|_, usage| usage.descriptors += 200);
        assert!(files.contains("open descriptors reached"), "{files}");
        let disk = only_failure(|_, usage| usage.log_bytes += 100 * MIB);
        assert!(disk.contains("times its log and snapshots"), "{disk}");
    }

    #[test]
    fn run_without_snapshots_purges_or_traps_fails() {
        let nothing = only_failure(|_, usage| usage.snapshot = 7);
        assert!(nothing.contains("0 snapshots"), "{nothing}");
        assert!(only_failure(|_, usage| usage.purged = 0).contains("0 purges"));
        assert!(only_failure(|_, usage| usage.traps = 3).contains("0 traps"));
        assert_eq!(judge(&[], LIMITS).failures.len(), 1);
    }

    #[test]
    fn statistics_are_those_of_the_textbook() {
        let rising: Vec<f64> = (0..20).map(f64::from).collect();
        assert_eq!(slope(&rising), 1.0);
        // S = 190, Var = 950.
        assert!((score(&rising) - 189.0 / 950_f64.sqrt()).abs() < 1e-9);
        let falling: Vec<f64> = rising.iter().map(|value| -value).collect();
        assert_eq!(score(&falling), -score(&rising));
        assert_eq!((slope(&[5.0; 20]), score(&[5.0; 20])), (0.0, 0.0));
        assert_eq!(means(&[1.0, 3.0, 5.0, 7.0], 2), [2.0, 6.0]);
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }
}
