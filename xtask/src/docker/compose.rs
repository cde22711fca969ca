//! `docker-compose.yml`, run with a separate project name and separate ports.

use std::{fmt, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{docker, inspect, master_key};
use crate::{
    output::say,
    process::{self, find_program},
    workspace::{Workspace, free_ports},
};

const UP_TIME_MAX: Duration = Duration::from_secs(300);

/// A running Docker engine and its compose tool.
pub(crate) struct Engine {
    version: String,
    /// `docker compose`, or the older `docker-compose`.
    compose: Vec<String>,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Docker engine {}, `{}`", self.version, self.compose.join(" "))
    }
}

impl Engine {
    pub(crate) fn find() -> Result<Self> {
        if find_program("docker").is_none() {
            bail!("docker is not installed");
        }
        let version = docker(&["version", "--format", "{{.Server.Version}}"])
            .context("no Docker engine is running")?;
        let candidates = [vec!["docker", "compose"], vec!["docker-compose"]];
        let compose = candidates.into_iter().find(|words| {
            let mut command = Command::new(words[0]);
            process::capture(command.args(&words[1..]).arg("version")).is_ok()
        });
        let compose =
            compose.context("neither `docker compose` nor docker-compose is installed")?;
        Ok(Self { version, compose: compose.into_iter().map(str::to_owned).collect() })
    }
}

/// A compose project: containers, a network and volumes with its name.
pub(crate) struct Compose {
    command: Vec<String>,
    root: PathBuf,
    project: String,
    image: String,
    key: PathBuf,
    ports: Vec<u16>,
}

impl Compose {
    pub(crate) fn new(
        workspace: &Workspace,
        engine: &Engine,
        project: &str,
        image: &str,
    ) -> Result<Self> {
        Ok(Self {
            command: engine.compose.clone(),
            root: workspace.root.clone(),
            project: project.to_owned(),
            image: image.to_owned(),
            key: master_key(workspace)?,
            ports: free_ports(3)?,
        })
    }

    /// Returns the address of the node for a client on this host.
    pub(crate) fn endpoint(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.ports.get(node - 1).copied().unwrap_or_default())
    }

    pub(crate) fn up(&self) -> Result<()> {
        self.run(&["up", "--detach", "--no-build"]).map(drop)
    }

    /// Removes the containers and the network. Keeps the volumes.
    pub(crate) fn down(&self) -> Result<()> {
        self.run(&["down"]).map(drop)
    }

    /// Removes everything that this project created.
    pub(crate) fn remove(&self) -> Result<()> {
        self.run(&["down", "--volumes", "--remove-orphans"]).map(drop)
    }

    /// Returns the id of a node's container, running or not.
    pub(crate) fn container(&self, node: usize) -> Result<String> {
        let all = docker(&[
            "ps",
            "--all",
            "--quiet",
            "--filter",
            &format!("label=com.docker.compose.project={}", self.project),
            "--filter",
            &format!("label=com.docker.compose.service=node{node}"),
        ])?;
        match all.lines().collect::<Vec<_>>().as_slice() {
            [id] => Ok((*id).to_owned()),
            ids => bail!("node {node} has {} containers", ids.len()),
        }
    }

    /// Returns the health of a node: `starting`, `healthy` or `unhealthy`.
    pub(crate) fn health(&self, node: usize) -> Result<String> {
        inspect(&self.container(node)?, "{{.State.Health.Status}}")
    }

    /// Disconnects the node from the network that the nodes share.
    pub(crate) fn disconnect(&self, node: usize) -> Result<()> {
        docker(&["network", "disconnect", &self.network(), &self.container(node)?]).map(drop)
    }

    /// Reconnects the node, with the name that its peers use.
    pub(crate) fn connect(&self, node: usize) -> Result<()> {
        let (network, container) = (self.network(), self.container(node)?);
        docker(&["network", "connect", "--alias", &format!("node{node}"), &network, &container])
            .map(drop)
    }

    /// Prints the last lines of each node's log, after a failure.
    pub(crate) fn show_logs(&self) {
        match self.run(&["logs", "--no-color", "--tail", "40"]) {
            Ok(logs) => logs.lines().for_each(say),
            Err(error) => say(&format!("no logs: {error:#}")),
        }
    }

    fn network(&self) -> String {
        format!("{}_default", self.project)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let Some((program, words)) = self.command.split_first() else { bail!("no compose") };
        let mut command = Command::new(program);
        command.args(words).current_dir(&self.root);
        command.args(["--project-name", &self.project, "--file", "docker-compose.yml"]);
        command.args(arguments);
        command.env("CONCLAVE_IMAGE", &self.image).env("CONCLAVE_MASTER_KEY_PATH", &self.key);
        for (at, port) in self.ports.iter().enumerate() {
            command.env(format!("CONCLAVE_PORT_{}", at + 1), port.to_string());
        }
        process::capture_within(&mut command, UP_TIME_MAX)
    }
}
