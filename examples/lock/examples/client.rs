//! Two workers and one lock: `cargo run -p lock --example lock-client -- 127.0.0.1:7101`.
//!
//! The first worker holds the lock and stops without releasing it. The second waits, and gets the
//! lock once the lease has ended. The ledger, which the lock protects, checks the token and refuses
//! late writes of the first worker. The lease alone could not prevent them.

use std::time::Duration;

use anyhow::{Context as _, bail};
use conclave_client::{CallOptions, Client};
use lock::pb::{
    AcquireRequest, AcquireResponse, GetRequest, Lease, LockState, ReleaseRequest, ReleaseResponse,
    RenewRequest,
};
use tokio::time::Instant;

const LOCK: &str = "ledger";
const TTL_MS: u64 = 2000;
const PATIENCE: Duration = Duration::from_secs(30);

/// The resource that the lock protects. It keeps the greatest token that it has received.
#[derive(Default)]
struct Ledger {
    token: u64,
    lines: Vec<String>,
}

impl Ledger {
    fn write(&mut self, token: u64, line: &str) -> Result<(), String> {
        if token < self.token {
            return Err(format!("token {token} is older than {}", self.token));
        }
        self.token = token;
        self.lines.push(line.to_owned());
        Ok(())
    }
}

async fn acquire(client: &Client, owner: &str, wait: bool) -> anyhow::Result<AcquireResponse> {
    let (name, owner) = (LOCK.to_owned(), owner.to_owned());
    let request = AcquireRequest { name, owner, ttl_ms: TTL_MS, wait };
    // Acquire is idempotent, so the client may retry it if a reply was lost.
    let options = CallOptions::write().retry_unknown(true);
    Ok(client.call("lock.v1.Lock/Acquire", &request, &options).await?)
}

/// Polls the lock, which needs no write, until this owner holds it.
async fn until_mine(client: &Client, owner: &str) -> anyhow::Result<Lease> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let request = GetRequest { name: LOCK.to_owned() };
        let state: LockState =
            client.call("lock.v1.Lock/Get", &request, &CallOptions::read()).await?;
        if let Some(lease) = state.lease.filter(|lease| lease.owner == owner) {
            return Ok(lease);
        }
        tokio::time::sleep(Duration::from_millis(TTL_MS / 10)).await;
    }
    bail!("{owner} did not get the lock within {PATIENCE:?}")
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program for the terminal")]
async fn main() -> anyhow::Result<()> {
    let mut nodes: Vec<_> = std::env::args().skip(1).collect();
    if nodes.is_empty() {
        nodes.push("127.0.0.1:7101".to_owned());
    }
    let client = Client::builder().endpoints(nodes).build()?;
    let mut ledger = Ledger::default();

    let first = acquire(&client, "worker-1", false).await?;
    let first = first.lease.filter(|_| first.acquired).context("another owner has the lock")?;
    println!("worker-1 holds the lock with token {}", first.token);
    ledger.write(first.token, "worker-1 was here").map_err(anyhow::Error::msg)?;

    let waiting = acquire(&client, "worker-2", true).await?;
    println!("worker-2 waits at place {}; worker-1 stops without a word", waiting.place);
    let second = until_mine(&client, "worker-2").await?;
    println!("the lease has ended: worker-2 holds the lock with token {}", second.token);
    ledger.write(second.token, "worker-2 was here").map_err(anyhow::Error::msg)?;

    // Worker 1 comes back and still believes that it holds the lock.
    if let Err(refusal) = ledger.write(first.token, "worker-1 was here again") {
        println!("the ledger refuses worker-1: {refusal}");
    }
    let (name, owner) = (LOCK.to_owned(), "worker-1".to_owned());
    let request = RenewRequest { name, owner, token: first.token, ttl_ms: TTL_MS };
    let renewed: Result<Lease, _> =
        client.call("lock.v1.Lock/Renew", &request, &CallOptions::write()).await;
    if let Err(error) = renewed {
        println!("{}: {error}", error.code_name());
    }

    let (name, owner) = (LOCK.to_owned(), "worker-2".to_owned());
    let request = ReleaseRequest { name, owner, token: second.token };
    let options = CallOptions::write().retry_unknown(true);
    let response: ReleaseResponse = client.call("lock.v1.Lock/Release", &request, &options).await?;
    println!(
        "worker-2 releases the lock: {}; the ledger has {:?}",
        response.released, ledger.lines
    );
    Ok(())
}
