//! A power cut: what was written but not synced is lost, or only some of it is there.
//!
//! No file system here forgets on request. So a node runs under a system-call trace, which tells what it wrote
//! to which file and what it synced when; from that are made the directories that a disk could hold if the
//! power failed at some moment, see [`disk`]. On each of them a node must start, and have every put that had
//! been acknowledged by then.

mod disk;
mod metadata;
mod trace;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use conclave_client::Client;
use futures::StreamExt;

use self::disk::{Dice, Disk, Unsynced};
use crate::{
    durability::{NO_STRACE, now, strace_works},
    harness::{Cluster, Setup, conclave, eventually, free_address, get, put, skip},
};

const WRITERS: usize = 4;
const PUTS: usize = 120;
/// Each writer's own: a put replaces an older one.
const KEYS: usize = 5;
/// How many moments, spread over the run; each makes a directory on which a node is started.
const CUTS: usize = 24;

/// A put: of which key, when it was sent and when its answer came.
struct Put {
    key: String,
    number: usize,
    acknowledged: f64,
}

/// Most are small, some so large that sled's segments fill up and are used again.
fn text(number: usize) -> String {
    let bytes = if number.is_multiple_of(3) { 300_000 } else { 200 };
    format!("{number}:{}", "x".repeat(bytes))
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_puts_survive_a_power_cut_at_any_moment() {
    if !strace_works() {
        return skip("acknowledged puts survive a power cut", NO_STRACE);
    }
    let flags = ["--snapshot-entries=100", "--keep-entries=0"].map(str::to_owned).into();
    let mut cluster = Cluster::prepared(Setup { module: None, flags });
    cluster.nodes.truncate(1);
    let puts = traced_puts(&mut cluster).await;
    let trace = fs::read_to_string(cluster.dir.path().join("trace")).unwrap();
    let (events, times) = trace::read(&trace, &cluster.node(1).data_dir);
    drop(trace);
    let disk = Disk::new(&cluster.node(1).data_dir, &events);
    let images = moments(&events, times.len()).into_iter().enumerate().map(|(number, cut)| {
        let unsynced = match number % 6 {
            0 | 2 | 4 => Unsynced::Nothing,
            1 | 3 => Unsynced::Some(number as u64),
            _ => Unsynced::Everything,
        };
        (cut, unsynced)
    });
    let cluster = &cluster;
    let checks = images.enumerate().map(|(number, (cut, unsynced))| {
        let (disk, puts, at) = (&disk, &puts, times[cut]);
        async move {
            let image = cluster.dir.path().join(format!("cut-{number}"));
            disk.image(cut, unsynced, &image);
            let what = format!("cut at line {cut} of the trace, of the unsynced {unsynced:?}");
            let node = Restarted::start(cluster, &image);
            node.has(puts, at, &what).await;
            drop(node);
            fs::remove_dir_all(&image).unwrap();
        }
    });
    futures::stream::iter(checks).buffer_unordered(2).collect::<()>().await;
}

/// Some at random, some between a write and the end of the sync that makes it durable, and the last.
fn moments(events: &[trace::Event], lines: usize) -> Vec<usize> {
    let mut dice = Dice::new(7);
    let syncs: Vec<_> =
        events.iter().filter(|event| matches!(event.call, trace::Call::Sync(_))).collect();
    let mut moments: Vec<usize> = (0..CUTS)
        .map(|number| {
            // Spread, so that every stretch of the run has its own.
            let sync = syncs[(number * syncs.len() + dice.below(syncs.len())) / CUTS];
            if dice.below(2) == 0 { sync.ended } else { sync.ended + 1 + dice.below(6) }
        })
        .map(|line| line.min(lines - 1))
        .collect();
    moments.push(lines - 1);
    moments
}

/// Starts node 1 under the trace.
fn start_traced(cluster: &mut Cluster) {
    let node = cluster.command(1);
    let mut strace = Command::new("strace");
    strace.args(trace::ARGUMENTS).args(["-e", trace::CALLS, "--seccomp-bpf", "-o"]);
    strace.arg(cluster.dir.path().join("trace")).arg(node.get_program()).args(node.get_args());
    let log = File::create(&cluster.node(1).log).unwrap();
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    cluster.run(1, strace);
}

/// Kills the traced node.
fn stop_traced(cluster: &mut Cluster) {
    // strace does not hand on a signal; the node's own number is in its lock.
    let pid = fs::read_to_string(cluster.node(1).data_dir.join("lock")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    cluster.ended(1);
}

/// Runs the node under the trace, with puts, until it is killed.
async fn traced_puts(cluster: &mut Cluster) -> Vec<Put> {
    start_traced(cluster);
    cluster.serving().await;
    let client = cluster.client();
    let writers = (0..WRITERS).map(|writer| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut puts = Vec::with_capacity(PUTS);
            for number in 0..PUTS {
                let key = format!("{writer}/{}", number % KEYS);
                put(&client, &key, &text(number)).await.unwrap();
                puts.push(Put { key, number, acknowledged: now() });
            }
            puts
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut puts = Vec::new();
    for writer in writers {
        puts.extend(writer.await.unwrap());
    }
    stop_traced(cluster);
    puts
}

/// A node on an image.
struct Restarted {
    child: Child,
    client: Client,
    log: PathBuf,
}

impl Restarted {
    fn start(cluster: &Cluster, image: &Path) -> Self {
        let log = image.with_extension("log");
        let [client, peer, admin] = [(); 3].map(|()| free_address());
        let mut flags = cluster.serve_flags(1);
        let mut set = |name: &str, value: String| {
            let at = flags.iter().position(|flag| flag == name).unwrap();
            flags[at + 1] = value;
        };
        set("--data-dir", image.display().to_string());
        set("--listen-client", client.clone());
        set("--listen-peer", peer.clone());
        set("--listen-admin", admin);
        set("--member", format!("1={peer},{client}"));
        let mut serve = conclave();
        serve.arg("serve").args(flags).stdin(Stdio::null()).stdout(Stdio::null());
        let child = serve.stderr(File::create(&log).unwrap()).spawn().unwrap();
        // Impatient: in between it is looked whether the node has ended.
        let client = Client::builder().endpoints([client]).follow_leader(false);
        Self { child, client: client.deadline(Duration::from_secs(5)).build().unwrap(), log }
    }

    /// Every key has what was put last before the cut, or later.
    async fn has(&self, puts: &[Put], cut: f64, what: &str) {
        let log = || fs::read_to_string(&self.log).unwrap();
        for writer in 0..WRITERS {
            for key in (0..KEYS).map(|key| format!("{writer}/{key}")) {
                let found = eventually(what, async || {
                    // It says so when it refuses the directory.
                    assert!(self.runs(), "{what}: it ended: {}", log());
                    get(&self.client, &key).await.or_else(|error| match error.is_not_found() {
                        true => Ok(String::new()),
                        false => Err(error.to_string()),
                    })
                })
                .await;
                let number = found.split_once(':').map(|(number, _)| number.parse().unwrap());
                assert!(number.is_none_or(|number| found == text(number)), "{what}: {key}");
                let acknowledged = puts.iter().filter(|put| put.key == key);
                let last = acknowledged.filter(|put| put.acknowledged < cut).map(|put| put.number);
                let last = last.max();
                assert!(number >= last, "{what}: {key} has {number:?}, not {last:?}\n{}", log());
            }
        }
    }

    fn runs(&self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        let options = rustix::process::WaitIdOptions::EXITED
            | rustix::process::WaitIdOptions::NOHANG
            | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap().is_none()
    }
}

impl Drop for Restarted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
