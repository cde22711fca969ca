//! `conclave build`: from a machine's project to a component.
//!
//! Contract: the component appears whole or not at all. What the compilers say goes to stderr as they say
//! it; the component's path to stdout.

mod core;
mod project;
mod python;
mod rust;

use std::path::{Path, PathBuf};

use clap::Args;

pub(super) use self::python::{BYTECODE_DIR, write_descriptor_set};

use self::project::{Language, Project};
use super::{Failed, Result, output::Output};

/// Build a machine's component
///
/// A directory with a Cargo.toml is built with Rust, for wasm32-unknown-unknown; one with a
/// pyproject.toml with componentize-py, which is installed from PyPI into the project's target
/// directory, along with the packages that the project depends on; one with a go.mod with Go, for wasip1.
/// What is missing for that is named, with how to install it.
///
/// A file is a core module that some other compiler made, for wasip1 or without WASI, with the functions of
/// conclave:fsm. It becomes a component with the adapter to WASI 0.2.
///
/// A component in Rust depends on the source alone, not on where it lies: the same source and compiler
/// give the same module id. Python's holds a started interpreter, and differs from build to build.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave build
  conclave build machines/lock --output lock.wasm
  conclave build lock.core.wasm --output lock.wasm
  conclave dev --component \"$(conclave build)\" --watch

What it needs:
  rustup target add wasm32-unknown-unknown            for Rust
  apt-get install python3 python3-venv                for Python, and access to PyPI
  https://go.dev/doc/install                          for Go, 1.24 or newer")]
pub struct Arguments {
    /// The machine's project, or a core module
    #[arg(value_name = "DIR|FILE", default_value = ".")]
    dir: PathBuf,

    /// Where the component goes [default: DIR/target/NAME.wasm, or FILE with `.component.wasm` at its end]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Where the compilers keep their files [default: DIR/target]
    #[arg(long, value_name = "DIR", env = "CARGO_TARGET_DIR", hide_env_values = true)]
    target_dir: Option<PathBuf>,
}

/// What a build gave.
struct Built {
    size_bytes: u64,
    imports: Vec<String>,
    changed: bool,
}

/// The directory of the nearest project above a component.
pub(super) fn project_above(component: &Path) -> Option<PathBuf> {
    Project::above(component).map(|project| project.dir)
}

/// What a build writes besides the compilers' files, so that it is no source: the component, and what is made
/// on the way.
pub(super) fn outputs(project: &Path, component: &Path) -> [PathBuf; 3] {
    [
        component.to_owned(),
        component.with_extension("partial"),
        project.join(python::DESCRIPTOR_SET_FILE),
    ]
}

/// Runs the verb.
pub fn run(arguments: Arguments, output: &mut Output) -> Result {
    if arguments.dir.is_file() {
        let file = arguments.output;
        let file = file.unwrap_or_else(|| arguments.dir.with_extension("component.wasm"));
        return report(&core::adapt(&arguments.dir, &file)?, &file, output);
    }
    // So that paths read as one would write them.
    let project = Project::of(arguments.dir.strip_prefix(".").unwrap_or(&arguments.dir))?;
    let file = arguments
        .output
        .unwrap_or_else(|| project.dir.join("target").join(&project.name).with_extension("wasm"));
    let target_dir = arguments.target_dir.unwrap_or_else(|| project.dir.join("target"));
    let built = match project.language {
        Language::Rust => rust::build(&project, &target_dir, &file)?,
        Language::Python => python::build(&project, &target_dir, &file, output)?,
        Language::Go => core::build_go(&project, &target_dir, &file)?,
    };
    report(&built, &file, output)
}

fn report(built: &Built, file: &Path, output: &mut Output) -> Result {
    output.remark(format!(
        "{} kB, {}; it imports {}",
        built.size_bytes.div_ceil(1000),
        if built.changed { "new" } else { "as it was" },
        imports_text(&built.imports)
    ));
    output.line(file.display().to_string());
    Ok(())
}

/// Imports in a line. WASI's come by the dozen; `conclave inspect` names each.
fn imports_text(imports: &[String]) -> String {
    let (wasi, mut named): (Vec<_>, Vec<_>) =
        imports.iter().map(String::as_str).partition(|import| import.starts_with("wasi:"));
    if !wasi.is_empty() {
        named.push("WASI");
    }
    if named.is_empty() { "nothing".to_owned() } else { named.join(", ") }
}

/// The whole chain of reasons, in one line.
fn failed(error: &anyhow::Error) -> Failed {
    Failed::local(format!("{error:#}"))
}
