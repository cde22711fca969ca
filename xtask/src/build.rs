//! `build` and `dev`.

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
    /// With all optimizations, as in the image. Compiles wasmtime a second time.
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
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// With all optimizations. Compiles wasmtime a second time.
    #[arg(long)]
    release: bool,
    /// For `conclave dev`, such as `--port-base 8100` or `--component machine.wasm`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

impl Dev {
    /// Ends only with an error: on success, this process becomes `conclave dev`, so that Ctrl-C and
    /// SIGTERM reach it.
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
/// It comes along so that cargo chooses the same features for every library as it does for the
/// tests: with the package alone it would choose others for some, and compile wasmtime once more.
pub(crate) fn build_programs(workspace: &Workspace, release: bool) -> Command {
    let mut build = cargo();
    build.current_dir(&workspace.root).args(["build", "--workspace", "--bin", "conclave"]);
    build.args(["--example", "load"]);
    if release {
        build.arg("--release");
    }
    build
}

/// Builds the programs that are the benchmark's alone, by themselves: their feature is not for the binary.
pub(crate) fn build_bench_programs(workspace: &Workspace) -> Command {
    let mut build = cargo();
    build.current_dir(&workspace.root).args(["build", "--release", "--workspace"]);
    build.args(["--features", "conclave-cli/bench"]);
    build.args(["--example", "apply_cost", "--example", "native_node"]);
    build
}

/// Builds the binary and says where it is.
pub(crate) fn binary(workspace: &Workspace, release: bool, steps: &mut Steps) -> Result<PathBuf> {
    let binary = workspace.binary(release);
    let name = if release { "build the binary (release)" } else { "build the binary" };
    steps.run(name, || {
        if !binary.exists() {
            say(
                "the first build compiles wasmtime, which takes several minutes; later ones do not",
            );
        }
        process::run(&mut build_programs(workspace, release))?;
        say(&format!("{} is ready", workspace.relative(&binary).display()));
        Ok(binary)
    })
}
