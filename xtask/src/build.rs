//! The commands `build` and `dev`.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    output::{Steps, say},
    process, setup,
    workspace::{Workspace, cargo},
};

#[derive(Args)]
pub(crate) struct Build {
    /// Build with all optimizations, as in the image. Compiles wasmtime a second time
    #[arg(long)]
    release: bool,
}

impl Build {
    pub(crate) fn run(&self, workspace: &Workspace, steps: &mut Steps) -> Result<PathBuf> {
        setup::compiler(steps)?;
        binary(workspace, self.release, steps)
    }
}

#[derive(Args)]
pub(crate) struct Dev {
    /// Number of nodes
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// Build with all optimizations. Compiles wasmtime a second time
    #[arg(long)]
    release: bool,
    /// Arguments for `conclave dev`, such as `--port-base 8100` or `--component machine.wasm`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

impl Dev {
    /// Returns only errors. On success, this process is replaced by `conclave dev`, so that Ctrl-C
    /// and SIGTERM reach it.
    pub(crate) fn run(&self, workspace: &Workspace, steps: &mut Steps) -> Result<()> {
        setup::compiler(steps)?;
        let binary = binary(workspace, self.release, steps)?;
        let mut dev = Command::new(binary);
        dev.arg("dev").args(["--nodes", &self.nodes.to_string()]).args(&self.rest);
        if !self.rest.iter().any(|word| word == "--data-dir" || word.starts_with("--data-dir=")) {
            dev.arg("--data-dir").arg(workspace.scratch("dev"));
        }
        say(&format!("$ {}", process::command_line(&dev)));
        Err(dev.exec()).context("cannot start the cluster")
    }
}

/// Builds the binary and the load generator.
///
/// Both are built together so that cargo selects the same library features as for the tests. For the
/// package alone, cargo would select other features for some libraries and compile wasmtime again.
pub(crate) fn build_programs(workspace: &Workspace, release: bool) -> Command {
    let mut build = cargo();
    build.current_dir(&workspace.root).args(["build", "--workspace", "--bin", "conclave"]);
    build.args(["--example", "load"]);
    if release {
        build.arg("--release");
    }
    build
}

/// Builds the programs that only the benchmark needs. They are built separately, because the binary
/// must not have their feature.
pub(crate) fn build_bench_programs(workspace: &Workspace) -> Command {
    let mut build = cargo();
    build.current_dir(&workspace.root).args(["build", "--release", "--workspace"]);
    build.args(["--features", "conclave-cli/bench"]);
    build.args(["--example", "apply_cost", "--example", "native_node"]);
    build
}

/// Builds the binary and returns its path.
pub(crate) fn binary(workspace: &Workspace, release: bool, steps: &mut Steps) -> Result<PathBuf> {
    let binary = workspace.binary(release);
    let name = if release { "build the binary (release)" } else { "build the binary" };
    steps.run(name, || {
        if !binary.exists() {
            say(
                "the first build compiles wasmtime, which takes several minutes; later builds do not",
            );
        }
        process::run(&mut build_programs(workspace, release))?;
        say(&format!("{} is ready", workspace.relative(&binary).display()));
        Ok(binary)
    })
}
