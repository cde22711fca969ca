//! Compiles the messages of the services that this client calls with its own types.
use std::error::Error;

const CLUSTER: &str = "conclave/cluster/v1/cluster.proto";
const KV: &str = "kv/v1/kv.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../host/proto/conclave/cluster");
    println!("cargo:rerun-if-changed=../guest-kv/proto");

    let set = protox::compile([CLUSTER, KV], ["../host/proto", "../guest-kv/proto"])?;
    prost_build::Config::new().compile_fds(set)?;
    Ok(())
}
