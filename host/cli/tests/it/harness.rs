//! Clusters of real `conclave serve` processes.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use conclave_client::{CallOptions, Client, Consistency};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Maximum time to wait, long enough for the slowest host. A test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Options with which the nodes of a cluster are started.
#[derive(Default)]
pub(crate) struct Setup {
    /// The component's file; absent: the key-value store.
    pub component: Option<PathBuf>,
    /// Additional flags for every node.
    pub flags: Vec<String>,
}

/// One node's addresses and process.
pub(crate) struct Node {
    pub id: u64,
    pub client: String,
    pub peer: String,
    pub admin: String,
    pub data_dir: PathBuf,
    pub log: PathBuf,
    /// The address at which the other nodes reach its peer port, if it differs from `peer`.
    reached_at: Option<String>,
    child: Option<Child>,
}

/// Three nodes on loopback, killed on drop.
pub(crate) struct Cluster {
    pub nodes: Vec<Node>,
    pub dir: TempDir,
    /// The id of the cluster.
    pub id: String,
    setup: Setup,
    _turn: conclave_testing::cluster::Turn,
}

/// Returns a command with the binary under test, or with another one for which `cargo xtask chaos
/// --planted NAME` sets the variable.
pub(crate) fn conclave() -> Command {
    let other = std::env::var_os("CONCLAVE_BINARY");
    Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_conclave").into()))
}

/// Returns a free loopback address. Its port is outside of the kernel's range for outgoing
/// connections, one of which could otherwise take it before the node listens.
pub(crate) fn free_address() -> String {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    loop {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (std::process::id() * 211 + tried) % 10_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

impl Cluster {
    /// Starts three nodes with the key-value store and waits until they serve.
    pub(crate) async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    /// Starts three nodes and waits until they serve.
    pub(crate) async fn start_with(setup: Setup) -> Self {
        let cluster = Self::prepared(setup);
        let mut cluster = cluster;
        for id in 1..=3 {
            cluster.start_node(id);
        }
        cluster.serving().await;
        cluster
    }

    /// Prepares addresses, directories and a master key for three nodes without starting them.
    pub(crate) fn prepared(setup: Setup) -> Self {
        let turn = conclave_testing::cluster::turn();
        let dir = TempDir::new().unwrap();
        let key = dir.path().join("master.key");
        let made = conclave().args(["key", "generate"]).arg(&key).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let nodes = (1..=3).map(|id| Node {
            id,
            client: free_address(),
            peer: free_address(),
            admin: free_address(),
            data_dir: dir.path().join(format!("node-{id}")),
            log: dir.path().join(format!("node-{id}.log")),
            reached_at: None,
            child: None,
        });
        Self { nodes: nodes.collect(), dir, id: "test".to_owned(), setup, _turn: turn }
    }

    /// Makes all nodes reach a node's peer port at another address. Must be called before any node
    /// is started.
    pub(crate) fn reach(&mut self, id: u64, address: String) {
        self.nodes[id as usize - 1].reached_at = Some(address);
    }

    /// Returns the command that runs a node. Its output is appended to the node's log.
    pub(crate) fn command(&self, id: u64) -> Command {
        let node = self.node(id);
        let log = File::options().create(true).append(true).open(&node.log).unwrap();
        let mut command = conclave();
        command.arg("serve").args(self.serve_flags(id));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Returns the flags of `conclave serve` for a node.
    pub(crate) fn serve_flags(&self, id: u64) -> Vec<String> {
        let node = self.node(id);
        let mut flags = vec![
            "--node-id".into(),
            id.to_string(),
            "--cluster-id".into(),
            self.id.clone(),
            "--data-dir".into(),
            node.data_dir.display().to_string(),
            "--listen-client".into(),
            node.client.clone(),
            "--listen-peer".into(),
            node.peer.clone(),
            "--listen-admin".into(),
            node.admin.clone(),
            "--master-key-file".into(),
            self.dir.path().join("master.key").display().to_string(),
        ];
        for member in &self.nodes {
            flags.push("--member".into());
            let peer = member.reached_at.as_ref().unwrap_or(&member.peer);
            flags.push(format!("{}={peer},{}", member.id, member.client));
        }
        if let Some(component) = &self.setup.component {
            flags.push("--component".into());
            flags.push(component.display().to_string());
        }
        flags.extend(self.setup.flags.iter().cloned());
        flags
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        &self.nodes[id as usize - 1]
    }

    /// Starts a node, also after it has ended.
    pub(crate) fn start_node(&mut self, id: u64) {
        let command = self.command(id);
        self.run(id, command);
    }

    /// Starts a node with a modified command, see [`Cluster::command`].
    pub(crate) fn run(&mut self, id: u64, mut command: Command) {
        self.nodes[id as usize - 1].child = Some(command.spawn().unwrap());
    }

    /// Sends SIGKILL and waits until the process is gone.
    pub(crate) fn kill(&mut self, id: u64) {
        if let Some(mut child) = self.nodes[id as usize - 1].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends SIGTERM and waits until the process is gone.
    pub(crate) fn stop(&mut self, id: u64) {
        let Some(child) = &self.node(id).child else { return };
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.ended(id);
    }

    /// Waits until a process that was signalled to end is gone.
    pub(crate) fn ended(&mut self, id: u64) {
        let Some(mut child) = self.nodes[id as usize - 1].child.take() else { return };
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "node {id} does not stop\n{}", self.log_tail(id));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the process id of a running node.
    pub(crate) fn pid(&self, id: u64) -> u32 {
        self.node(id).child.as_ref().expect("the node runs").id()
    }

    /// Fails with the node's log if the node has ended by itself.
    pub(crate) fn assert_running(&mut self, id: u64) {
        let child = self.nodes[id as usize - 1].child.as_mut().expect("the node was started");
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "node {id} ended: {ended:?}\n{}", self.log_tail(id));
    }

    /// Returns the last lines of a node's log.
    pub(crate) fn log_tail(&self, id: u64) -> String {
        let log = fs::read(&self.node(id).log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Returns a page of a node's admin port: its status line, headers and body. A node that was
    /// just started may not answer yet.
    pub(crate) fn page(&self, id: u64, path: &str) -> Result<String, String> {
        let attempt = || {
            let mut stream = TcpStream::connect(&self.node(id).admin)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok(page)
        };
        attempt().map_err(|error: std::io::Error| error.to_string())
    }

    /// Returns a metric of a node, by its name and labels.
    pub(crate) fn metric(&self, id: u64, name: &str) -> Result<f64, String> {
        let page = self.page(id, "/metrics")?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).ok_or_else(|| format!("no {name}"))
    }

    /// Runs a verb of `conclave` for the whole cluster.
    pub(crate) fn verb(&self, arguments: &[&str]) -> Output {
        let endpoints: Vec<_> = self.nodes.iter().map(|node| node.client.clone()).collect();
        let mut command = conclave();
        command.args(arguments).args(["--endpoints", &endpoints.join(",")]);
        command.output().unwrap()
    }

    /// Fails unless all nodes have the same state.
    pub(crate) fn assert_equal(&self) {
        let verified = self.verb(&["cluster", "verify", "--timeout", "20s"]);
        assert!(verified.status.success(), "{verified:?}");
    }

    /// Returns a client that knows all nodes.
    pub(crate) fn client(&self) -> Client {
        let endpoints = self.nodes.iter().map(|node| node.client.clone());
        Client::builder().endpoints(endpoints).deadline(PATIENCE).build().unwrap()
    }

    /// Returns a client that calls one node only.
    pub(crate) fn client_of(&self, id: u64) -> Client {
        let endpoint = self.node(id).client.clone();
        let client = Client::builder().endpoints([endpoint]).follow_leader(false);
        client.deadline(PATIENCE).build().unwrap()
    }

    /// Waits until the cluster answers a linearizable read, which needs a leader and a majority.
    pub(crate) async fn serving(&self) {
        let client = self.client();
        let status = eventually("the cluster serves", async || {
            let status = client.status().await.map_err(|error| error.to_string())?;
            if status.leader == 0 { Err("no leader".to_owned()) } else { Ok(status) }
        });
        status.await;
    }

    /// Returns the leader's id.
    pub(crate) async fn leader(&self) -> u64 {
        let client = self.client();
        eventually("a node leads", async || {
            let status = client.status().await.map_err(|error| error.to_string())?;
            let leader = status.nodes.iter().find(|node| node.role == "leader");
            leader.map(|node| node.id).ok_or_else(|| "no leader".to_owned())
        })
        .await
    }

    /// Waits until these nodes have applied the same entries, up to the leader's commit index.
    pub(crate) async fn caught_up(&self, ids: &[u64]) {
        let client = self.client();
        eventually("the nodes agree", async || {
            let status = client.status().await.map_err(|error| error.to_string())?;
            let nodes: Vec<_> = status.nodes.iter().filter(|n| ids.contains(&n.id)).collect();
            let most = status.nodes.iter().map(|node| node.last_log).max().unwrap_or_default();
            if nodes.iter().all(|node| node.role != "unreachable" && node.applied == most) {
                Ok(())
            } else {
                Err(format!("{nodes:?}"))
            }
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- node {}\n{}", node.id, self.log_tail(node.id));
            }
        }
    }
}

/// Retries until the operation succeeds, and fails with the last reason after [`PATIENCE`].
pub(crate) async fn eventually<T>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reason = match attempt().await {
            Ok(value) => return value,
            Err(reason) => reason,
        };
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {reason}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Calls a method with JSON, by reflection.
pub(crate) async fn call(
    client: &Client,
    method: &str,
    request: Value,
    options: CallOptions,
) -> Result<Value, conclave_client::Error> {
    let method = client.method(method).await?;
    Ok(client.call_json_with(&method, request, &options).await?.message)
}

/// Puts a text.
pub(crate) async fn put(
    client: &Client,
    key: &str,
    text: &str,
) -> Result<Value, conclave_client::Error> {
    let request = json!({ "key": key, "text": text });
    let options = CallOptions::write().retry_unknown(true);
    call(client, "kv.v1.KV/Put", request, options).await
}

/// Returns the text under a key.
pub(crate) async fn get(client: &Client, key: &str) -> Result<String, conclave_client::Error> {
    get_with_options(client, key, CallOptions::read()).await
}

/// Returns the text under a key from one node's own state.
pub(crate) async fn get_stale(
    client: &Client,
    key: &str,
) -> Result<String, conclave_client::Error> {
    get_with_options(client, key, CallOptions::read().consistency(Consistency::Stale)).await
}

pub(crate) async fn get_with_options(
    client: &Client,
    key: &str,
    options: CallOptions,
) -> Result<String, conclave_client::Error> {
    let answer = call(client, "kv.v1.KV/Get", json!({ "key": key }), options).await?;
    Ok(find_text(&answer).unwrap_or_default())
}

fn find_text(value: &Value) -> Option<String> {
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| match value {
            Value::String(text) if name == "text" => Some(text.clone()),
            nested => find_text(nested),
        }),
        _ => None,
    }
}

/// Reports that something is not tested here, and the reason. The line is also shown in a run that
/// passes, where libtest captures the output of the print macros.
pub(crate) fn skip(what: &str, why: &str) {
    // Written at once, so that no other test's line gets in between. A failed write cannot be
    // reported elsewhere.
    let line = format!("skipped: {what}: {}\n", why.trim_end());
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Returns every file under a directory.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
