//! Measurements on demand: `cargo test --workspace --test store numbers -- --ignored --nocapture`.

use std::{
    fs,
    time::{Duration, Instant},
};

use openraft::storage::RaftLogStorage;

use crate::support::*;

fn disk_bytes(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    files(dir).iter().map(|path| fs::metadata(path).map_or(0, |file| file.blocks() * 512)).sum()
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// The duration of a durable append, by its number of entries of 400 bytes. The log is purged as on
/// a node.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn append_latencies() {
    for entries in [1, 16, 64, 256] {
        let (_dir, storage) = fresh();
        let mut log = storage.log.clone();
        let mut next = 0;
        let mut times = Vec::new();
        let before = cpu();
        for batch in 0..2000_u64 {
            let brought = (next..next + entries).map(|index| entry(1, index, 400)).collect();
            next += entries;
            let started = Instant::now();
            append(&log, brought).await.unwrap();
            times.push(started.elapsed());
            if batch % 50 == 49 {
                log.purge(log_id(1, next - 10)).await.unwrap();
            }
        }
        let cpu = (cpu() - before) / (2000 * entries as u32);
        times.sort();
        println!(
            "{entries:4} entries: median {:?}, p99 {:?}, CPU an entry {cpu:?}",
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("plain")).unwrap();
    let mut times: Vec<_> = (0..2000_u64)
        .map(|at| {
            let started = Instant::now();
            std::os::unix::fs::FileExt::write_all_at(&file, &[at as u8; 450], at * 450).unwrap();
            file.sync_data().unwrap();
            started.elapsed()
        })
        .collect();
    times.sort();
    println!("a plain file, 450 bytes: median {:?}", times[1000]);
}

/// Disk and memory during a long run of appends and purges.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn disk_over_a_long_run() {
    let (dir, storage) = fresh();
    println!(
        "new: {} MiB resident, {} MiB on disk",
        resident_bytes() >> 20,
        disk_bytes(dir.path()) >> 20
    );
    let mut log = storage.log.clone();
    let mut next = 0;
    let started = Instant::now();
    let mut reported = started;
    while started.elapsed() < Duration::from_secs(60) {
        let entries = [1, 16, 64][(next % 3) as usize];
        append(&log, (next..next + entries).map(|index| entry(1, index, 400)).collect())
            .await
            .unwrap();
        next += entries;
        if next % 50_000 < entries {
            log.purge(log_id(1, next - 5000)).await.unwrap();
        }
        if reported.elapsed() > Duration::from_secs(10) {
            reported = Instant::now();
            println!(
                "{next} entries: {} MiB on disk, {} MiB resident",
                disk_bytes(dir.path()) >> 20,
                resident_bytes() >> 20
            );
        }
    }
    let live = (all(&log).len() * 450) >> 20;
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!(
        "idle: {} MiB on disk for {live} live, {} MiB resident",
        disk_bytes(dir.path()) >> 20,
        resident_bytes() >> 20
    );
    drop((log, storage));
    let started = Instant::now();
    let storage = open(dir.path());
    println!("opened in {:?}, {} entries", started.elapsed(), all(&storage.log).len());
    println!("reopened: {} MiB on disk", disk_bytes(dir.path()) >> 20);
}
