//! The load generator of `cargo xtask bench`, for key-value clusters of Conclave and etcd.
//!
//! Both use the same loop over the same gRPC library, with messages of the same content. So a
//! difference between two results is caused by the server. Each command prints one line of JSON:
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
    /// Write every key once, as data for the gets
    Fill(Shape),
    /// Measure a closed loop: each client waits for its response before the next request
    Run(workload::Options),
    /// Disturb the leader and measure the longest time in which the others acknowledge no write
    Failover(failover::Options),
    /// Call a method that traps, in a loop
    Trap(trap::Options),
}

/// The target of the load, and its shape.
#[derive(Args, Clone)]
struct Shape {
    #[arg(long, value_enum)]
    target: Target,
    /// Client address of the called node, as host:port
    #[arg(long)]
    endpoint: String,
    /// Number of different keys
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Size of each value, in bytes
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
}

/// One thread, since several would wake each other and take CPU time from the measured servers.
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
