//! The process metrics, most of them from the operating system, read at each scrape. They use
//! Linux' `/proc`. If a file is missing, its metric is omitted.

use std::{
    fs,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::process::{Resource, getrlimit};

use super::Metric;

/// Number of log lines that were not written. The program, which writes the log, counts them here.
pub static LOG_LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

static STARTED: LazyLock<f64> = LazyLock::new(|| {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
});

/// Records the start time.
pub(super) fn note_start() {
    LazyLock::force(&STARTED);
}

pub(super) fn metrics() -> Vec<Metric> {
    let mut found = vec![Metric::gauge(
        "process_start_time_seconds",
        "Start time of the process, in seconds since the Unix epoch.",
        *STARTED,
    )];
    if let Some([virtual_bytes, resident_bytes]) = memory_bytes() {
        found.push(Metric::gauge(
            "process_resident_memory_bytes",
            "Resident memory of the process, in bytes.",
            resident_bytes as f64,
        ));
        found.push(Metric::gauge(
            "process_virtual_memory_bytes",
            "Virtual memory of the process, in bytes.",
            virtual_bytes as f64,
        ));
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        found.push(Metric::gauge(
            "process_open_fds",
            "Open file descriptors.",
            files.count() as f64,
        ));
    }
    if let Some(files) = getrlimit(Resource::Nofile).current {
        found.push(Metric::gauge(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            files as f64,
        ));
    }
    found.push(Metric::counter(
        "conclave_log_lines_dropped_total",
        "Log lines that were not written because the reader was too slow or gone, or the disk was full.",
        LOG_LINES_DROPPED.load(Ordering::Relaxed),
    ));
    if let Some(seconds) = cpu_seconds() {
        let mut cpu = Metric::counter("process_cpu_seconds_total", "CPU time used, in seconds.", 0);
        cpu.value = seconds;
        found.push(cpu);
    }
    found
}

fn memory_bytes() -> Option<[u64; 2]> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let page_bytes = rustix::param::page_size() as u64;
    let mut pages = statm.split(' ').map_while(|field| field.parse::<u64>().ok());
    Some([pages.next()? * page_bytes, pages.next()? * page_bytes])
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name in parentheses and may contain any character, so fields are
    // counted after it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}
