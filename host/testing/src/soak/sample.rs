//! The resources that a node uses, from the kernel, its data directory and its metrics.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::cluster::Cluster;

/// A busy host may delay a node for some time. That is no failure.
const METRICS_TIME_MAX: Duration = Duration::from_secs(30);

/// The resources of one node at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Disk space of `log/`.
    pub log_bytes: u64,
    /// Disk space of the finished snapshots.
    pub snapshot_bytes: u64,
    /// Disk space of all other files, such as a snapshot that is being written.
    pub other_bytes: u64,
    /// Total size of the entries in the log.
    pub live_log_bytes: u64,
    /// The applied index.
    pub applied: u64,
    /// The index of the newest snapshot.
    pub snapshot: u64,
    /// The index up to which the log is purged.
    pub purged: u64,
    /// Calls that trapped since the node started.
    pub traps: u64,
    /// Consistency checks since the start in which the node differed from the majority.
    pub divergences: u64,
}

impl Usage {
    /// Disk space of the whole data directory.
    pub fn disk_bytes(&self) -> u64 {
        self.log_bytes + self.snapshot_bytes + self.other_bytes
    }

    /// The bytes that the node must keep: its log and its finished snapshots.
    pub fn needed_bytes(&self) -> u64 {
        self.live_log_bytes + self.snapshot_bytes
    }
}

/// The resources of all nodes at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The time since the load began.
    pub at: Duration,
    /// The usage of each node, in the order of their ids.
    pub nodes: Vec<Usage>,
}

impl Sample {
    /// Samples all nodes.
    pub async fn take(cluster: &Cluster, at: Duration) -> Result<Self> {
        let mut nodes = Vec::new();
        for id in cluster.ids() {
            let usage = usage(cluster, id).await;
            nodes.push(usage.with_context(|| format!("cannot sample node {id}"))?);
        }
        Ok(Self { at, nodes })
    }
}

async fn usage(cluster: &Cluster, id: u64) -> Result<Usage> {
    let node = cluster.node(id);
    let pid = cluster.pid(id).context("it does not run")?;
    let page = metrics(&node.admin).await?;
    let metric = |name| metric(&page, name).with_context(|| format!("it has no metric {name}"));
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    let (mut log_bytes, mut snapshot_bytes, mut other_bytes) = (0, 0, 0);
    for_each_file(&node.data_dir, &mut |path, bytes| {
        let below = path.strip_prefix(&node.data_dir).unwrap_or(path);
        let place = match below.extension() {
            _ if below.starts_with("log") => &mut log_bytes,
            Some(extension) if extension == "snap" => &mut snapshot_bytes,
            _ => &mut other_bytes,
        };
        *place += bytes;
    })?;
    Ok(Usage {
        resident_bytes: resident_bytes(&status).context("no VmRSS in its status")?,
        descriptors,
        log_bytes,
        snapshot_bytes,
        other_bytes,
        live_log_bytes: metric("conclave_log_live_bytes")?,
        applied: metric("conclave_raft_applied_index")?,
        snapshot: metric("conclave_raft_snapshot_index")?,
        purged: metric("conclave_raft_purged_index")?,
        traps: metric("conclave_traps_total")?,
        divergences: metric("conclave_divergences_total")?,
    })
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Calls `each` with every file and its disk space. Skips files that are removed meanwhile.
fn for_each_file(dir: &Path, each: &mut impl FnMut(&Path, u64)) -> Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(dir) {
        Err(error) if gone(&error) => return Ok(()),
        entries => entries.with_context(|| format!("cannot read {}", dir.display()))?,
    };
    for entry in entries {
        let path = entry?.path();
        match fs::symlink_metadata(&path) {
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
            Ok(metadata) if metadata.is_dir() => for_each_file(&path, each)?,
            // POSIX counts blocks of 512 bytes here, independent of the file system's block size.
            Ok(metadata) => each(&path, metadata.blocks() * 512),
        }
    }
    Ok(())
}

/// The metrics of a node, in the text format.
pub(crate) async fn metrics(admin: &str) -> Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "no metrics: {:?}", answer.lines().next());
        Ok(answer)
    };
    timeout(METRICS_TIME_MAX, ask).await.context("its metrics took too long")?
}

/// The sum of a metric over all its labels. `None` if the metric does not exist.
pub(crate) fn metric(page: &str, name: &str) -> Option<u64> {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = rest.rsplit_once(' ').filter(|_| rest.starts_with([' ', '{']))?.1;
        value.parse::<f64>().ok()
    });
    values.reduce(|sum, value| sum + value).map(|sum| sum as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_is_the_sum_over_its_labels() {
        let page = "# HELP traps Traps.\r\ntraps{kind=\"a b\"} 2\ntraps{kind=\"c\"} 3\ntraps_total 9\nnone 1.5\n";
        assert_eq!(metric(page, "traps"), Some(5));
        assert_eq!(metric(page, "none"), Some(1));
        assert_eq!(metric(page, "trap"), None);
        assert_eq!(resident_bytes("VmPeak:\t9 kB\nVmRSS:\t   123 kB\n"), Some(123 << 10));
    }

    #[test]
    fn files_are_counted_by_the_space_that_they_take() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("below/full"), vec![1; 100_000]).unwrap();
        fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let mut total = 0;
        for_each_file(dir.path(), &mut |_, bytes| total += bytes).unwrap();
        assert!((100_000..200_000).contains(&total), "{total}");
        for_each_file(&dir.path().join("gone"), &mut |_, _| {}).unwrap();
    }
}
