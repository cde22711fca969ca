//! Backups of a running cluster, and new clusters made from them.
//!
//! Goal: a backup has every write that was acknowledged before it, at one index, and a new cluster
//! made from it has exactly that state. Method: numbered writes run while the backup is taken. The
//! new cluster must have an unbroken sequence of them from the first one on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use conclave_client::{CallOptions, Client};
use conclave_types::ComponentId;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::harness::{Cluster, Setup, call, conclave, eventually, files, get, put};

const KEYS: usize = 300;

/// Runs `conclave` with arguments.
fn run(arguments: &[&str]) -> Output {
    conclave().args(arguments).output().unwrap()
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

fn assert_refused(refused: &Output, says: &str) {
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && why.contains(says), "not {says:?}: {refused:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Pushes and activates the key-value store with a few meaningless bytes appended.
async fn upgrade(client: &Client) -> ComponentId {
    let mut component = conclave_cli::DEFAULT_MACHINE.to_vec();
    component.extend_from_slice(b"\0\x07\x06backup");
    let id = ComponentId::of(&component);
    client.push_component(id.0, component.into(), |_| {}).await.unwrap();
    client.rehearse_component(&id.to_string()).await.unwrap();
    eventually("the component is active", async || {
        let activated = client.activate_component(&id.to_string(), false).await;
        activated.map_err(|error| error.to_string())
    })
    .await;
    id
}

/// Numbered writes, one after the other.
struct Load {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(client: Client) -> Self {
        let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            for number in 1.. {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                put(&client, &format!("load/{number:08}"), &number.to_string()).await.unwrap();
                counted.store(number, Ordering::Release);
            }
        });
        Self { acknowledged, stop, task }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    async fn reaches(&self, number: u64) {
        eventually("the writes continue", async || match self.acknowledged() >= number {
            true => Ok(()),
            false => Err(self.acknowledged().to_string()),
        })
        .await;
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.task.await.unwrap();
    }
}

/// Returns all keys below a prefix, with their values, versions, revisions and times of expiry.
fn list(cluster: &Cluster, prefix: &str) -> Vec<Value> {
    let listed = cluster.verb(&["kv", "list", prefix, "--json"]);
    succeeded(&listed);
    serde_json::from_slice(&listed.stdout).unwrap()
}

fn restore_flags(cluster: &Cluster, file: &Path) -> Vec<String> {
    let key = cluster.dir.path().join("master.key");
    let mut flags = ["restore", text(file), "--cluster-id", &cluster.id, "--master-key-file"]
        .map(str::to_owned)
        .to_vec();
    flags.push(text(&key).to_owned());
    for member in &cluster.nodes {
        flags.push("--member".into());
        flags.push(format!("{}={},{}", member.id, member.peer, member.client));
    }
    flags
}

/// Makes the directory of one node.
fn restore(cluster: &Cluster, id: u64, file: &Path, old_key: &Path) -> Output {
    let mut command = conclave();
    command.args(restore_flags(cluster, file)).args(["--node-id", &id.to_string(), "--data-dir"]);
    command.arg(&cluster.node(id).data_dir).arg("--key-file").arg(old_key);
    command.output().unwrap()
}

fn prepared(name: &str) -> Cluster {
    let mut cluster = Cluster::prepared(Setup::default());
    name.clone_into(&mut cluster.id);
    cluster
}

/// A backup that was taken under load, and the facts that a cluster made from it must show.
struct Taken {
    dir: TempDir,
    file: PathBuf,
    key: PathBuf,
    described: Value,
    component: ComponentId,
    base: Vec<Value>,
    /// The number of the last write that was acknowledged before, and of the last one sent after.
    before: u64,
    after: u64,
}

async fn taken_under_load() -> Taken {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    for number in 0..KEYS {
        let key = format!("base/{number}");
        let request = match number % 3 {
            0 => json!({"key": key, "text": "x".repeat(number)}),
            1 => json!({"key": key, "value": "AP+A"}),
            _ => json!({"key": key, "text": "expires", "ttlMs": "3600000"}),
        };
        let options = CallOptions::write().retry_unknown(true);
        call(&client, "kv.v1.KV/Put", request, options).await.unwrap();
    }
    let component = upgrade(&client).await;
    put(&client, "base/0", "again").await.unwrap();
    let base = list(&cluster, "base/");
    assert_eq!(base.len(), KEYS);

    let dir = TempDir::new().unwrap();
    let file = dir.path().join("cluster.backup");
    let load = Load::start(cluster.client());
    load.reaches(50).await;
    let before = load.acknowledged();
    // A follower makes the backup: it must wait for the newest writes.
    let leader = cluster.leader().await;
    let follower = cluster.nodes.iter().find(|node| node.id != leader).unwrap();
    let create = ["backup", "create", text(&file), "--json", "--endpoints", &follower.client];
    let created = tokio::task::block_in_place(|| run(&create));
    succeeded(&created);
    let after = load.acknowledged() + 1;
    load.reaches(after + 20).await;
    load.stop().await;
    assert_refused(&run(&create), "exists and was not changed");

    let described = serde_json::from_slice(&created.stdout).unwrap();
    let key = dir.path().join("old-master.key");
    fs::copy(cluster.dir.path().join("master.key"), &key).unwrap();
    assert_eq!(files(dir.path()).len(), 2, "no partial file is left");
    Taken { dir, file, key, described, component, base, before, after }
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_made_from_a_backup_has_exactly_its_state() {
    let taken = taken_under_load().await;
    describes_and_verifies(&taken);
    damaged_backups_are_refused(&taken);

    let mut cluster = prepared("restored");
    for id in 1..=3 {
        let restored = restore(&cluster, id, &taken.file, &taken.key);
        succeeded(&restored);
        cluster.start_node(id);
    }
    cluster.serving().await;
    let client = cluster.client();

    assert_eq!(list(&cluster, "base/"), taken.base, "values, versions, revisions and expiry");
    let load = list(&cluster, "load/");
    let count = load.len() as u64;
    assert!((taken.before..=taken.after).contains(&count), "{count}: {:?}", taken.described);
    for (number, found) in (1..).zip(&load) {
        assert_eq!(found["key"], format!("load/{number:08}"));
        assert_eq!(found["text"], number.to_string());
    }
    let components = client.components().await.unwrap();
    let active = components.iter().find(|component| component.active).unwrap();
    assert_eq!((&active.id, components.len()), (&taken.component.to_string(), 2));
    cluster.assert_equal();

    // Writes continue after the index of the backup, in the new cluster's first terms.
    put(&client, "new", "yes").await.unwrap();
    let status = client.status().await.unwrap();
    let index = taken.described["index"].as_u64().unwrap();
    assert!(
        status.cluster_id == "restored" && status.nodes.iter().all(|node| node.applied > index)
    );
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    assert_eq!(get(&cluster.client(), "new").await.unwrap(), "yes");
    assert_eq!(list(&cluster, "base/"), taken.base);
    // The previous component can be activated, so the registry is complete.
    let rolled_back = eventually("a rollback", async || {
        let client = cluster.client();
        let rolled_back = client.rollback_component(&taken.component.to_string(), false).await;
        rolled_back.map_err(|error| error.to_string())
    });
    assert_eq!(rolled_back.await.previous, taken.component.to_string());
    cluster.assert_equal();

    // A restored cluster can be backed up, with its new master key.
    let second = taken.dir.path().join("second.backup");
    succeeded(&cluster.verb(&["backup", "create", text(&second)]));
    let key = cluster.dir.path().join("master.key");
    let key = ["--master-key-file", text(&key)];
    succeeded(&run(&[&["backup", "verify", text(&second)], &key[..]].concat()));
    // A directory with data is refused.
    assert_refused(&restore(&cluster, 1, &taken.file, &taken.key), "is not empty");
}

fn describes_and_verifies(taken: &Taken) {
    let inspected = run(&["backup", "inspect", text(&taken.file), "--json"]);
    succeeded(&inspected);
    let mut expected = taken.described.clone();
    expected.as_object_mut().unwrap().remove("file");
    assert_eq!(serde_json::from_slice::<Value>(&inspected.stdout).unwrap(), expected);
    assert_eq!(expected["component"], taken.component.to_string());
    assert_eq!((&expected["cluster_id"], &expected["key"]), (&json!("test"), &json!("master-key")));
    let key = ["--master-key-file", text(&taken.key)];
    succeeded(&run(&[&["backup", "verify", text(&taken.file)], &key[..]].concat()));
}

fn damaged_backups_are_refused(taken: &Taken) {
    let verify = |bytes: &[u8]| {
        let path = taken.dir.path().join("changed.backup");
        fs::write(&path, bytes).unwrap();
        let key = ["--master-key-file", text(&taken.key)];
        run(&[&["backup", "verify", text(&path)], &key[..]].concat())
    };
    let file = fs::read(&taken.file).unwrap();
    assert_refused(&verify(&file[..file.len() - 1]), "changed.backup is truncated");
    assert_refused(&verify(&file[..file.len() / 2]), "changed.backup is truncated");
    let mut changed = file.clone();
    changed[file.len() - 100] ^= 1;
    assert_refused(&verify(&changed), "changed.backup is damaged");
    assert_refused(&verify(b"PK and so on"), "is not a Conclave backup");
    let other = taken.dir.path().join("other.key");
    succeeded(&run(&["key", "generate", text(&other)]));
    let wrong = ["backup", "verify", text(&taken.file), "--master-key-file", text(&other)];
    assert_refused(&run(&wrong), "wrong key for backup");
    // A restore of a truncated backup leaves nothing behind.
    let (short, dir) = (taken.dir.path().join("short.backup"), taken.dir.path().join("data"));
    fs::write(&short, &file[..file.len() - 1]).unwrap();
    let mut restore = conclave();
    restore.args(["restore", text(&short), "--cluster-id", "other", "--node-id", "1"]);
    restore.args(["--member", "1=127.0.0.1:7201,127.0.0.1:7101", "--data-dir", text(&dir)]);
    let refused = restore.args(["--master-key-file", text(&taken.key)]).output().unwrap();
    assert_refused(&refused, "is truncated");
    let left = files(&dir);
    assert!(left.iter().all(|path| path.ends_with("lock")), "{left:?}");
}

/// Nodes that were made from two backups of the same cluster form no cluster.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_different_backups_refuse_each_other() {
    let source = Cluster::start().await;
    put(&source.client(), "color", "green").await.unwrap();
    let dir = TempDir::new().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    for file in [&one, &two] {
        succeeded(&source.verb(&["backup", "create", text(file)]));
    }
    let key = dir.path().join("old-master.key");
    fs::copy(source.dir.path().join("master.key"), &key).unwrap();
    drop(source);

    let mut cluster = prepared("restored");
    for (id, file) in [(1, &one), (2, &one), (3, &two)] {
        succeeded(&restore(&cluster, id, file, &key));
        cluster.start_node(id);
    }
    cluster.serving().await;
    assert_eq!(get(&cluster.client(), "color").await.unwrap(), "green");
    eventually("node 3 is refused", async || {
        let log = fs::read_to_string(&cluster.node(3).log).unwrap_or_default();
        match log.contains("were not restored from the same backup") {
            true => Ok(()),
            false => Err(cluster.log_tail(3)),
        }
    })
    .await;
    let status = cluster.client_of(1).status().await.unwrap();
    assert_ne!(status.leader, 3);
    let third = status.nodes.iter().find(|node| node.id == 3).unwrap();
    assert!(third.role == "unreachable" || third.applied < status.nodes[0].last_log, "{third:?}");
}

/// A backup on stdout under a passphrase, and one restore for all nodes from stdin.
#[tokio::test(flavor = "multi_thread")]
async fn backup_is_piped_under_a_passphrase() {
    let source = Cluster::start().await;
    put(&source.client(), "color", "green").await.unwrap();
    let dir = TempDir::new().unwrap();
    let phrase = dir.path().join("phrase");
    fs::write(&phrase, "correct horse battery staple\n").unwrap();
    let created = source.verb(&["backup", "create", "-", "--passphrase-file", text(&phrase)]);
    succeeded(&created);
    let file = dir.path().join("piped.backup");
    fs::write(&file, &created.stdout).unwrap();
    let master_key = dir.path().join("old-master.key");
    fs::copy(source.dir.path().join("master.key"), &master_key).unwrap();
    drop(source);

    let inspected = run(&["backup", "inspect", text(&file)]);
    succeeded(&inspected);
    assert!(String::from_utf8_lossy(&inspected.stdout).contains("its passphrase"), "{inspected:?}");
    let wrong = ["backup", "verify", text(&file), "--master-key-file", text(&master_key)];
    assert_refused(&run(&wrong), "Give the passphrase");
    let right = ["backup", "verify", text(&file), "--passphrase-file", text(&phrase)];
    succeeded(&run(&right));

    let mut cluster = prepared("restored");
    let mut restore = conclave();
    restore.args(restore_flags(&cluster, Path::new("-"))).args(["--all", "--data-dir"]);
    restore.arg(cluster.dir.path()).args(["--passphrase-file", text(&phrase)]);
    let restored = restore.stdin(fs::File::open(&file).unwrap()).output().unwrap();
    succeeded(&restored);
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    assert_eq!(get(&cluster.client(), "color").await.unwrap(), "green");
    cluster.assert_equal();
}

/// The new cluster cannot have the id of the old one.
#[tokio::test(flavor = "multi_thread")]
async fn new_cluster_needs_a_new_id_and_component_can_be_pulled() {
    let source = Cluster::start().await;
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("backup");
    succeeded(&source.verb(&["backup", "create", text(&file)]));
    let key = source.dir.path().join("master.key");
    let mut restore = conclave();
    restore.args(restore_flags(&source, &file)).args(["--all", "--data-dir"]);
    restore.arg(dir.path().join("data")).arg("--key-file").arg(key);
    assert_refused(&restore.output().unwrap(), "give the new cluster another id");

    let id = ComponentId::of(conclave_cli::DEFAULT_MACHINE).to_string();
    let pulled = dir.path().join("kv.wasm");
    succeeded(&source.verb(&["component", "pull", &id[..8], text(&pulled)]));
    assert_eq!(fs::read(&pulled).unwrap(), conclave_cli::DEFAULT_MACHINE);
    let piped = source.verb(&["component", "pull", &id, "-"]);
    assert_eq!(piped.stdout, conclave_cli::DEFAULT_MACHINE);
    assert_refused(&source.verb(&["component", "pull", "0123456", "-"]), "has no component");
}
