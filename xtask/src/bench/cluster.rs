//! A running cluster of Conclave or etcd.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::process::Running;

pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) pid: u32,
    /// The address for clients, as host:port.
    pub(crate) endpoint: String,
}

/// Queries the nodes for the current leader.
pub(crate) type AskLeader = Box<dyn Fn(&[Node]) -> Result<u64> + Send + Sync>;

/// A running cluster. Dropping it ends its processes.
pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    pub(crate) nodes: Vec<Node>,
    pub(crate) ask_leader: AskLeader,
    /// The processes to end. They need not be the nodes: `conclave dev` ends its own nodes.
    #[expect(dead_code, reason = "held to be dropped")]
    pub(crate) processes: Vec<Running>,
}

impl Cluster {
    /// Returns the current leader.
    pub(crate) fn leader(&self) -> Result<&Node> {
        let id = (self.ask_leader)(&self.nodes)?;
        let mut nodes = self.nodes.iter();
        nodes.find(|node| node.id == id).with_context(|| format!("{}: no leader", self.name))
    }

    /// Returns the resident memory of each node.
    pub(crate) fn memory_mib(&self) -> Result<Vec<u64>> {
        self.nodes.iter().map(|node| resident_mib(node.pid)).collect()
    }
}

fn resident_mib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no VmRSS"))? / 1024)
}

/// Creates the directory, or empties it if it exists.
pub(crate) fn empty_directory(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path.to_owned())
}
