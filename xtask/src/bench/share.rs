//! The share of the state machine's threads in the processors' time. If all processors are busy,
//! this share is the upper bound of the time that a faster state machine could save.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::cluster::Cluster;

/// Names as the kernel reports them, truncated to 15 bytes.
const MACHINE_THREADS: [&str; 2] = ["primary", "standby"];

/// Processor time in the kernel's ticks.
#[derive(Clone, Copy)]
pub(crate) struct Ticks {
    machine: u64,
    busy: u64,
}

impl Ticks {
    /// Reads the time used so far: by the state machine threads of all nodes, and by all processes.
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

    /// Returns the share of the state machine's threads in the time used since `before`.
    pub(crate) fn share_since(self, before: Self) -> f64 {
        (self.machine - before.machine) as f64 / (self.busy - before.busy).max(1) as f64
    }
}

/// Returns the time of a thread if it runs the state machine. Threads may end while they are read.
fn machine_thread(task: &Path) -> Option<u64> {
    let name = fs::read_to_string(task.join("comm")).ok()?;
    if !MACHINE_THREADS.contains(&name.trim()) {
        return None;
    }
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    // The fields follow the name, which may contain spaces: the state is field 3, the times are
    // fields 14 and 15.
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}
