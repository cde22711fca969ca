//! The report of a run as Markdown: its figures, host and version.

use std::{fmt::Write, fs};

use super::{
    FUEL_PER_CALL, KEEP_BYTES, Run, SNAPSHOT_BYTES,
    judge::{DISK_FACTOR, GROWTH_MAX, Summary, WINDOWS},
};

const MIB: f64 = 1_048_576.0;

/// The program and its version, for the report.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The version and the build, such as `conclave 0.1.0 (dev build)`.
    pub program: String,
    /// The revision of the sources.
    pub revision: String,
    /// The date of the run.
    pub date: String,
}

/// The title of the plot.
pub fn title(run: &Run, subject: &Subject) -> String {
    format!(
        "{}, {}, {:.0} minutes, {} keys of {} bytes, {} writes per second",
        subject.program,
        subject.date,
        minutes(run),
        run.plan.keys,
        run.plan.value_bytes,
        run.plan.writes_per_second
    )
}

/// The report as Markdown.
pub fn markdown(run: &Run, subject: &Subject, plot: &str) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut page, run, subject, plot);
    page
}

fn minutes(run: &Run) -> f64 {
    run.samples.last().map_or(0.0, |last| last.at.as_secs_f64() / 60.0)
}

fn write(page: &mut String, run: &Run, subject: &Subject, plot: &str) -> std::fmt::Result {
    let plan = &run.plan;
    writeln!(
        page,
        "# Soak\n\nWritten by `cargo xtask soak`.\n\n![the figures over time]({plot})\n"
    )?;
    writeln!(page, "| | |\n|---|---|")?;
    writeln!(page, "| program | {}, revision {} |", subject.program, subject.revision)?;
    writeln!(page, "| date | {} |", subject.date)?;
    writeln!(page, "| host | {} |", computer())?;
    writeln!(
        page,
        "| load | three nodes, {} keys of {} bytes, {} writes per second ({} minutes), a trapping call every {} s, \
         reads, watches, expiring keys and short-lived connections |",
        plan.keys,
        plan.value_bytes,
        plan.writes_per_second,
        minutes(run).round(),
        plan.trap_interval.as_secs()
    )?;
    writeln!(
        page,
        "| settings | `snapshot_bytes` {} MiB, `keep_bytes` {} MiB, `fuel_per_call` {FUEL_PER_CALL}, otherwise the defaults |",
        SNAPSHOT_BYTES >> 20,
        KEEP_BYTES >> 20
    )?;
    for (name, count) in &run.counts {
        writeln!(page, "| {name} | {count} |")?;
    }
    writeln!(page, "\n## Figures\n")?;
    if !run.verdict.nodes.is_empty() {
        table(page, &run.verdict.nodes)?;
    }
    match &run.verdict.failures[..] {
        [] => writeln!(
            page,
            "\nThe run passes: all resources are bounded and none grows, every node has all acknowledged keys with their \
             values, and the nodes' states are equal."
        )?,
        failures => {
            writeln!(page, "\nThe run fails:\n")?;
            for failure in failures {
                writeln!(page, "- {failure}")?;
            }
        }
    }
    writeln!(page, "\n## Rules\n\n{}", judged())
}

fn judged() -> String {
    format!(
        "- *Disk space* is the space that the files of the data directory take, including a snapshot that is being written. In\n  \
         each sample of the second half it is at most {DISK_FACTOR} times the bytes of the log's entries and of the finished\n  \
         snapshots at that time.\n\
         - *Growth* is measured in the second half, cut into {WINDOWS} windows: the median of all slopes between the windows'\n  \
         means (Theil-Sen), times the length of the half. A quantity grows if the means rise more often than chance explains\n  \
         (Mann-Kendall test, p < 0.001) and the growth is more than {:.0} % of the median. Slower growth is not detected.\n\
         - Memory and descriptors have fixed limits in each sample.\n\
         - All bytes of each value that is read are compared with the acknowledged value, and at the end all keys at each node.\n  \
         No key may exist that only a trapped call has written.\n",
        GROWTH_MAX * 100.0
    )
}

fn table(page: &mut String, nodes: &[Summary]) -> std::fmt::Result {
    let mut row = |name: &str, cell: &dyn Fn(&Summary) -> String| {
        let cells: Vec<String> = nodes.iter().map(cell).collect();
        writeln!(page, "| {name} | {} |", cells.join(" | "))
    };
    row("", &|node| format!("node {}", node.id))?;
    row("---", &|_| "---".to_owned())?;
    for (at, name, unit) in [
        (0, "resident memory, MiB", MIB),
        (1, "open descriptors", 1.0),
        (2, "disk space, MiB", MIB),
    ] {
        let scaled = |value: f64| format!("{:.0}", value / unit);
        row(&format!("{name}: median"), &|node| scaled(node.courses[at].median))?;
        row(&format!("{name}: peak"), &|node| scaled(node.courses[at].peak as f64))?;
        row(&format!("{name}: growth over the second half"), &|node| {
            format!("{:+.1}", node.courses[at].growth / unit)
        })?;
    }
    row("disk space to log and snapshots, at most", &|node| format!("{:.2}", node.disk_factor))?;
    row("the same of the peaks", &|node| format!("{:.2}", node.disk_factor_of_peaks))?;
    row("`log/` alone to its entries, at most (not judged)", &|node| {
        format!("{:.2}", node.log_factor)
    })?;
    row("entries", &|node| node.entries.to_string())?;
    row("snapshots", &|node| node.snapshots.to_string())?;
    row("purges", &|node| node.purges.to_string())?;
    row("traps", &|node| node.traps.to_string())
}

/// The processor, its number of cores, and the memory of this host.
fn computer() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processor =
        field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "a processor".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kib = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|total| total.trim_end_matches(" kB").parse::<u64>().ok());
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.split(['-', '+']).next().unwrap_or_default();
    format!(
        "{processor}, {cores} cores, {} GiB of memory, Linux {}",
        kib.unwrap_or_default() >> 20,
        kernel.trim()
    )
}
