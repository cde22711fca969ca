//! `conclave dev`: a development cluster on this host, with one process per node.
//!
//! Contract: the cluster lives as long as this process. Started again on the same directory, it
//! continues with the same data. `DIR/cluster.json` lists every node's process, addresses and data.
//! It is replaced atomically whenever a node starts or ends.
//!
//! `dev restart` writes its request to `DIR/restart` and sends this process SIGUSR1.
//!
//! Caveats: a node that dies stays down on purpose, to show how a cluster handles the loss. The
//! command that starts it again is printed. The nodes get no `CONCLAVE_…` variable of this process,
//! except the one with the log filter. All nodes share one master key, which lies beside the data
//! that it protects: acceptable for experiments only.

mod children;
mod plan;
mod ready;
mod verbs;
mod watch;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, TryLockError},
    future::pending,
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use clap::Args;
use conclave_client::Client;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    children::{Children, Ended, in_words, tail},
    plan::{LOCK, NODES_MAX, Node, PORT_BASE_MAX, Plan, Wishes, reset, shell},
    watch::Watch,
};
use super::{Failed, Result, key, output::Output};

/// Run a local cluster for development
///
/// Starts each node as a process of its own, waits until the cluster serves, and stops it on
/// Ctrl-C. Node i listens on port base+i for clients, base+100+i for its peers and base+200+i for
/// metrics. Started again on the same directory, the cluster continues with its data. The directory
/// contains cluster.json (process ids and addresses), node-N.log, the nodes' data and master.key.
///
/// With --watch, each change of the state machine's source is built, and the running cluster is
/// upgraded to the new component and keeps its state, as with `conclave component`. Changes that
/// break clients are shown and allowed. If the build fails, or the new component does not restore
/// the state, nothing changes and the reason is printed.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave dev
  conclave dev --nodes 5 --data-dir /tmp/five --port-base 8100
  conclave dev --component target/machine.wasm --reset
  conclave dev --component target/machine.wasm --watch

To kill a node and start it again:
  conclave dev status
  kill -9 $(jq .nodes[0].pid conclave-dev/cluster.json)
  conclave dev restart 1")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Option<verbs::Verb>,

    /// Number of nodes, 1 to 9 [default for a new cluster: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=NODES_MAX))]
    nodes: Option<u64>,

    /// Directory of the cluster
    #[arg(long, value_name = "DIR", default_value = "conclave-dev")]
    data_dir: PathBuf,

    /// Base of the port numbers: node 1 listens for clients on this port + 1 [default for a new
    /// cluster: 7100]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=PORT_BASE_MAX))]
    port_base: Option<u16>,

    /// Initial component of a new cluster [default: the key-value store]. A cluster that has data
    /// continues with its own component: use `conclave component push` to upgrade it
    #[arg(long, value_name = "FILE")]
    component: Option<PathBuf>,

    /// Build the project above FILE whenever a source changes, and upgrade the cluster to the
    /// result. Without a project (a Cargo.toml, pyproject.toml or go.mod, as for `conclave
    /// build`), FILE itself is watched. Files that .gitignore names and files outside of the
    /// project are not watched
    #[arg(long, requires = "component")]
    watch: bool,

    /// Remove the directory's cluster with all its data, and start a new one
    #[arg(long)]
    reset: bool,
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    if let Some(verb) = arguments.verb {
        return verbs::run(verb, output).await;
    }
    let dir = directory(&arguments.data_dir)?;
    let _lock = lock(&dir)?;
    ignore(&dir)?;
    let program = std::env::current_exe()
        .map_err(|cause| Failed::because("cannot find this program's path", &cause))?;
    // From here on a signal also ends the children, not this process alone.
    let mut signals = Signals::new()?;
    let watched = arguments.component.as_ref().filter(|_| arguments.watch);
    let mut watch = watched.map(|file| Watch::new(&program, file, &dir)).transpose()?;
    if let Some(watch) = &mut watch {
        output.remark(watch.describe());
        tokio::select! {
            built = watch.first() => built?,
            () = signals.next() => return Ok(()),
        }
    }
    let component = arguments.component.map(|component| absolute(&component)).transpose()?;
    if arguments.reset {
        reset(&dir)?;
    }
    let wishes = Wishes { nodes: arguments.nodes, port_base: arguments.port_base, component };
    let plan = Plan::of(&dir, &wishes)?;
    plan.check_ports()?;
    let key_file = dir.join("master.key");
    if !key_file.exists() {
        key::generate(&key_file)?;
    }
    let children = Children::new();
    let mut cluster = Cluster { dir, program, plan, children, restarting: BTreeSet::new() };
    let result = cluster.live(watch, &mut signals, output).await;
    cluster.stop(&mut signals, output).await;
    result
}

/// A running cluster.
struct Cluster {
    dir: PathBuf,
    program: PathBuf,
    plan: Plan,
    children: Children,
    /// The nodes that are stopping in order to be started again.
    restarting: BTreeSet<u64>,
}

impl Cluster {
    /// Starts the nodes and runs until a signal, or until no node is left.
    async fn live(
        &mut self,
        watch: Option<Watch>,
        signals: &mut Signals,
        output: &mut Output,
    ) -> Result {
        let mut requests = verbs::Requests::new(&self.dir)?;
        for at in 0..self.plan.nodes.len() {
            self.start(at)?;
        }
        self.plan.write(&self.dir)?;
        output.remark(format!(
            "starting {} nodes in {}; each compiles its component first",
            self.plan.nodes.len(),
            self.dir.display()
        ));
        let leader = tokio::select! {
            leader = ready::wait(&self.plan) => leader?,
            ended = self.children.next_ended() => {
                self.report(ended, output)?;
                return Err(Failed::local("the cluster did not start"));
            }
            () = signals.next() => return Ok(()),
        };
        self.explain(leader, output);
        let client = self.client()?;
        let said = output.clone();
        // Dropped at the end, together with a build that may be running.
        let mut watching = Box::pin(async {
            match watch {
                Some(watch) => watch.run(client, said).await,
                None => pending().await,
            }
        });
        loop {
            tokio::select! {
                ended = self.children.next_ended() => match ended {
                    Some(Ended { id, .. }) if self.restarting.remove(&id) => self.start_again(id)?,
                    Some(_) => self.report(ended, output)?,
                    None => return Err(Failed::local("all nodes have ended")),
                },
                () = signals.next() => return Ok(()),
                id = requests.next() => self.restart(id)?,
                never = &mut watching => match never {},
            }
        }
    }

    /// Starts the process of the node at this position of the plan.
    fn start(&mut self, at: usize) -> Result {
        let node = &self.plan.nodes[at];
        let (arguments, compiled) = (self.arguments(node), plan::compile_cache(&self.dir));
        let pid = self.children.start(&self.program, &arguments, &compiled, node)?;
        self.plan.nodes[at].pid = Some(pid);
        Ok(())
    }

    /// Stops a node if it runs, and arranges its restart.
    fn restart(&mut self, id: u64) -> Result {
        let node = self.plan.nodes.iter().find(|node| node.id == id);
        if node.is_some_and(|node| node.pid.is_some()) {
            self.restarting.insert(id);
            self.children.stop_one(id);
            return Ok(());
        }
        self.start_again(id)
    }

    fn start_again(&mut self, id: u64) -> Result {
        let Some(at) = self.plan.nodes.iter().position(|node| node.id == id) else { return Ok(()) };
        self.start(at)?;
        self.plan.write(&self.dir)
    }

    /// Requests all nodes to stop. A second signal kills them.
    async fn stop(&mut self, signals: &mut Signals, output: &mut Output) {
        self.children.stop();
        output.remark("stopping the nodes; press Ctrl-C again to kill them");
        loop {
            tokio::select! {
                ended = self.children.next_ended() => match ended {
                    Some(Ended { id, .. }) => self.forget(id),
                    None => break,
                },
                () = signals.next() => self.children.kill(),
            }
        }
        if let Err(failed) = self.plan.write(&self.dir) {
            output.failed(&failed);
        }
    }

    /// Returns a client of all nodes.
    fn client(&self) -> Result<Client> {
        let endpoints = self.plan.nodes.iter().map(|node| node.client.clone());
        let client = Client::builder().endpoints(endpoints).build();
        client.map_err(|error| Failed::of(&error))
    }

    fn arguments(&self, node: &Node) -> Vec<OsString> {
        self.plan.serve_arguments(&self.dir, node)
    }

    fn forget(&mut self, id: u64) {
        for node in self.plan.nodes.iter_mut().filter(|node| node.id == id) {
            node.pid = None;
        }
    }

    /// Reports a node that ended without a request to stop.
    fn report(&mut self, ended: Option<Ended>, output: &mut Output) -> Result {
        let Some(Ended { id, status }) = ended else { return Ok(()) };
        self.forget(id);
        self.plan.write(&self.dir)?;
        let Some(node) = self.plan.nodes.iter().find(|node| node.id == id) else { return Ok(()) };
        output.remark(format!(
            "node {id} {}; the end of {}:",
            in_words(status),
            node.log.display()
        ));
        for line in tail(&node.log) {
            output.remark(format!("  | {line}"));
        }
        let program = shell(&self.program, &[]);
        let dir = shell(&self.dir, &[]);
        output.remark("to start it again, in another terminal:");
        output.remark(format!("  {program} dev restart {id} --data-dir {dir}"));
        Ok(())
    }

    fn explain(&self, leader: u64, output: &mut Output) {
        let plan = &self.plan;
        output.line(format!(
            "cluster {} serves: {} nodes, leader {leader}, clients at {}",
            plan.cluster_id,
            plan.nodes.len(),
            plan.endpoints()
        ));
        output.line("\nIn another terminal:");
        if plan.port_base != 7100 {
            output.line(format!("  export CONCLAVE_ENDPOINTS={}", plan.endpoints()));
        }
        output.line("  conclave status");
        output.line("  conclave call --list");
        if plan.component.is_none() {
            output.line("  conclave kv put greeting hello");
            output.line("  conclave kv get greeting");
        }
        if let Some(node) = plan.nodes.first() {
            output.line(format!("  grpcurl -plaintext {} list", node.client));
        }
        output.line("\nTo run a node by itself, once this process or the node has stopped:");
        for node in &plan.nodes {
            output.line(format!("  {}", shell(&self.program, &self.arguments(node))));
        }
        output.line("\nCtrl-C stops the cluster and keeps its data.");
    }
}

/// The signals that end this process.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|cause| Failed::because("cannot listen to signals", &cause))
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(Failed::at(path))
}

/// Creates the directory, accessible to its owner only.
fn directory(path: &Path) -> Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Failed::at(path))?;
    absolute(path)
}

/// Keeps the directory, which contains the master key, out of a surrounding git repository. An
/// older directory with other files is left unchanged.
fn ignore(dir: &Path) -> Result {
    let path = dir.join(".gitignore");
    let failed = |cause: std::io::Error| Failed::because(path.display(), &cause);
    let is_ours = plan::is_ours(dir).map_err(failed)?;
    if !is_ours || path.exists() {
        return Ok(());
    }
    fs::write(&path, "*\n").map_err(failed)
}

/// Locks the directory: two clusters would overwrite each other's files.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let failed = |cause: std::io::Error| Failed::because(path.display(), &cause);
    // The file holds the process id, so it must not be truncated while another process has
    // the lock.
    let mut options = File::options();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            let pid = std::process::id();
            file.set_len(0).and_then(|()| writeln!(file, "{pid}")).map_err(failed)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => Err(Failed::local(format!(
            "another `conclave dev` runs in {}; stop it, or choose another --data-dir and --port-base",
            dir.display()
        ))),
        Err(TryLockError::Error(cause)) => Err(failed(cause)),
    }
}
