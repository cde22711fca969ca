//! A cluster of three Conclave nodes, started by `conclave dev`.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::cluster::{Cluster, Node};
use crate::process::{self, Running};

const NODES: u16 = 3;
/// Enough to open a data directory, compile a component and elect a leader.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Node i listens on base+i, base+100+i and base+200+i.
const PORT_OFFSETS: [u16; 3] = [0, 100, 200];

/// Starts three nodes with the data in the directory, and with the given component or the default one.
pub(crate) fn start(binary: &Path, component: Option<&Path>, directory: &Path) -> Result<Cluster> {
    let data = directory.join("data");
    let description = data.join("cluster.json");
    let mut command = Command::new(binary);
    command.args(["dev", "--nodes", &NODES.to_string()]).arg("--data-dir").arg(&data);
    command.args(["--port-base", &port_base(directory)?.to_string()]);
    if let Some(component) = component {
        command.arg("--component").arg(component);
    }
    let log = directory.join("dev.log");
    let mut dev = Running::start("conclave dev", &command, &log)?;

    let ask_leader = {
        let binary = binary.to_owned();
        Box::new(move |nodes: &[Node]| leader(&binary, nodes))
    };
    let what = format!("the cluster's start (its log: {})", log.display());
    let nodes = process::retry_while(&what, START_TIME_MAX, &mut [&mut dev], || {
        // A node that does not run has no process id in this file.
        let nodes = nodes(&description)?;
        ask_leader(&nodes)?;
        // If a node dies before this line, `dev` treats the start as failed and stops the others.
        let printed = fs::read_to_string(&log).context("cannot read its log")?;
        anyhow::ensure!(
            printed.contains(" serves: "),
            "conclave dev has not reported that it serves"
        );
        Ok(nodes)
    })?;
    Ok(Cluster { name: "conclave", nodes, ask_leader, processes: vec![dev] })
}

fn nodes(description: &PathBuf) -> Result<Vec<Node>> {
    let text =
        fs::read(description).with_context(|| format!("cannot read {}", description.display()))?;
    let cluster: Value = serde_json::from_slice(&text).context("cannot read cluster.json")?;
    let nodes = cluster["nodes"].as_array().context("cluster.json has no nodes")?;
    let node = |node: &Value| {
        Some(Node {
            id: node["id"].as_u64()?,
            pid: u32::try_from(node["pid"].as_u64()?).ok()?,
            endpoint: node["client"].as_str()?.to_owned(),
        })
    };
    nodes.iter().map(|value| node(value).context("cluster.json has an invalid node")).collect()
}

fn leader(binary: &Path, nodes: &[Node]) -> Result<u64> {
    let endpoints: Vec<_> = nodes.iter().map(|node| node.endpoint.as_str()).collect();
    let mut status = Command::new(binary);
    status.args(["status", "--json", "--endpoints", &endpoints.join(",")]);
    let status: Value = serde_json::from_str(&process::capture(&mut status)?)
        .context("cannot read `conclave status --json`")?;
    status["leader"].as_u64().filter(|&id| id != 0).context("conclave has no leader")
}

/// Returns the base used before with the same data, or else the first base whose ports are all free.
fn port_base(directory: &Path) -> Result<u16> {
    let path = directory.join("port-base");
    if let Ok(text) = fs::read_to_string(&path) {
        return text.trim().parse().context("cannot read the port base");
    }
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let all_free = |base: &u16| {
        let ports = PORT_OFFSETS.iter().flat_map(|offset| (1..=NODES).map(move |id| offset + id));
        ports.into_iter().all(|port| free(base + port))
    };
    let base = (17_100..27_100).step_by(1_000).find(all_free).context("no free ports")?;
    fs::write(&path, base.to_string()).context("cannot write the port base")?;
    Ok(base)
}
