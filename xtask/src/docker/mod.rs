//! Tests of the image and the compose cluster on a real Docker engine.
//!
//! No image registry is used: the base consists of Debian packages, and the binary is an existing
//! one, so that one run compiles wasmtime once. All objects of a run have its name and are removed
//! at its end.

mod compose;
mod image;
mod scenario;

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build,
    output::{Steps, say, skip},
    process, setup,
    workspace::Workspace,
};
use compose::{Compose, Engine};
use scenario::Cluster;

#[derive(Args)]
pub(crate) struct Options {
    /// Use this binary instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Use this base image instead of creating one with debootstrap
    #[arg(long, value_name = "IMAGE")]
    base: Option<String>,
}

/// Runs `cargo xtask docker`. A missing engine is an error.
pub(crate) fn run(workspace: &Workspace, options: &Options, steps: &mut Steps) -> Result<()> {
    let engine = Engine::find()?;
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            setup::compiler(steps)?;
            build::binary(workspace, false, steps)?
        }
    };
    on_engine(workspace, &engine, &binary, options.base.as_deref(), steps)
}

/// Runs the tests as a part of `cargo xtask test`. Without an engine they are skipped.
pub(crate) fn test(workspace: &Workspace, binary: &PathBuf, steps: &mut Steps) -> Result<()> {
    match Engine::find() {
        Ok(engine) => on_engine(workspace, &engine, binary, None, steps),
        Err(error) => {
            skip("the image and the compose cluster", &format!("{error:#}"));
            Ok(())
        }
    }
}

fn on_engine(
    workspace: &Workspace,
    engine: &Engine,
    binary: &PathBuf,
    base: Option<&str>,
    steps: &mut Steps,
) -> Result<()> {
    say(&format!("{engine}"));
    let name = format!("conclave-test-{}", std::process::id());
    // Dropped last, when no container uses the images any more.
    let images = steps.run("build the image", || image::build(workspace, &name, binary, base))?;
    say(&format!("the image has {} MB", images.size_bytes()? / 1_000_000));
    let compose = Compose::new(workspace, engine, &name, images.tag())?;
    let cluster = Cluster { compose: &compose, binary };
    let result = scenario::run(&cluster, steps);
    if result.is_err() {
        compose.show_logs();
    }
    let clean = compose.remove();
    result.and(clean)
}

/// Runs docker with these arguments and returns its output.
fn docker(arguments: &[&str]) -> Result<String> {
    process::capture(Command::new("docker").args(arguments)).map(|text| text.trim().to_owned())
}

/// Returns one property of a docker object.
fn inspect(what: &str, format: &str) -> Result<String> {
    let answer = docker(&["inspect", "--format", format, what])?;
    if answer == "<no value>" {
        bail!("docker has no {format} of {what}");
    }
    Ok(answer)
}

/// Creates a file with a random master key for compose, readable by the container's user.
fn master_key(workspace: &Workspace) -> Result<PathBuf> {
    let directory = workspace.scratch("docker");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let path = directory.join("master.key");
    let mut key = [0; 32];
    let mut random = std::fs::File::open("/dev/urandom").context("no /dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut key).context("cannot read /dev/urandom")?;
    std::fs::write(&path, key).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
