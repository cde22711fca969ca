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

use conclave_metrics::Registry;
use rustix::process::{Resource, getrlimit};

/// Number of log lines that were not written. The program, which writes the log, counts them here
/// for all nodes that it runs.
pub static LOG_LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

static STARTED: LazyLock<f64> = LazyLock::new(|| {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
});

/// Registers the metrics, and records the start time.
pub(super) fn register(registry: &Registry) {
    let started = registry.float_gauge(
        "process_start_time_seconds",
        "Start time of the process, in seconds since the Unix epoch.",
    );
    started.set(*STARTED);
    let resident = registry.optional_gauge(
        "process_resident_memory_bytes",
        "Resident memory of the process, in bytes.",
    );
    let virtual_memory = registry
        .optional_gauge("process_virtual_memory_bytes", "Virtual memory of the process, in bytes.");
    let open_files = registry.optional_gauge("process_open_fds", "Open file descriptors.");
    let files_max =
        registry.optional_gauge("process_max_fds", "Maximum number of open file descriptors.");
    let dropped = registry.counter(
        "conclave_log_lines_dropped_total",
        "Log lines that were not written because the reader was too slow or gone, or the disk was full.",
    );
    let cpu = cpu_seconds()
        .map(|_| registry.float_counter("process_cpu_seconds_total", "CPU time used, in seconds."));
    registry.on_scrape(move || {
        let memory = memory_bytes();
        virtual_memory.set(memory.map(|[bytes, _]| bytes as f64));
        resident.set(memory.map(|[_, bytes]| bytes as f64));
        open_files.set(fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64));
        files_max.set(getrlimit(Resource::Nofile).current.map(|files| files as f64));
        // Scrapes do not run concurrently, so each counter is raised to its source's value.
        dropped.inc_by(LOG_LINES_DROPPED.load(Ordering::Relaxed).saturating_sub(dropped.get()));
        if let (Some(cpu), Some(seconds)) = (&cpu, cpu_seconds()) {
            cpu.inc_by((seconds - cpu.get()).max(0.0));
        }
    });
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
