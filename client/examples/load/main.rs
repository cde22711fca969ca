//! Load for a key-value cluster, Conclave's or etcd's: the generator of `cargo xtask bench`.
//!
//! Both are driven by the same loop over the same gRPC library with messages of the same content, so
//! that what differs between two figures is the server. Each command prints one line of JSON:
//!
//! ```console
//! $ load run --target etcd --endpoint 127.0.0.1:2379 --work put --clients 64
//! {"clients":64,"errors":0,"ops":36012,"ops_per_second":7202.4,"p50_us":8351,"p99_us":19007,"work":"put"}
//! ```

mod failover;
mod trap;
mod wire;
mod workload;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::wire::Target;

#[derive(Parser)]
#[command(about = "Drives a key-value cluster and measures it")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write every key once, for the gets to find.
    Fill(Shape),
    /// Measure a closed loop: each client waits for its answer before it asks again.
    Run(workload::Options),
    /// Disturb the leader and measure the longest time in which the others acknowledge no write.
    Failover(failover::Options),
    /// Call a method that traps, in a loop.
    Trap(trap::Options),
}

/// Where the load goes, and its shape.
#[derive(Args, Clone)]
struct Shape {
    #[arg(long, value_enum)]
    target: Target,
    /// The client address of the node that is asked, as host:port.
    #[arg(long)]
    endpoint: String,
    /// How many different keys.
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// The size of each value.
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
}

/// One thread: more would wake each other, and take from what is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let line = match Options::parse().command {
        Command::Fill(shape) => workload::fill(&shape).await?,
        Command::Run(options) => workload::run(&options).await?,
        Command::Failover(options) => failover::run(&options).await?,
        Command::Trap(options) => trap::run(&options).await?,
    };
    print(&line);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the result of the program")]
fn print(line: &serde_json::Value) {
    println!("{line}");
}
