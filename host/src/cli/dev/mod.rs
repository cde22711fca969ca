//! `conclave dev`: a cluster on this machine, each node a process of its own.
//!
//! Contract: the cluster lives as long as this process. Started again on the same directory it goes
//! on with the same data. `DIR/cluster.json` names every node's process, addresses and data; it is
//! replaced atomically whenever a node starts or ends.
//!
//! Caveats: a node that dies stays dead, on purpose: this is where one sees what a cluster does then.
//! The command that starts it again is printed. All nodes share one master key, which lies beside the
//! data that it protects: fine for trying things out, for nothing else.

mod children;
mod plan;
mod ready;
mod watch;

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    future::pending,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use clap::Args;
use conclave_client::Client;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    children::{Children, Ended, in_words, tail},
    plan::{NODES_MAX, Node, PORT_BASE_MAX, Plan, Wishes, reset, shell},
    watch::Watch,
};
use super::{Failed, Result, key, output::Output};

/// Run a cluster on this machine, to try things out
///
/// Starts each node as a process of its own, waits until the cluster serves, and stops it on Ctrl-C.
/// Node i listens on port base+i for clients, base+100+i for its peers and base+200+i for metrics.
/// Started again on the same directory the cluster goes on with its data. In the directory are
/// cluster.json (process ids and addresses), node-N.log, the nodes' data and master.key.
///
/// With --watch a machine is written while it runs: after each change of its source it is built, and the cluster
/// goes on with the new machine and the state that it has, as with `conclave module`. Changes that break clients
/// are shown and allowed. What does not build, or does not take the state, changes nothing, and says why.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave dev
  conclave dev --nodes 5 --data-dir /tmp/five --port-base 8100
  conclave dev --module target/machine.wasm --reset
  conclave dev --module target/machine.wasm --watch

To lose a node, and see how it is started again:
  kill -9 $(jq .nodes[0].pid conclave-dev/cluster.json)")]
pub struct Arguments {
    /// How many nodes, 1 to 9; 3 for a new cluster
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=NODES_MAX))]
    nodes: Option<u64>,

    /// Where the cluster lives
    #[arg(long, value_name = "DIR", default_value = "conclave-dev")]
    data_dir: PathBuf,

    /// The ports begin above this one; 7100 for a new cluster
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=PORT_BASE_MAX))]
    port_base: Option<u16>,

    /// The machine's component that a new cluster begins with; the key-value store if not given. One
    /// that has data goes on with its own: `conclave module push` brings it another
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,

    /// Build the project above FILE whenever a source changes, and upgrade the cluster to it. Without a project
    /// (a Cargo.toml or a pyproject.toml, as for `conclave build`) FILE itself is watched. What .gitignore names
    /// is not, nor what lies outside of the project
    #[arg(long, requires = "module")]
    watch: bool,

    /// Remove the cluster that the directory holds, with its data, and start a new one
    #[arg(long)]
    reset: bool,
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    let dir = directory(&arguments.data_dir)?;
    let _lock = lock(&dir)?;
    let program = std::env::current_exe()
        .map_err(|cause| Failed::local(format!("this program cannot find itself: {cause}")))?;
    // From here on a signal ends the children too, not this process alone.
    let mut signals = Signals::new()?;
    let watched = arguments.module.as_ref().filter(|_| arguments.watch);
    let mut watch = watched.map(|file| Watch::new(&program, file, &dir)).transpose()?;
    if let Some(watch) = &mut watch {
        output.remark(watch.describe());
        tokio::select! {
            built = watch.first() => built?,
            () = signals.next() => return Ok(()),
        }
    }
    let module = arguments.module.map(|module| absolute(&module)).transpose()?;
    if arguments.reset {
        reset(&dir)?;
    }
    let wishes = Wishes { nodes: arguments.nodes, port_base: arguments.port_base, module };
    let plan = Plan::of(&dir, &wishes)?;
    plan.check_ports()?;
    let key_file = dir.join("master.key");
    if !key_file.exists() {
        key::generate(&key_file)?;
    }
    let mut cluster = Cluster { dir, program, plan, children: Children::new() };
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
}

impl Cluster {
    /// From the start of the first node until a signal, or until no node is left.
    async fn live(
        &mut self,
        watch: Option<Watch>,
        signals: &mut Signals,
        output: &mut Output,
    ) -> Result {
        for at in 0..self.plan.nodes.len() {
            let arguments = self.arguments(&self.plan.nodes[at]);
            let compiled = plan::compile_cache(&self.dir);
            let node = &self.plan.nodes[at];
            let pid = self.children.start(&self.program, &arguments, &compiled, node)?;
            self.plan.nodes[at].pid = Some(pid);
        }
        self.plan.write(&self.dir)?;
        output.remark(format!(
            "starting {} nodes in {}, which compile their machine first",
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
        // Dropped at the end, with the build that may be under way.
        let mut watching = Box::pin(async {
            match watch {
                Some(watch) => watch.run(client, said).await,
                None => pending().await,
            }
        });
        loop {
            tokio::select! {
                ended = self.children.next_ended() => match ended {
                    Some(_) => self.report(ended, output)?,
                    None => return Err(Failed::local("no node is left")),
                },
                () = signals.next() => return Ok(()),
                never = &mut watching => match never {},
            }
        }
    }

    /// Asks all nodes to stop; a second signal kills them.
    async fn stop(&mut self, signals: &mut Signals, output: &mut Output) {
        self.children.stop();
        output.remark("stopping; once more to kill");
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

    /// A client of all nodes.
    fn client(&self) -> Result<Client> {
        let endpoints = self.plan.nodes.iter().map(|node| node.client.clone());
        let client = Client::builder().endpoints(endpoints).build();
        client.map_err(|error| Failed::local(error.to_string()))
    }

    fn arguments(&self, node: &Node) -> Vec<OsString> {
        self.plan.serve_arguments(&self.dir, node)
    }

    fn forget(&mut self, id: u64) {
        for node in self.plan.nodes.iter_mut().filter(|node| node.id == id) {
            node.pid = None;
        }
    }

    /// A node ended that nobody stopped.
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
        output.remark("to start it again, in another terminal:");
        output.remark(format!("  {}", shell(&self.program, &self.arguments(node))));
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
        if plan.module.is_none() {
            output.line("  conclave kv put greeting hello");
            output.line("  conclave kv get greeting");
        }
        if let Some(node) = plan.nodes.first() {
            output.line(format!("  grpcurl -plaintext {} list", node.client));
        }
        output.line("\nEach node by itself, once this process or the node has stopped:");
        for node in &plan.nodes {
            output.line(format!("  {}", shell(&self.program, &self.arguments(node))));
        }
        output.line("\nCtrl-C stops the cluster; its data stays.");
    }
}

/// What asks this process to end.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind)
                .map_err(|cause| Failed::local(format!("cannot listen to signals: {cause}")))
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
    fs::canonicalize(path).map_err(|cause| Failed::local(format!("{}: {cause}", path.display())))
}

/// Makes the directory, for its owner alone.
fn directory(path: &Path) -> Result<PathBuf> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|cause| Failed::local(format!("{}: {cause}", path.display())))?;
    absolute(path)
}

/// Two clusters in one directory would fight over everything in it.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("dev.lock");
    let failed = |cause: std::io::Error| Failed::local(format!("{}: {cause}", path.display()));
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failed::local(format!(
            "another `conclave dev` runs in {}; stop it, or choose another --data-dir and --port-base",
            dir.display()
        ))),
        Err(TryLockError::Error(cause)) => Err(failed(cause)),
    }
}
