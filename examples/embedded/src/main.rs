//! The host as a library: three nodes with their own state machine, in one process.
//!
//! `cargo run -p embedded -- DIRECTORY` adds one to a counter in each run. The nodes keep their data
//! in the directory. The optional second argument is the first of 300 ports; the default is 7400.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use conclave::{
    Node,
    config::{ComponentSource, Config, Settings},
};
use conclave_client::{CallOptions, Client};
use counter::{AddRequest, Count, GetRequest};

/// The component that `build.rs` has built.
const MACHINE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/counter.wasm"));

const NODES: u64 = 3;
const PORT_BASE: u16 = 7400;

/// The settings that all nodes of the cluster share.
struct Plan {
    dir: PathBuf,
    master_key: String,
    /// The base of the ports. It must be the same in each run, because peers know a member by
    /// its addresses.
    port_base: u16,
}

impl Plan {
    fn client(&self, node_id: u64) -> String {
        format!("127.0.0.1:{}", self.port_base + node_id as u16)
    }

    fn peer(&self, node_id: u64) -> String {
        format!("127.0.0.1:{}", self.port_base + 100 + node_id as u16)
    }

    fn admin(&self, node_id: u64) -> String {
        format!("127.0.0.1:{}", self.port_base + 200 + node_id as u16)
    }

    /// Returns the settings that `conclave serve` takes as flags, with the component in memory.
    fn config(&self, node_id: u64) -> anyhow::Result<Config> {
        let member = |id| format!("{id}={},{}", self.peer(id), self.client(id));
        let settings = Settings {
            node_id: Some(node_id),
            cluster_id: Some("embedded".to_owned()),
            data_dir: Some(self.dir.join(format!("node-{node_id}"))),
            listen_client: Some(self.client(node_id)),
            listen_peer: Some(self.peer(node_id)),
            listen_admin: Some(self.admin(node_id)),
            members: (1..=NODES).map(member).collect(),
            ..Settings::default()
        };
        let mut config = Config::from_settings(settings, Some(self.master_key.clone().into()))?;
        config.component = Some(ComponentSource::Bytes(MACHINE.into()));
        Ok(config)
    }
}

/// The key is stored beside the data only because this is an example: anyone who can read both can
/// decrypt the data.
fn master_key(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join("master.key");
    if !path.exists() {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        fs::write(&path, hex::encode(key))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    }
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program for the terminal")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir =
        PathBuf::from(arguments.next().context("no directory given: run `embedded DIRECTORY`")?);
    let port_base = arguments.next().map_or(Ok(PORT_BASE), |text| text.parse())?;
    fs::create_dir_all(&dir)?;
    let plan = Plan { master_key: master_key(&dir)?, dir, port_base };

    let mut nodes = Vec::new();
    for node_id in 1..=NODES {
        nodes.push(Node::start(plan.config(node_id)?).await?);
    }
    println!("{NODES} nodes run in this process");
    let endpoints = nodes.iter().map(|node| node.client_address().to_string());
    let client = Client::builder().endpoints(endpoints).build()?;
    let get = async || {
        let read = CallOptions::read();
        client.call::<_, Count>("counter.v1.Counter/Get", &GetRequest {}, &read).await
    };
    println!("the count was {}", get().await?.count);
    let add = AddRequest { amount: 1 };
    client.call::<_, Count>("counter.v1.Counter/Add", &add, &CallOptions::write()).await?;

    // The cluster tolerates the loss of any one of its three nodes.
    nodes.remove(0).stop().await?;
    println!("with one node stopped the count is {}", get().await?.count);
    for node in nodes {
        node.stop().await?;
    }
    println!("all nodes have stopped");
    Ok(())
}
