//! The share of the machine's threads in the processors' time: while every processor is busy, a write takes as
//! long as the work that it makes, and no machine could save more than that.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::cluster::Cluster;

/// As the kernel names them, which cuts names at 15 bytes.
const MACHINE_THREADS: [&str; 2] = ["conclave-head", "conclave-reader"];

/// Processor time in the kernel's ticks.
#[derive(Clone, Copy)]
pub(crate) struct Ticks {
    machine: u64,
    busy: u64,
}

impl Ticks {
    /// The time that was spent so far: by the machine's threads of all nodes, and by everything.
    pub(crate) fn read(cluster: &Cluster) -> Result<Self> {
        let mut machine = 0;
        for node in &cluster.nodes {
            let tasks = format!("/proc/{}/task", node.pid);
            let entries = fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))?;
            for task in entries.flatten() {
                machine += machine_thread(&task.path()).unwrap_or(0);
            }
        }
        let all = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let times = all.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let times: Vec<u64> = times.filter_map(|time| time.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq
        let busy = [0, 1, 2, 5, 6].iter().filter_map(|&at| times.get(at)).sum();
        Ok(Self { machine, busy })
    }

    /// The share of the machine's threads in what was spent since `before`.
    pub(crate) fn share_since(self, before: Self) -> f64 {
        (self.machine - before.machine) as f64 / (self.busy - before.busy).max(1) as f64
    }
}

/// The time of a thread that runs the machine. Threads come and go while they are read.
fn machine_thread(task: &Path) -> Option<u64> {
    let name = fs::read_to_string(task.join("comm")).ok()?;
    if !MACHINE_THREADS.contains(&name.trim()) {
        return None;
    }
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    // Past the name, which may hold spaces: the state is field 3, the times are fields 14 and 15.
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}
