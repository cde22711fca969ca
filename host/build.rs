//! Compiles the protobuf files and the default machine, which the binary carries.
use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use conclave_build::MachineSpec;
use prost_build::Config;

const CLIENT: [&str; 2] =
    ["conclave/machine/v1/machine.proto", "conclave/cluster/v1/cluster.proto"];
const PEER: [&str; 2] = ["conclave/raft/v1/entry.proto", "conclave/raft/v1/raft.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    protobuf(&out)?;
    default_machine(&out)
}

fn protobuf(out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let client = protox::compile(CLIENT, ["proto"])?;
    fs::write(out.join("client_descriptor.bin"), prost::Message::encode_to_vec(&client))?;
    let peer = protox::compile(PEER, ["proto"])?;
    for set in [client, peer] {
        let mut config = Config::new();
        // Requests and entries are shared, not copied, on their way through the layers.
        config.bytes(["."]);
        tonic_prost_build::configure().compile_fds_with_config(set, config)?;
    }
    Ok(())
}

/// Compiles `guest-kv` to `OUT_DIR/kv.wasm`. Its own target directory, beside this build's, is shared
/// by all profiles: the machine is the same in each.
fn default_machine(out: &Path) -> Result<(), Box<dyn Error>> {
    let target_dir = out.ancestors().nth(4).ok_or("OUT_DIR is not inside a target directory")?;
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let built = conclave_build::build_machine(&MachineSpec {
        manifest_dir: manifest_dir.join("../guest-kv"),
        target_dir: target_dir.join("machines"),
        output: out.join("kv.wasm"),
    })?;
    println!("cargo::rerun-if-env-changed={}", conclave_build::COMPILER_VARIABLE);
    for path in built.watched {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    Ok(())
}
