//! Compiles the protobuf files.
use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use prost_build::Config;

const CLIENT: [&str; 2] =
    ["conclave/machine/v1/machine.proto", "conclave/cluster/v1/cluster.proto"];
const PEER: [&str; 3] = [
    "conclave/raft/v1/entry.proto",
    "conclave/raft/v1/raft.proto",
    "conclave/backup/v1/backup.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    protobuf(&out)
}

fn protobuf(out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=conclave");
    let client = protox::compile(CLIENT, ["."])?;
    fs::write(out.join("client_descriptor.bin"), prost::Message::encode_to_vec(&client))?;
    let peer = protox::compile(PEER, ["."])?;
    for set in [client, peer] {
        let mut config = Config::new();
        // Layers share the bytes of requests and entries instead of copying them.
        config.bytes(["."]);
        tonic_prost_build::configure().compile_fds_with_config(set, config)?;
    }
    Ok(())
}
