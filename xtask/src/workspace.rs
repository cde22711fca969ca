//! Paths of the workspace, its cargo, and free ports.

use std::{
    env,
    net::TcpListener,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process;

/// The workspace, and the directories under its target directory that these commands use.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Returns the workspace of the current directory. Uses cargo's metadata, because the target
    /// directory can be set in several ways.
    pub(crate) fn find() -> Result<Self> {
        let mut metadata = cargo();
        metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
        let metadata: Value = serde_json::from_str(&process::capture(&mut metadata)?)
            .context("cannot read cargo's metadata")?;
        let path = |field: &str| metadata[field].as_str().map(PathBuf::from);
        match (path("workspace_root"), path("target_directory")) {
            (Some(root), Some(target)) => Ok(Self { root, target }),
            _ => bail!("cargo's metadata contains no workspace"),
        }
    }

    /// Returns the path of the built binary.
    pub(crate) fn binary(&self, release: bool) -> PathBuf {
        self.target.join(if release { "release" } else { "debug" }).join("conclave")
    }

    /// Returns the directory for the files of `cargo xtask <verb>`.
    pub(crate) fn scratch(&self, verb: &str) -> PathBuf {
        self.target.join(verb)
    }

    /// Returns `path` relative to the root, for messages.
    pub(crate) fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}

/// Returns the cargo that runs this program, so that `cargo +toolchain xtask` stays with its toolchain.
pub(crate) fn cargo() -> std::process::Command {
    std::process::Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Returns loopback ports that were free just now.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    let bind = || TcpListener::bind(("127.0.0.1", 0)).context("no free port");
    // All listeners stay open until all ports are chosen, so that no port is chosen twice.
    let listeners = (0..count).map(|_| bind()).collect::<Result<Vec<_>>>()?;
    let port = |listener: &TcpListener| Ok(listener.local_addr().context("no port")?.port());
    listeners.iter().map(port).collect()
}
