//! Builds the state machine in a directory: `cargo run -p conclave-build --example build_machine --
//! DIRECTORY OUTPUT`.

use std::path::PathBuf;

use anyhow::Context as _;
use conclave_build::{MachineSpec, build_machine};

#[allow(clippy::print_stdout, reason = "a program for the terminal")]
fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let manifest_dir =
        arguments.next().context("no directory given: run `build_machine DIRECTORY OUTPUT`")?;
    let output =
        arguments.next().context("no output file given: run `build_machine DIRECTORY OUTPUT`")?;
    let target_dir = output.with_file_name("target");
    let built = build_machine(&MachineSpec { manifest_dir, target_dir, output })?;
    println!("{built:#?}");
    Ok(())
}
