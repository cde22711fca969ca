//! Clusters of real `conclave serve` processes on loopback.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use conclave_testing::cluster::{Cluster, Options};
//!
//! let cluster = Cluster::start(Options::new("target/debug/conclave").proxied()).await?;
//! let leader = cluster.leader().await?;
//! cluster.pause(leader)?;
//! for link in cluster.network()?.around(leader) {
//!     link.cut();
//! }
//! # Ok(()) }
//! ```
//!
//! Dropping a [`Cluster`] kills its processes. All methods take `&self`, so that faults can happen
//! while clients run.

mod setup;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use conclave_client::{Client, proto::cluster::StatusResponse};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;

pub use self::setup::{Options, Turn, free_address, turn};
use crate::proxy::Network;

/// Generous timeout for operations that are normally much faster. A test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Number of lines of a node's log that a failure shows.
const LOG_LINES: usize = 40;

/// The addresses, files and process of one node.
pub struct Node {
    /// The node's id, starting at 1.
    pub id: u64,
    /// Address for clients.
    pub client: String,
    /// Address that the node's peers connect to.
    pub peer: String,
    /// Address on which the node listens for its peers. It equals `peer` if there is no proxy.
    pub listen_peer: String,
    /// Address of the admin port.
    pub admin: String,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The file of the node's log messages.
    pub log: PathBuf,
    process: Mutex<Process>,
    starts: AtomicU64,
    spared: AtomicBool,
}

#[derive(Default)]
struct Process {
    child: Option<Child>,
    paused: bool,
    /// Exit statuses of processes that no test ended.
    ended_by_itself: Vec<ExitStatus>,
    environment: Vec<(String, String)>,
}

impl Node {
    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets an environment variable of the node, effective from its next start.
    pub fn set_variable(&self, name: &str, value: String) {
        let environment = &mut self.process().environment;
        environment.retain(|(other, _)| other != name);
        environment.push((name.to_owned(), value));
    }

    /// Number of times that the node was started. It changes with every restart.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Acquire)
    }
}

/// Nodes on loopback, killed on drop.
pub struct Cluster {
    /// The nodes, in the order of their ids.
    pub nodes: Vec<Node>,
    /// The directory of all files that the cluster writes.
    pub dir: TempDir,
    options: Options,
    network: Option<Network>,
}

impl Cluster {
    /// Starts all nodes and waits until they serve.
    pub async fn start(options: Options) -> Result<Self> {
        let cluster = Self::prepared(options).await?;
        cluster.start_all()?;
        cluster.serving().await?;
        Ok(cluster)
    }

    /// Chooses addresses, and creates a directory and a master key. Starts no node.
    pub async fn prepared(options: Options) -> Result<Self> {
        let dir = match &options.parent {
            Some(parent) => {
                fs::create_dir_all(parent)?;
                TempDir::new_in(parent)
            }
            None => TempDir::new(),
        };
        let dir = dir.context("cannot make the cluster's directory")?;
        let key = dir.path().join("master.key");
        let made = Command::new(&options.binary).args(["key", "generate"]).arg(&key).output();
        let made = made.with_context(|| format!("cannot run {}", options.binary.display()))?;
        ensure!(made.status.success(), "no master key: {}", String::from_utf8_lossy(&made.stderr));
        let nodes = (1..=options.nodes).map(|id| {
            let peer = free_address();
            let listen_peer = if options.proxied { free_address() } else { peer.clone() };
            Node {
                id,
                client: free_address(),
                peer,
                listen_peer,
                admin: free_address(),
                data_dir: dir.path().join(format!("node-{id}")),
                log: dir.path().join(format!("node-{id}.log")),
                process: Mutex::default(),
                starts: AtomicU64::new(0),
                spared: AtomicBool::new(false),
            }
        });
        let nodes: Vec<_> = nodes.collect();
        let network = match options.proxied {
            true => Some(setup::proxies(&nodes).await?),
            false => None,
        };
        Ok(Self { nodes, dir, options, network })
    }

    /// The ids of all nodes.
    pub fn ids(&self) -> impl Iterator<Item = u64> + Clone + use<> {
        1..=self.nodes.len() as u64
    }

    /// The node with this id.
    ///
    /// # Panics
    /// Panics if there is no node with this id.
    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[id as usize - 1]
    }

    /// The network between the nodes.
    ///
    /// # Errors
    /// Fails for a cluster without proxies: see [`Options::proxied`].
    pub fn network(&self) -> Result<&Network> {
        self.network.as_ref().context("this cluster has no proxies between its nodes")
    }

    /// The program that the nodes run.
    pub fn binary(&self) -> &Path {
        &self.options.binary
    }

    /// The file with the master key.
    pub fn master_key(&self) -> PathBuf {
        self.dir.path().join("master.key")
    }

    /// The flags of `conclave serve` for a node.
    pub fn serve_flags(&self, id: u64) -> Vec<String> {
        let node = self.node(id);
        let mut flags = Vec::new();
        let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
        flag("--node-id", id.to_string());
        flag("--cluster-id", "test".to_owned());
        flag("--data-dir", node.data_dir.display().to_string());
        flag("--listen-client", node.client.clone());
        flag("--listen-peer", node.listen_peer.clone());
        flag("--listen-admin", node.admin.clone());
        flag("--master-key-file", self.master_key().display().to_string());
        for member in &self.nodes {
            flag("--member", format!("{}={},{}", member.id, member.peer, member.client));
        }
        if let Some(component) = &self.options.component {
            flag("--component", component.display().to_string());
        }
        flags.extend(self.options.flags.iter().cloned());
        flags
    }

    /// Starts a node, for the first time or again.
    pub fn start_node(&self, id: u64) -> Result<()> {
        let node = self.node(id);
        let mut process = node.process();
        ensure!(process.child.is_none(), "node {id} runs already");
        let log = File::options().create(true).append(true).open(&node.log)?;
        let mut command = Command::new(&self.options.binary);
        command.arg("serve").args(self.serve_flags(id));
        command.envs(process.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start node {id}"))?;
        if let Some(network) = &self.network {
            network.is_process(id, child.id());
        }
        node.starts.fetch_add(1, Ordering::AcqRel);
        process.child = Some(child);
        process.paused = false;
        Ok(())
    }

    /// Starts all nodes.
    pub fn start_all(&self) -> Result<()> {
        self.ids().try_for_each(|id| self.start_node(id))
    }

    /// Kills a node (SIGKILL) and waits until its process is gone.
    pub fn kill(&self, id: u64) -> Result<()> {
        let mut process = self.node(id).process();
        let Some(mut child) = process.child.take() else { return Ok(()) };
        if let Some(status) = child.try_wait()? {
            process.ended_by_itself.push(status);
            return Ok(());
        }
        child.kill().with_context(|| format!("cannot kill node {id}"))?;
        child.wait().with_context(|| format!("cannot wait for node {id}"))?;
        Ok(())
    }

    /// Stops a node (SIGTERM) and waits until its process is gone.
    pub async fn stop(&self, id: u64) -> Result<ExitStatus> {
        self.resume(id)?;
        if let Some(status) = self.try_ended(id)? {
            self.node(id).process().ended_by_itself.push(status);
            return Ok(status);
        }
        self.signal(id, Signal::TERM)?;
        self.ended(id).await
    }

    /// Waits until the process of a node is gone.
    pub async fn ended(&self, id: u64) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.try_ended(id)? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("node {id} does not stop\n{}", self.log_tail(id));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn try_ended(&self, id: u64) -> Result<Option<ExitStatus>> {
        let mut process = self.node(id).process();
        let child = process.child.as_mut().with_context(|| format!("node {id} does not run"))?;
        let status = child.try_wait()?;
        if status.is_some() {
            process.child = None;
        }
        Ok(status)
    }

    /// Pauses a node (SIGSTOP). Its connections stay open.
    pub fn pause(&self, id: u64) -> Result<()> {
        self.signal(id, Signal::STOP)?;
        self.node(id).process().paused = true;
        Ok(())
    }

    /// Resumes a paused node (SIGCONT).
    pub fn resume(&self, id: u64) -> Result<()> {
        if self.is_running(id) {
            self.signal(id, Signal::CONT)?;
        }
        self.node(id).process().paused = false;
        Ok(())
    }

    /// Sends a signal to the process of a node.
    pub fn signal(&self, id: u64, signal: Signal) -> Result<()> {
        let process = self.node(id).process();
        let child = process.child.as_ref().with_context(|| format!("node {id} does not run"))?;
        kill_process(Pid::from_child(child), signal)
            .with_context(|| format!("cannot send a signal to node {id}"))
    }

    /// Returns true if a node was started and no test has ended it.
    pub fn is_running(&self, id: u64) -> bool {
        self.node(id).process().child.is_some()
    }

    /// Returns true if a node runs and is not paused.
    pub fn is_active(&self, id: u64) -> bool {
        let process = self.node(id).process();
        process.child.is_some() && !process.paused
    }

    /// Sets whether the clients of a workload send no requests to a node.
    pub fn spare(&self, id: u64, spared: bool) {
        self.node(id).spared.store(spared, Ordering::Release);
    }

    /// Returns true if the clients of a workload send no requests to a node.
    pub fn is_spared(&self, id: u64) -> bool {
        self.node(id).spared.load(Ordering::Acquire)
    }

    /// The process id of a node.
    pub fn pid(&self, id: u64) -> Option<u32> {
        self.node(id).process().child.as_ref().map(Child::id)
    }

    /// Fails if the node's process has ended by itself. The error contains the end of its log.
    pub fn check_running(&self, id: u64) -> Result<()> {
        let mut process = self.node(id).process();
        let child = process.child.as_mut().with_context(|| format!("node {id} does not run"))?;
        let ended = child.try_wait()?;
        drop(process);
        ensure!(ended.is_none(), "node {id} has ended by itself: {ended:?}\n{}", self.log_tail(id));
        Ok(())
    }

    /// Failures that a node must never have: its process ended by itself, or one of its threads
    /// or tasks panicked.
    pub fn failures_of(&self, id: u64) -> Vec<String> {
        let mut failures = Vec::new();
        {
            let process = self.node(id).process();
            let ended = process.ended_by_itself.iter();
            failures.extend(ended.map(|status| format!("node {id} has ended by itself: {status}")));
        }
        let log = fs::read(&self.node(id).log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let panics = log.lines().filter(|line| line.contains("panicked at"));
        failures.extend(panics.map(|line| format!("node {id}: {line}")));
        failures
    }

    /// The last lines of a node's log.
    pub fn log_tail(&self, id: u64) -> String {
        let log = fs::read(&self.node(id).log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// A client for all nodes that follows the leader.
    pub fn client(&self) -> Result<Client> {
        let endpoints = self.nodes.iter().map(|node| node.client.clone());
        Ok(Client::builder().endpoints(endpoints).deadline(PATIENCE).build()?)
    }

    /// A client that sends requests to one node only.
    pub fn client_of(&self, id: u64) -> Result<Client> {
        let endpoint = self.node(id).client.clone();
        let client = Client::builder().endpoints([endpoint]).follow_leader(false);
        Ok(client.deadline(PATIENCE).build()?)
    }

    /// The cluster's status as one node reports it, without waiting for other nodes.
    pub async fn status_of(&self, id: u64) -> Result<StatusResponse> {
        let endpoint = self.node(id).client.clone();
        let client = Client::builder().endpoints([endpoint]).follow_leader(false);
        Ok(client.deadline(Duration::from_secs(3)).build()?.status().await?)
    }

    /// Waits until the cluster has a leader.
    pub async fn serving(&self) -> Result<()> {
        self.leader().await.map(drop)
    }

    /// Waits until a reachable node reports a leader, and returns the leader's id.
    pub async fn leader(&self) -> Result<u64> {
        self.leader_within(PATIENCE).await
    }

    /// Same as [`Cluster::leader`], with this timeout.
    pub async fn leader_within(&self, patience: Duration) -> Result<u64> {
        eventually("a node leads", patience, async || {
            let active: Vec<u64> = self.ids().filter(|id| self.is_active(*id)).collect();
            let mut why = "no node runs".to_owned();
            for id in active {
                // Uses a new client for each node, because a clone would remember unresponsive nodes.
                match tokio::time::timeout(Duration::from_secs(1), self.status_of(id)).await {
                    Ok(Ok(status)) => {
                        let leads = |id| status.leader == id && self.is_active(id);
                        match self.ids().find(|id| leads(*id)) {
                            Some(leader) => return Ok(leader),
                            None => why = format!("node {id} names {}", status.leader),
                        }
                    }
                    Ok(Err(error)) => why = error.to_string(),
                    Err(_) => why = format!("node {id} does not answer"),
                }
            }
            Err(why)
        })
        .await
    }

    /// Waits until one of `candidates` reports itself as the leader. Returns its id.
    pub async fn leads(&self, candidates: &[u64]) -> Result<u64> {
        eventually("one of these leads", PATIENCE, async || {
            for id in candidates {
                let status =
                    tokio::time::timeout(Duration::from_secs(1), self.status_of(*id)).await;
                if matches!(status, Ok(Ok(status)) if status.leader == *id) {
                    return Ok(*id);
                }
            }
            Err(format!("{candidates:?}"))
        })
        .await
    }

    /// Waits until these nodes have applied the whole log.
    pub async fn caught_up(&self, ids: &[u64], patience: Duration) -> Result<()> {
        let client = self.client()?;
        eventually("the nodes have applied the whole log", patience, async || {
            let status = client.status().await.map_err(|error| error.to_string())?;
            let nodes: Vec<_> = status.nodes.iter().filter(|n| ids.contains(&n.id)).collect();
            let most = status.nodes.iter().map(|node| node.last_log).max().unwrap_or_default();
            if nodes.iter().all(|node| node.role != "unreachable" && node.applied == most) {
                Ok(())
            } else {
                Err(format!("{nodes:?}"))
            }
        })
        .await
    }

    /// Repairs all links, resumes paused nodes, and starts nodes that do not run.
    pub fn repair(&self) -> Result<()> {
        if let Some(network) = &self.network {
            network.repair();
        }
        for id in self.ids() {
            match self.is_running(id) {
                true => self.resume(id)?,
                false => self.start_node(id)?,
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Some(mut child) = node.process().child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                show(&format!("--- node {}\n{}", node.id, self.log_tail(node.id)));
            }
        }
    }
}

#[allow(clippy::print_stderr, reason = "a test that fails shows the nodes' logs")]
fn show(text: &str) {
    eprintln!("{text}");
}

/// Retries `attempt` until it succeeds or `patience` is over. The error contains the last reason.
pub async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let reason = match attempt().await {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        ensure!(Instant::now() < deadline, "{what}: not within {patience:?}: {reason}");
        tokio::time::sleep(POLL).await;
    }
}
