//! The scenarios of the compose cluster: loss of the leader, of the network, and of all containers.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{compose::Compose, docker, inspect};
use crate::{output::Steps, process};

const NODES: [usize; 3] = [1, 2, 3];
/// From the creation of the containers to a serving cluster, on a busy host.
const HEALTHY_TIME_MAX: Duration = Duration::from_secs(120);
/// Enough for an election, and for a client to find the new leader.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// The engine reports a node as unhealthy only after several failed health checks in a row.
const UNHEALTHY_TIME_MAX: Duration = Duration::from_secs(60);
/// The exit status of a killed process: it did not stop on request.
const KILLED: &str = "137";

pub(crate) struct Cluster<'a> {
    pub(crate) compose: &'a Compose,
    /// The binary that runs as a client on this host.
    pub(crate) binary: &'a PathBuf,
}

/// Runs all scenarios in order. Each starts with three healthy nodes and ends with three healthy nodes.
pub(crate) fn run(cluster: &Cluster<'_>, steps: &mut Steps) -> Result<()> {
    steps.run("compose up: three healthy nodes without privileges", || cluster.start())?;
    steps.run("put, stop the leader, get from another", || cluster.lose_the_leader())?;
    steps.run("disconnect a node from the network, reconnect it", || cluster.lose_the_network())?;
    steps.run("compose down and up keeps the data", || cluster.down_and_up())
}

impl Cluster<'_> {
    fn start(&self) -> Result<()> {
        self.compose.up()?;
        self.all_healthy()?;
        for node in NODES {
            let container = self.compose.container(node)?;
            expect(&inspect(&container, "{{.HostConfig.ReadonlyRootfs}}")?, "true", "read-only")?;
            expect(&inspect(&container, "{{.Config.User}}")?, "65532:65532", "user")?;
        }
        Ok(())
    }

    fn lose_the_leader(&self) -> Result<()> {
        self.put("docker/first", "one", &NODES)?;
        let leader = self.leader(&NODES)?;
        let others: Vec<_> = NODES.into_iter().filter(|&node| node != leader).collect();

        let container = self.compose.container(leader)?;
        docker(&["stop", &container])?;
        if inspect(&container, "{{.State.ExitCode}}")? == KILLED {
            bail!("node {leader} did not stop on request and had to be killed");
        }
        for &node in &others {
            self.expect_value("docker/first", "one", node)?;
        }
        self.put("docker/second", "two", &others)?;

        docker(&["start", &container])?;
        self.all_healthy()?;
        self.expect_value("docker/second", "two", leader)
    }

    fn lose_the_network(&self) -> Result<()> {
        let leader = self.leader(&NODES)?;
        let others: Vec<_> = NODES.into_iter().filter(|&node| node != leader).collect();
        let lost = others.first().copied().context("there is no follower")?;
        let rest: Vec<_> = NODES.into_iter().filter(|&node| node != lost).collect();

        self.compose.disconnect(lost)?;
        process::retry("a node without peers becomes unhealthy", UNHEALTHY_TIME_MAX, || {
            expect(&self.compose.health(lost)?, "unhealthy", "health")
        })?;
        self.put("docker/third", "three", &rest)?;

        self.compose.connect(lost)?;
        self.all_healthy()?;
        self.expect_value("docker/third", "three", lost)
    }

    fn down_and_up(&self) -> Result<()> {
        self.compose.down()?;
        self.compose.up()?;
        self.all_healthy()?;
        for node in NODES {
            for (key, value) in
                [("docker/first", "one"), ("docker/second", "two"), ("docker/third", "three")]
            {
                self.expect_value(key, value, node)?;
            }
        }
        Ok(())
    }

    fn all_healthy(&self) -> Result<()> {
        process::retry("three healthy nodes", HEALTHY_TIME_MAX, || {
            NODES.into_iter().try_for_each(|node| {
                expect(&self.compose.health(node)?, "healthy", &format!("node {node}"))
            })
        })
    }

    fn put(&self, key: &str, value: &str, nodes: &[usize]) -> Result<()> {
        process::retry("a put", ANSWER_TIME_MAX, || {
            self.client(&["kv", "put", key, value], nodes).map(drop)
        })
    }

    /// Reads from one node. The node confirms with its peers that it is up to date.
    fn expect_value(&self, key: &str, value: &str, node: usize) -> Result<()> {
        process::retry(&format!("{key} on node {node}"), ANSWER_TIME_MAX, || {
            let answer = self.client(&["kv", "get", key], &[node])?;
            expect(answer.trim(), value, key)
        })
    }

    fn leader(&self, nodes: &[usize]) -> Result<usize> {
        process::retry("a leader", ANSWER_TIME_MAX, || {
            let status: Value = serde_json::from_str(&self.client(&["status", "--json"], nodes)?)
                .context("cannot read `conclave status --json`")?;
            let leader = status["leader"].as_u64().unwrap_or(0) as usize;
            if NODES.contains(&leader) { Ok(leader) } else { bail!("there is no leader") }
        })
    }

    fn client(&self, arguments: &[&str], nodes: &[usize]) -> Result<String> {
        let endpoints: Vec<_> = nodes.iter().map(|&node| self.compose.endpoint(node)).collect();
        let mut command = Command::new(self.binary);
        command.args(arguments).args(["--endpoints", &endpoints.join(",")]);
        process::capture(&mut command)
    }
}

fn expect(found: &str, expected: &str, what: &str) -> Result<()> {
    if found != expected {
        bail!("{what}: {found:?} instead of {expected:?}");
    }
    Ok(())
}
