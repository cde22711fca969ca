//! Causes faults and ends them.

use std::{
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use conclave_client::{
    CallOptions, Client,
    proto::{
        cluster::Node,
        kv::{self as pb, BatchRequest, BatchResponse, PutRequest, put_request},
    },
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use super::Setup;
use crate::{
    clock::Clock,
    cluster::{Cluster, PATIENCE},
    disk::Disk,
    history::{Kind, Operation, Outcome, Recorder, Request, Step},
    late_answers,
    proxy::{Link, Part, Shape},
    schedule::{Event, Fault, Schedule, Target},
    workload::{KEYS_LAST, KEYS_OF_FAULTS, SINGLE_KEYS},
};

/// Fuel limit of one call. It has the lowest allowed value, so that a call can exceed it quickly.
/// The clients' calls need a few thousand.
pub(super) const FUEL_PER_CALL: u64 = 1_000_000;
/// The environment variable that sets the limit.
const FUEL_VARIABLE: &str = "CONCLAVE_FUEL_PER_CALL";
/// Pause between two requests for a node's status.
const STATUS_PAUSE: Duration = Duration::from_millis(50);
/// Maximum time to wait for a leader before a fault.
const LEADER_TIME_MAX: Duration = Duration::from_millis(700);
/// Number of two-byte characters in a text. Checking each takes several instructions.
const TRAPPING_CHARACTERS: usize = 400_000;
/// Pause between two traps.
const TRAP_PAUSE: Duration = Duration::from_millis(150);
/// Pause between the late answers of one follower and those of the next.
const LATE_ANSWERS_PAUSE: Duration = Duration::from_millis(5);
/// Pause between the releases of the links of one node.
const RELEASE_PAUSE: Duration = Duration::from_millis(5);
/// Pause between the release of a node's answers and the release of its peers' requests.
const REQUESTS_PAUSE: Duration = Duration::from_millis(50);

/// A fault that was caused.
#[derive(Clone, Debug)]
pub struct Happened {
    /// Time of its beginning, relative to the beginning of the history.
    pub begun: Duration,
    /// Time of its end.
    pub ended: Duration,
    /// Whether the fault could be caused.
    pub happened: bool,
    /// The affected nodes, or the reason why the fault could not be caused.
    pub text: String,
}

/// The cluster, and the resources that faults need.
pub(super) struct Nemesis {
    pub(super) cluster: Arc<Cluster>,
    disks: Vec<Option<Disk>>,
    clocks: Vec<Option<Clock>>,
    component: Option<PathBuf>,
}

impl Nemesis {
    /// Gives the nodes separate disks and clocks, if the schedule needs them.
    pub(super) fn prepare(
        mut cluster: Cluster,
        setup: &Setup,
        schedule: &Schedule,
    ) -> Result<Self> {
        let needs = |is: fn(&Fault) -> bool| schedule.events.iter().any(|event| is(&event.fault));
        let (mut disks, mut clocks) = (Vec::new(), Vec::new());
        for node in &mut cluster.nodes {
            let path = |name: &str| cluster.dir.path().join(format!("{name}-{}", node.id));
            node.set_variable(FUEL_VARIABLE, FUEL_PER_CALL.to_string());
            disks.push(if needs(|fault| matches!(fault, Fault::HangDisk(_))) {
                let at = path("disk");
                let disk = Disk::mount(&path("image"), &at)?;
                node.data_dir = at.join("data");
                Some(disk)
            } else {
                None
            });
            clocks.push(if needs(|fault| matches!(fault, Fault::Clock(..))) {
                let clock = Clock::new(&path("clock"))?.context("libfaketime is not installed")?;
                for (name, value) in clock.environment() {
                    node.set_variable(&name, value);
                }
                Some(clock)
            } else {
                None
            });
        }
        let component = setup.component.clone();
        Ok(Self { cluster: Arc::new(cluster), disks, clocks, component })
    }

    /// Causes a fault, waits for its duration and ends it.
    pub(super) async fn cause(&self, event: &Event, recorder: &Arc<Recorder>) -> Happened {
        let begun = recorder.now();
        let lasts = Duration::from_millis(event.for_ms);
        let attempt = self.attempt(&event.fault, lasts, recorder).await;
        let happened = attempt.is_ok();
        let text = match attempt {
            Ok(text) => format!("{}{text}", event.fault),
            Err(error) => format!("{}: {error:#}", event.fault),
        };
        Happened { begun, ended: recorder.now(), happened, text }
    }

    async fn attempt(
        &self,
        fault: &Fault,
        lasts: Duration,
        recorder: &Arc<Recorder>,
    ) -> Result<String> {
        match *fault {
            Fault::Pause(_) | Fault::Kill(_) | Fault::Stop(_) | Fault::KillAll => {
                self.process(fault, lasts).await
            }
            Fault::HangDisk(target) => {
                let id = self.resolve(target).await;
                let disk = self.disks[id as usize - 1].as_ref().context("no disk of its own")?;
                disk.hang()?;
                sleep(lasts).await;
                disk.work()?;
                Ok(said(id))
            }
            Fault::Clock(target, seconds) => {
                let id = self.resolve(target).await;
                let clock = self.clocks[id as usize - 1].as_ref().context("no clock of its own")?;
                clock.set(seconds)?;
                sleep(lasts).await;
                clock.set(0)?;
                Ok(said(id))
            }
            Fault::Trap => self.trap(lasts, recorder).await,
            Fault::Diverge(target) => self.diverge(target, lasts).await,
            Fault::Snapshot(target) => {
                let id = self.resolve(target).await;
                let client = self.cluster.client_of(id)?;
                let index = timeout(lasts + Duration::from_secs(5), client.snapshot()).await??;
                Ok(format!("{} at index {index}", said(id)))
            }
            Fault::LateAnswers(paused) => {
                let plan = late_answers::Plan { paused, between: LATE_ANSWERS_PAUSE };
                let (old, new) = late_answers::happen(&self.cluster, recorder, plan).await?;
                Ok(format!(" (node {old}; node {new} has acknowledged a write since)"))
            }
            Fault::Upgrade => timeout(PATIENCE, self.upgrade()).await?,
            _ => self.network(fault, lasts).await,
        }
    }

    async fn process(&self, fault: &Fault, lasts: Duration) -> Result<String> {
        let cluster = &self.cluster;
        match *fault {
            Fault::Pause(target) => {
                let id = self.resolve(target).await;
                cluster.pause(id)?;
                sleep(lasts).await;
                cluster.resume(id)?;
                Ok(said(id))
            }
            Fault::Kill(target) => {
                let id = self.resolve(target).await;
                self.kill(id).await?;
                sleep(lasts).await;
                self.start(id)?;
                Ok(said(id))
            }
            Fault::Stop(target) => {
                let id = self.resolve(target).await;
                let asked = Instant::now();
                let status = cluster.stop(id).await?;
                let took = asked.elapsed();
                sleep(lasts).await;
                self.start(id)?;
                Ok(format!("{}, {status} after {took:?}", said(id)))
            }
            _ => {
                for id in cluster.ids() {
                    self.kill(id).await?;
                }
                sleep(lasts).await;
                for id in cluster.ids() {
                    self.start(id)?;
                }
                Ok(String::new())
            }
        }
    }

    /// Kills a node. A process that waits for its disk does not end, so the disk is released first.
    async fn kill(&self, id: u64) -> Result<()> {
        if let Some(disk) = &self.disks[id as usize - 1] {
            let _ = disk.work();
        }
        let cluster = Arc::clone(&self.cluster);
        tokio::task::spawn_blocking(move || cluster.kill(id)).await?
    }

    /// Starts a node, unless another fault has started it already.
    fn start(&self, id: u64) -> Result<()> {
        if self.cluster.is_running(id) { Ok(()) } else { self.cluster.start_node(id) }
    }

    async fn network(&self, fault: &Fault, lasts: Duration) -> Result<String> {
        let network = self.cluster.network()?;
        let set = |links: &[&Link], change: &dyn Fn(&mut Shape)| {
            links.iter().for_each(|link| link.set(change));
        };
        let (links, nodes): (Vec<&Link>, String) = match *fault {
            Fault::Isolate(target)
            | Fault::Hold(target)
            | Fault::Refuse(target)
            | Fault::Delay(target, _)
            | Fault::Throttle(target, _) => {
                let id = self.resolve(target).await;
                (network.around(id).collect(), said(id))
            }
            Fault::Deafen(target) | Fault::HoldInbound(target) => {
                let id = self.resolve(target).await;
                (network.into(id).collect(), said(id))
            }
            Fault::Mute(target) => {
                let id = self.resolve(target).await;
                (network.out_of(id).collect(), said(id))
            }
            Fault::Cut(one, other) | Fault::CutOneWay(one, other) => {
                let (one, other) = (self.resolve(one).await, self.resolve(other).await);
                anyhow::ensure!(one != other, "both are node {one}");
                let links = match fault {
                    Fault::Cut(..) => network.between(one, other).to_vec(),
                    _ => vec![network.link(one, other)],
                };
                (links, format!(" (nodes {one} and {other})"))
            }
            _ => (network.all().collect(), String::new()),
        };
        match *fault {
            Fault::Hold(_) | Fault::HoldInbound(_) => links.iter().for_each(|link| link.hold()),
            Fault::Refuse(_) => links.iter().for_each(|link| link.refuse()),
            Fault::Delay(_, ms) | Fault::DelayAll(ms) => {
                set(&links, &|shape| shape.delay = Duration::from_millis(ms));
            }
            Fault::Throttle(_, rate) => set(&links, &|shape| shape.bytes_per_second = Some(rate)),
            _ => links.iter().for_each(|link| link.cut()),
        }
        sleep(lasts).await;
        if let Fault::Hold(_) | Fault::HoldInbound(_) = fault {
            // Late answers are released first, one node after the other, so that they are not taken
            // for new ones.
            for link in &links {
                link.set_part(Part::Responses, |shape| *shape = Shape::default());
                sleep(RELEASE_PAUSE).await;
            }
            sleep(REQUESTS_PAUSE).await;
        }
        links.iter().for_each(|link| link.repair());
        Ok(nodes)
    }

    /// Sends batches that exceed the fuel limit of a call. They name keys that clients use, and
    /// must not change them.
    async fn trap(&self, lasts: Duration, recorder: &Recorder) -> Result<String> {
        let client = self.cluster.client()?;
        let begun = Instant::now();
        let (mut traps, mut others) = (0, 0);
        while begun.elapsed() < lasts {
            let at = recorder.now();
            // No client puts such a value.
            let value = u64::MAX - at.as_micros() as u64;
            let age = at.as_millis() / KEYS_LAST.as_millis();
            let key = format!("{age}/{}", value % SINGLE_KEYS);
            let options = CallOptions::write().deadline(Duration::from_secs(2));
            let batch = trapping_batch(&key, value);
            let answer: Result<BatchResponse, _> =
                client.call("kv.v1.KV/Batch", &batch, &options).await;
            match answer {
                Err(error) if error.trap_kind().is_some() => traps += 1,
                Err(_) => others += 1,
                Ok(_) => anyhow::bail!("a batch that should trap did not"),
            }
            // The call traps, so it has no effect, even if its answer is lost.
            recorder.add(Operation {
                client: u32::MAX,
                node: None,
                kind: Kind::Write,
                request: Request::of(Step::Put(key, value)),
                begun: at,
                ended: recorder.now(),
                outcome: Outcome::Failed("it trapped".to_owned()),
            });
            sleep(TRAP_PAUSE).await;
        }
        Ok(format!(" ({traps} times, {others} without a trap's answer)"))
    }

    /// Makes a node skip an entry that the others apply, so that it diverges. It must then repair itself.
    async fn diverge(&self, target: Target, lasts: Duration) -> Result<String> {
        let id = self.resolve(target).await;
        let ends = Instant::now() + lasts;
        let index =
            timeout(lasts, self.put_of_its_own(id)).await.context("no put was applied")??;
        self.kill(id).await?;
        let skipped = self.skip(id, index).await;
        self.start(id)?;
        skipped?;
        let left = ends.saturating_duration_since(Instant::now());
        let diverged = timeout(left, self.diverged(id)).await;
        let divergence = diverged.with_context(|| format!("node {id} has not diverged"))??;
        Ok(format!("{} at entry {index}: {divergence}", said(id)))
    }

    /// Puts a key that no client uses, and waits until a node has applied it. Returns the entry's index.
    async fn put_of_its_own(&self, id: u64) -> Result<u64> {
        let client = self.cluster.client()?;
        let put = put(format!("{KEYS_OF_FAULTS}diverge-{id}"), "x".to_owned());
        let index = loop {
            let options = CallOptions::write().deadline(Duration::from_secs(1));
            let request = put.encode_to_vec();
            match client.call_raw_with("kv.v1.KV/Put", request, &options).await {
                Ok(answer) => break answer.index.context("an answer without an index")?,
                Err(_) => sleep(STATUS_PAUSE).await,
            }
        };
        loop {
            match self.own_status(id).await {
                Ok(own) if own.applied >= index => return Ok(index),
                _ => sleep(STATUS_PAUSE).await,
            }
        }
    }

    /// The status that a node reports of itself.
    async fn own_status(&self, id: u64) -> Result<Node> {
        let status = self.cluster.status_of(id).await?;
        let own = status.nodes.into_iter().find(|node| node.id == id);
        own.with_context(|| format!("node {id} is not in its own status"))
    }

    /// Makes a stopped node skip an entry.
    async fn skip(&self, id: u64, index: u64) -> Result<()> {
        let mut recover = Command::new(self.cluster.binary());
        recover.args(["recover", "--uncommitted", "--trap-entry", &index.to_string()]);
        recover.arg("--data-dir").arg(&self.cluster.node(id).data_dir);
        recover.arg("--master-key-file").arg(self.cluster.master_key());
        let output = tokio::task::spawn_blocking(move || recover.output()).await??;
        let why = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", why.trim());
        Ok(())
    }

    /// Waits until a node has diverged. Returns the description of the divergence.
    async fn diverged(&self, id: u64) -> Result<String> {
        loop {
            match self.own_status(id).await {
                Ok(own) if own.divergences > 0 => return Ok(own.divergence),
                _ => sleep(STATUS_PAUSE).await,
            }
        }
    }

    /// Activates the component that is not active.
    async fn upgrade(&self) -> Result<String> {
        let client = self.cluster.client()?;
        let path = self.component.as_ref().context("no other component")?;
        let components = client.components().await?;
        let target = match components.iter().find(|component| !component.active) {
            Some(component) => component.id.clone(),
            None => self.push(&client, path).await?,
        };
        let rehearsed = client.rehearse_component(&target).await?;
        let activated = client.activate_component(&target, true).await;
        let activated = match activated {
            Ok(activated) => format!("at index {}", activated.index),
            Err(error) => format!("not: {error}"),
        };
        Ok(format!(" (ready: {}, activated {activated})", rehearsed.ready))
    }

    async fn push(&self, client: &Client, path: &std::path::Path) -> Result<String> {
        let component = std::fs::read(path)?;
        let id = Sha256::digest(&component).into();
        Ok(client.push_component(id, component.into(), |_| {}).await?.id)
    }

    /// The id of the targeted node.
    async fn resolve(&self, target: Target) -> u64 {
        let leader = match target {
            Target::Node(id) => return id,
            _ => self.cluster.leader_within(LEADER_TIME_MAX).await.unwrap_or(1),
        };
        match target {
            Target::Follower(number) => {
                let nodes = self.cluster.nodes.len() as u64;
                (leader - 1 + number) % nodes + 1
            }
            _ => leader,
        }
    }

    /// Ends all faults.
    pub(super) fn repair(&self) -> Result<()> {
        for disk in self.disks.iter().flatten() {
            let _ = disk.work();
        }
        for clock in self.clocks.iter().flatten() {
            clock.set(0)?;
        }
        self.cluster.repair()
    }
}

/// A batch that puts a key, and a text that needs more than [`FUEL_PER_CALL`] to validate.
fn trapping_batch(key: &str, value: u64) -> BatchRequest {
    let operation = |key: &str, text: String| pb::Operation {
        operation: Some(pb::operation::Operation::Put(put(key.to_owned(), text))),
    };
    let long = "\u{e9}".repeat(TRAPPING_CHARACTERS);
    BatchRequest { operations: vec![operation(key, value.to_string()), operation("trap", long)] }
}

fn put(key: String, text: String) -> PutRequest {
    let content = Some(put_request::Content::Text(text));
    PutRequest { key, content, ..PutRequest::default() }
}

fn said(id: u64) -> String {
    format!(" (node {id})")
}
