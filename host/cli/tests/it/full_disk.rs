//! A full disk: the node reports the reason and serves no request. All acknowledged writes are
//! kept, and the node continues once there is room again.
//!
//! The disks are small file systems in memory, which only root may mount.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use conclave_client::Client;

use crate::harness::{Cluster, PATIENCE, Setup, eventually, files, get, get_stale, put, skip};

/// Size of the disks. sled allocates 16 MiB at a time.
const DISK_BYTES: usize = 128 << 20;
const VALUE_BYTES: usize = 256 << 10;

/// A small file system, unmounted when dropped.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts the file system. Returns `None` where that is not permitted.
    pub(crate) fn mount(at: &Path, bytes: usize) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={bytes},mode=700");
        let mounted =
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at));
        if !mounted.as_ref().is_some_and(|output| output.status.success()) {
            let said = mounted.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
            skip("a full disk", &said.unwrap_or_else(|| "there is no mount".to_owned()));
            return None;
        }
        Some(Self(at.to_owned()))
    }

    /// Fills the file system completely.
    pub(crate) fn fill(&self) {
        let mut ballast = File::create(self.0.join("ballast")).unwrap();
        let page = [1; 4096];
        while ballast.write_all(&page).is_ok() {}
    }

    pub(crate) fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }

    fn grow(&self, bytes: usize) {
        let size = format!("remount,size={bytes}");
        let grown = run(Command::new("mount").args(["-o", &size]).arg(&self.0)).unwrap();
        assert!(grown.status.success(), "{grown:?}");
    }
}

fn run(command: &mut Command) -> Option<Output> {
    command.output().ok()
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A lazy unmount, because a process that is being killed may still have files open.
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

/// A writer of successive values, with the acknowledged ones.
struct Writing {
    client: Client,
    acknowledged: Vec<String>,
    tried: usize,
}

impl Writing {
    /// Tries one put. An error must be one that a client can handle.
    async fn put(&mut self) -> bool {
        let key = format!("key/{}", self.tried);
        self.tried += 1;
        match put(&self.client, &key, &text(&key)).await {
            Ok(_) => self.acknowledged.push(key),
            Err(error) => {
                let clear =
                    error.is_unavailable() || error.is_deadline() || error.outcome_unknown();
                assert!(clear, "{key}: {error}");
                return false;
            }
        }
        true
    }
}

fn text(key: &str) -> String {
    format!("{key} {}", "x".repeat(VALUE_BYTES))
}

async fn fatal_error(cluster: &Cluster, id: u64) -> Result<String, String> {
    let status = cluster.client().status().await.map_err(|error| error.to_string())?;
    let node = status.nodes.into_iter().find(|node| node.id == id);
    node.map(|node| node.fatal_error).ok_or_else(|| "no such node".to_owned())
}

/// Writes until the node with the full disk reports the reason.
async fn until_it_says_why(cluster: &Cluster, id: u64, writing: &mut Writing) {
    let why = eventually("the node says why", async || {
        writing.put().await;
        let fatal_error = fatal_error(cluster, id).await?;
        if fatal_error.is_empty() {
            Err(format!("no fatal error after {} puts", writing.tried))
        } else {
            Ok(fatal_error)
        }
    })
    .await;
    assert!(why.contains("No space left") && why.contains("store"), "{why}");
    let own = cluster.client_of(id);
    eventually("its health says so", async || match own.is_serving().await {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let impatient = Client::builder()
        .endpoints([cluster.node(id).client.clone()])
        .follow_leader(false)
        .deadline(Duration::from_secs(2));
    let refused = get_stale(&impatient.build().unwrap(), "key/0").await.unwrap_err();
    assert!(refused.to_string().contains("No space left"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_and_then_the_leader_run_out_of_space() {
    let mut cluster = Cluster::prepared(Setup::default());
    let mut disks = Vec::new();
    for node in &mut cluster.nodes {
        let at = cluster.dir.path().join(format!("disk-{}", node.id));
        let Some(disk) = SmallDisk::mount(&at, DISK_BYTES) else { return };
        node.data_dir = at.join("data");
        disks.push(disk);
    }
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.serving().await;
    let client = cluster.client();
    let mut writing = Writing { client, acknowledged: Vec::new(), tried: 0 };
    assert!(writing.put().await);
    cluster.caught_up(&[1, 2, 3]).await;

    for leads in [false, true] {
        let leader = cluster.leader().await;
        let full = if leads { leader } else { leader % 3 + 1 };
        let disk = &disks[full as usize - 1];
        disk.fill();
        until_it_says_why(&cluster, full, &mut writing).await;
        // The others continue, whether or not the full node led.
        let goal = writing.acknowledged.len() + 5;
        eventually("writing continues", async || {
            writing.put().await;
            let done = writing.acknowledged.len();
            if done >= goal { Ok(()) } else { Err(format!("{done} puts of {goal}")) }
        })
        .await;
        let healthy: Vec<u64> = (1..=3).filter(|id| *id != full).collect();
        cluster.caught_up(&healthy).await;
        cluster.assert_running(full);
        let log = fs::read_to_string(&cluster.node(full).log).unwrap();
        assert!(log.contains("No space left") && !log.contains("panicked"), "{log}");

        // A restart before there is room reports the next step and does no harm.
        cluster.stop(full);
        let before = fs::read_to_string(&cluster.node(full).log).unwrap().len();
        cluster.start_node(full);
        let log = eventually("the node says that the disk is full", async || {
            let log = fs::read_to_string(&cluster.node(full).log).unwrap().split_off(before);
            if log.contains("No space left") { Ok(log) } else { Err(log) }
        })
        .await;
        assert!(!log.contains("damaged") && !log.contains("node id"), "{log}");
        cluster.kill(full);

        disk.make_room();
        cluster.start_node(full);
        cluster.caught_up(&[1, 2, 3]).await;
    }
    for id in 1..=3 {
        let client = cluster.client_of(id);
        for key in &writing.acknowledged {
            assert_eq!(get_stale(&client, key).await.unwrap(), text(key), "{key} on node {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_finds_no_room_fails_alone() {
    let mut cluster = Cluster::prepared(Setup::default());
    cluster.nodes.truncate(1);
    cluster.start_node(1);
    cluster.serving().await;
    let client = cluster.client();
    for number in 0..16 {
        let key = format!("key/{number}");
        put(&client, &key, &text(&key)).await.unwrap();
    }
    cluster.stop(1);
    let snapshots = cluster.node(1).data_dir.join("snapshots");
    let Some(disk) = SmallDisk::mount(&snapshots, 1 << 20) else { return };
    cluster.start_node(1);
    cluster.serving().await;
    for round in 0..2 {
        let client = Client::builder().endpoints([cluster.node(1).client.clone()]);
        let client = client.deadline(PATIENCE).build().unwrap();
        let error = client.snapshot().await.unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        assert_eq!(files(&snapshots), Vec::<PathBuf>::new(), "something is left of it");
        put(&client, "after", &round.to_string()).await.unwrap();
        assert_eq!(get(&client, "after").await.unwrap(), round.to_string());
        assert_eq!(fatal_error(&cluster, 1).await.unwrap(), "");
    }
    // After a restart there is no file that could be taken for a snapshot either.
    cluster.kill(1);
    cluster.start_node(1);
    cluster.serving().await;
    assert_eq!(get(&cluster.client(), "after").await.unwrap(), "1");
    disk.grow(64 << 20);
    cluster.client().snapshot().await.unwrap();
    assert_eq!(files(&snapshots).len(), 1);
    cluster.kill(1);
    cluster.start_node(1);
    cluster.serving().await;
    assert_eq!(get(&cluster.client(), "key/15").await.unwrap(), text("key/15"));
    cluster.kill(1);
}
