//! A power cut: data that was written but not synced is lost completely or in part.
//!
//! No file system here can lose data on request. A node therefore runs under a system-call trace,
//! which shows its writes and syncs of each file with their times. From the trace the test builds
//! the directories that a disk could hold if the power failed at some time, see [`disk`]. On each
//! of them a node must start, with every put that had been acknowledged by then. When a traced node
//! was killed, the model is compared with the real directory.

mod disk;
mod metadata;
mod rebuild;
mod trace;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use conclave_client::Client;
use conclave_types::ComponentId;
use futures::StreamExt;
use tokio::task::JoinSet;

use self::disk::{Dice, Disk, Unsynced};
use crate::{
    durability::{NO_STRACE, now, strace_works},
    harness::{Cluster, Setup, conclave, eventually, files, free_address, get, put, skip},
};

const WRITERS: usize = 4;
const PUTS: usize = 120;
/// Number of keys of each writer: a put replaces an older one.
const KEYS: usize = 5;
/// The number of cuts, spread over the run. For each, a node is started on a directory.
const CUTS: usize = 34;
/// The number of the log's syncs at the start of the second life that are each followed by a cut.
const STARTING_SYNCS: usize = 6;
/// The sync of the log that fails, in the test of a failed sync.
const FAILED_SYNC: &str = "inject=fdatasync:error=EIO:when=70";

/// A put: its key, when it was sent and when its response arrived.
#[derive(Clone)]
struct Put {
    key: String,
    number: usize,
    acknowledged: f64,
}

/// Returns a text. Most are small, some so large that sled's segments fill up and are reused.
fn text(number: usize) -> String {
    let bytes = if number.is_multiple_of(3) { 300_000 } else { 200 };
    format!("{number}:{}", "x".repeat(bytes))
}

/// The first life of the node ends in the middle of its work. The second begins with the data that
/// the first left in the kernel's memory.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_puts_survive_a_power_cut_at_any_moment() {
    check_cuts(End::Killed).await;
}

/// After a failed sync no write is acknowledged, and a restart loses no acknowledged one.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_puts_survive_a_power_cut_after_a_failed_sync() {
    check_cuts(End::FailedSync).await;
}

/// A rebuild of the log, cut off at any step, leaves one complete log.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_puts_survive_a_power_cut_during_a_rebuild() {
    rebuild::check_cuts_of_a_rebuild().await;
}

/// The end of the first life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    FailedSync,
}

async fn check_cuts(first_end: End) {
    if !strace_works() {
        return skip("acknowledged puts survive a power cut", NO_STRACE);
    }
    // With few entries in the log, sled's older segments are soon unused.
    let flags = ["--snapshot-entries=100", "--keep-entries=0"].map(str::to_owned).into();
    let mut cluster = Cluster::prepared(Setup { component: None, flags });
    cluster.nodes.truncate(1);
    let (puts, second_life) = traced_puts(&mut cluster, first_end).await;
    let (events, times) = read_trace(&cluster);
    let disk = Disk::new(&cluster.node(1).data_dir, &events);
    let mut cuts: Vec<_> = (contexts(&events, times.len()).into_iter().enumerate())
        .map(|(number, cut)| {
            let unsynced = match number % 6 {
                0 | 2 | 4 => Unsynced::Nothing,
                1 | 3 => Unsynced::Some(number as u64),
                _ => Unsynced::Everything,
            };
            (cut, unsynced)
        })
        .collect();
    // At its start, the second life changes what the first has made durable.
    let log = cluster.node(1).data_dir.join("log/db");
    let synced = (events.iter()).filter(|event| event.call == trace::Call::Sync(log.clone()));
    let after_syncs = synced.filter(|event| event.begun >= second_life).take(STARTING_SYNCS);
    cuts.extend(after_syncs.map(|event| (event.ended + 1, Unsynced::Nothing)));
    let images = cuts.into_iter().map(|(cut, unsynced)| (cut, unsynced, times[cut]));
    check_images(&cluster, &disk, images.collect(), &puts).await;
}

/// Starts a node on the disk of each cut: a line of the trace, the unsynced changes that are there,
/// and the time up to which the acknowledged puts must be there.
async fn check_images(
    cluster: &Cluster,
    disk: &Disk<'_>,
    cuts: Vec<(usize, Unsynced, f64)>,
    puts: &[Put],
) {
    let checks = cuts.into_iter().enumerate().map(|(number, (cut, unsynced, at))| async move {
        let image = cluster.dir.path().join(format!("cut-{number}"));
        disk.image(cut, unsynced, &image);
        let what = format!("cut at line {cut} of the trace, of the unsynced {unsynced:?}");
        let node = Restarted::start(cluster, &image);
        node.has(puts, at, &what).await;
        assert!(!image.join("log.rebuild").exists(), "{what}: a leftover of a rebuild");
        drop(node);
        fs::remove_dir_all(&image).unwrap();
    });
    futures::stream::iter(checks).buffer_unordered(2).collect::<()>().await;
}

/// Chooses the cuts: some at random, some between a write and the end of the sync that makes it
/// durable, and the end of the trace.
fn contexts(events: &[trace::Event], lines: usize) -> Vec<usize> {
    let mut dice = Dice::new(7);
    let syncs: Vec<_> =
        events.iter().filter(|event| matches!(event.call, trace::Call::Sync(_))).collect();
    let mut contexts: Vec<usize> = (0..CUTS)
        .map(|number| {
            // Spread, so that every part of the run has some.
            let sync = syncs[(number * syncs.len() + dice.below(syncs.len())) / CUTS];
            if dice.below(2) == 0 { sync.ended } else { sync.ended + 1 + dice.below(6) }
        })
        .map(|line| line.min(lines - 1))
        .collect();
    contexts.push(lines - 1);
    contexts
}

/// Starts node 1 under the trace. A second life continues the trace and the log of the first.
fn start_traced(cluster: &mut Cluster) {
    start_traced_with(cluster, &[]);
}

fn start_traced_with(cluster: &mut Cluster, arguments: &[&str]) {
    let node = cluster.command(1);
    let mut strace = traced(&node, &cluster.dir.path().join("trace"), arguments);
    let log = File::options().create(true).append(true).open(&cluster.node(1).log).unwrap();
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    cluster.run(1, strace);
}

/// Returns the command that runs a node under the trace.
fn traced(node: &Command, trace: &Path, arguments: &[&str]) -> Command {
    let mut strace = Command::new("strace");
    strace.args(trace::ARGUMENTS).args(["-e", trace::CALLS, "--seccomp-bpf"]).args(arguments);
    strace.args(["-A", "-o"]).arg(trace).arg(node.get_program()).args(node.get_args());
    strace
}

/// Kills the traced node, and asserts that the trace has everything that the node did. Returns the
/// number of lines of the trace.
fn stop_traced(cluster: &mut Cluster) -> usize {
    kill_traced(&cluster.node(1).data_dir);
    cluster.ended(1);
    trace::complete_interrupted_calls(&cluster.dir.path().join("trace"));
    let data_dir = &cluster.node(1).data_dir;
    let (events, times) = read_trace(cluster);
    let image = cluster.dir.path().join("model");
    Disk::new(data_dir, &events).image(times.len(), Unsynced::Everything, &image);
    assert_same(&image, data_dir);
    fs::remove_dir_all(&image).unwrap();
    times.len()
}

/// Kills the traced node that runs on a directory.
fn kill_traced(data_dir: &Path) {
    // strace does not forward a signal. The node's own process id is in its lock file.
    let pid = fs::read_to_string(data_dir.join("lock")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn read_trace(cluster: &Cluster) -> (Vec<trace::Event>, Vec<f64>) {
    let trace = fs::read_to_string(cluster.dir.path().join("trace")).unwrap();
    trace::read(&trace, &cluster.node(1).data_dir, Vec::new())
}

/// Asserts that two directories have the same files, except for unfinished ones.
fn assert_same(model: &Path, real: &Path) {
    let names = |dir: &Path| -> BTreeSet<PathBuf> {
        let names = files(dir).into_iter().map(|path| path.strip_prefix(dir).unwrap().to_owned());
        names.filter(|name| name.extension().is_none_or(|suffix| suffix != "tmp")).collect()
    };
    assert_eq!(names(model), names(real), "the names in the model, and the real ones");
    for name in names(real) {
        let same = fs::read(model.join(&name)).unwrap() == fs::read(real.join(&name)).unwrap();
        assert!(same, "{} is not the same in the model", name.display());
    }
}

/// Runs the node under the trace, with puts, in two lives. Also returns the first line of the
/// second in the trace.
async fn traced_puts(cluster: &mut Cluster, first_end: End) -> (Vec<Put>, usize) {
    let puts = Arc::<Mutex<Vec<Put>>>::default();
    let arguments: &[&str] = match first_end {
        End::Killed => &[],
        End::FailedSync => &["-e", FAILED_SYNC],
    };
    start_traced_with(cluster, arguments);
    cluster.serving().await;
    let writers = write(&cluster.client(), &puts, 0, PUTS);
    match first_end {
        End::Killed => {
            let half = WRITERS * PUTS / 2;
            eventually("half of the puts are done", async || match puts.lock().unwrap().len() {
                done if done >= half => Ok(()),
                done => Err(format!("{done} of {half}")),
            })
            .await;
        }
        End::FailedSync => {
            eventually("a sync fails", async || {
                let log = fs::read_to_string(&cluster.node(1).log).unwrap();
                if log.contains("Input/output error") { Ok(()) } else { Err(log) }
            })
            .await;
        }
    }
    let second_life = stop_traced(cluster);
    let begun = writers.join_all().await.into_iter().max().unwrap();
    assert!(begun < PUTS, "the first life ended after all of its puts");

    start_traced(cluster);
    cluster.serving().await;
    another_component(cluster).await;
    let ends = write(&cluster.client(), &puts, begun, PUTS).join_all().await;
    assert_eq!(ends, [PUTS; WRITERS]);
    stop_traced(cluster);
    let puts = std::mem::take(&mut *puts.lock().unwrap());
    (puts, second_life)
}

/// Starts puts by several clients at once, from a number on. Each returns the number after its last
/// attempt, at the first error or at the end.
fn write(client: &Client, puts: &Arc<Mutex<Vec<Put>>>, from: usize, to: usize) -> JoinSet<usize> {
    let writers = (0..WRITERS).map(|writer| {
        let (client, puts) = (client.clone(), Arc::clone(puts));
        async move {
            for number in from..to {
                let key = format!("{writer}/{}", number % KEYS);
                if put(&client, &key, &text(number)).await.is_err() {
                    return number + 1;
                }
                puts.lock().unwrap().push(Put { key, number, acknowledged: now() });
            }
            to
        }
    });
    writers.collect()
}

/// Pushes and activates another component: the key-value store with a few meaningless
/// bytes appended.
async fn another_component(cluster: &Cluster) {
    let mut component = conclave_cli::DEFAULT_MACHINE.to_vec();
    // A custom section: its kind, its size, its name.
    component.extend_from_slice(b"\0\x06\x05other");
    let id = ComponentId::of(&component);
    let client = cluster.client();
    client.push_component(id.0, component.into(), |_| {}).await.unwrap();
    let endpoint = &cluster.node(1).client;
    // The node rehearses the component first.
    eventually("the component is active", async || {
        let mut activate = conclave();
        activate.args(["component", "activate", &id.to_string(), "--endpoints", endpoint]);
        let done = activate.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        if done.status.success() { Ok(()) } else { Err(said) }
    })
    .await;
}

/// A node that was started on an image.
struct Restarted {
    child: Child,
    client: Client,
    log: PathBuf,
}

impl Restarted {
    fn start(cluster: &Cluster, image: &Path) -> Self {
        Self::start_with(cluster, image, |serve| serve)
    }

    /// Starts a node by the command that `wrap` makes of the usual one.
    fn start_with(cluster: &Cluster, image: &Path, wrap: impl FnOnce(Command) -> Command) -> Self {
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
        serve.arg("serve").args(flags);
        let mut serve = wrap(serve);
        serve.stdin(Stdio::null()).stdout(Stdio::null());
        let child = serve.stderr(File::create(&log).unwrap()).spawn().unwrap();
        // Short deadlines, so that the test can check in between whether the node has ended.
        let client = Client::builder().endpoints([client]).follow_leader(false);
        Self { child, client: client.deadline(Duration::from_secs(5)).build().unwrap(), log }
    }

    /// Asserts that every key has the last value put before the cut, or a later one.
    async fn has(&self, puts: &[Put], cut: f64, what: &str) {
        let log = || fs::read_to_string(&self.log).unwrap();
        for writer in 0..WRITERS {
            for key in (0..KEYS).map(|key| format!("{writer}/{key}")) {
                let found = eventually(what, async || {
                    // A node that refuses the directory ends with the reason in its log.
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
