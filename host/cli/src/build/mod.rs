//! `conclave build`: builds a state machine's project into a component.
//!
//! Contract: the component's file is either complete or not written. The compilers' messages go to
//! stderr immediately, the component's path to stdout.

mod core;
mod project;
mod python;
mod rust;

use std::path::{Path, PathBuf};

use clap::Args;

pub(super) use self::python::{BYTECODE_DIR, write_descriptor_set};

use self::project::{Language, Project};
use super::{Failed, Result, output::Output};

/// Build the component of a state machine
///
/// A directory with a Cargo.toml is built with Rust for wasm32-unknown-unknown. One with a
/// pyproject.toml is built with componentize-py, which is installed from PyPI into the project's
/// target directory, along with the packages on which the project depends. One with a go.mod is
/// built with Go for wasip1. If a tool is missing, the error explains how to install it.
///
/// A file is a core module from any other compiler, for wasip1 or without WASI, with the functions
/// of conclave:fsm. It is adapted to WASI 0.2 and becomes a component.
///
/// A Rust component depends only on the source, not on its location: the same source and compiler
/// give the same component id. A Python component contains a started interpreter and differs from
/// build to build.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave build
  conclave build machines/lock --output lock.wasm
  conclave build lock.core.wasm --output lock.wasm
  conclave dev --component \"$(conclave build)\" --watch

Requirements:
  rustup target add wasm32-unknown-unknown            for Rust
  apt-get install python3 python3-venv                for Python, which also needs access to PyPI
  https://go.dev/doc/install                          for Go, 1.24 or newer")]
pub struct Arguments {
    /// Directory of the project, or file with a core module
    #[arg(value_name = "DIR|FILE", default_value = ".")]
    dir: PathBuf,

    /// File to write the component to [default: DIR/target/NAME.wasm, or FILE with the extension
    /// .component.wasm]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Directory for the compilers' files [default: DIR/target]
    #[arg(long, value_name = "DIR", env = "CARGO_TARGET_DIR", hide_env_values = true)]
    target_dir: Option<PathBuf>,
}

/// The result of a build.
struct Built {
    size_bytes: u64,
    imports: Vec<String>,
    changed: bool,
}

/// Returns the directory of the nearest project above a component.
pub(super) fn project_above(component: &Path) -> Option<PathBuf> {
    Project::above(component).map(|project| project.dir)
}

/// Returns the files that a build writes besides the compilers' files, which are therefore no
/// sources: the component and intermediate files.
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
    // Removes a leading `./` from the paths that are printed.
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
        "{} kB, {}; imports: {}",
        built.size_bytes.div_ceil(1000),
        if built.changed { "changed" } else { "unchanged" },
        imports_text(&built.imports)
    ));
    output.line(file.display().to_string());
    Ok(())
}

/// Formats the imports in one line, with the dozens of WASI as one word. `conclave inspect`
/// lists each.
fn imports_text(imports: &[String]) -> String {
    let (wasi, mut named): (Vec<_>, Vec<_>) =
        imports.iter().map(String::as_str).partition(|import| import.starts_with("wasi:"));
    if !wasi.is_empty() {
        named.push("WASI");
    }
    if named.is_empty() { "nothing".to_owned() } else { named.join(", ") }
}

/// Converts an error with its whole chain of causes to one line.
fn failed(error: &anyhow::Error) -> Failed {
    Failed::of(&**error)
}
