//! Compiles the protobuf files of a state machine in its build script, without `protoc`.
//!
//! ```no_run
//! # #[allow(clippy::needless_doctest_main, reason = "the example is a whole build script")]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     conclave_protobuf::compile("proto", &["counter/v1/counter.proto"])?;
//!     Ok(())
//! }
//! ```
//!
//! `conclave_sdk::include_protobuf!("counter.v1")` then includes the generated code. This is a
//! separate crate so that a state machine's build script need not compile the dependencies of
//! [`conclave-build`].
//!
//! [`conclave-build`]: https://docs.rs/conclave-build

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use prost::Message as _;

/// The file in `OUT_DIR` that contains the descriptor set.
pub const DESCRIPTOR_SET_FILE: &str = "descriptor_set.bin";

/// Compiles `files`, named relative to `directory`, into Rust types and a descriptor set in
/// `OUT_DIR`. Only for build scripts.
pub fn compile(directory: impl AsRef<Path>, files: &[&str]) -> Result<()> {
    let directory = directory.as_ref();
    #[allow(
        clippy::print_stdout,
        reason = "a build script sends instructions to cargo through stdout"
    )]
    {
        println!("cargo::rerun-if-changed={}", directory.display());
    }
    let out =
        env::var_os("OUT_DIR").context("OUT_DIR is not set: call this from a build script")?;
    let out = Path::new(&out);

    let paths: Vec<_> = files.iter().map(|file| directory.join(file)).collect();
    // Only protox's `Debug` output includes the location.
    let mut set = protox::compile(&paths, [directory])
        .map_err(|error| anyhow!("cannot compile the protobuf: {error:?}"))?;
    prost_build::Config::new()
        .out_dir(out)
        .prost_path("::conclave_sdk::prost")
        .btree_map(["."])
        // The SDK's router compares the names of messages with the descriptor set's.
        .enable_type_names()
        .compile_fds(set.clone())
        .context("cannot generate Rust code for the protobuf")?;

    // The comments are in the generated documentation now. The component does not need them.
    for file in &mut set.file {
        file.source_code_info = None;
    }
    let path = out.join(DESCRIPTOR_SET_FILE);
    fs::write(&path, set.encode_to_vec())
        .with_context(|| format!("cannot write {}", path.display()))
}
