//! Callers whose calls keep trapping while other calls are measured.
//!
//! A caller alternates a batch of 128 puts and an empty one. The batch takes about two million
//! units of fuel, so it traps on nodes that allow one million per call. The empty one succeeds, so
//! that the traps are not consecutive.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use crate::wire::{Call, Connection};

/// Maximum number of operations in a batch.
const OPERATIONS: usize = 128;
const VALUE_BYTES: usize = 256;
/// Deadline of each call.
const CALL_TIME: Duration = Duration::from_secs(5);
/// Pause after a call that was rejected before it was executed.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Client address of the called node, as host:port
    #[arg(long)]
    endpoint: String,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Number of callers, each with its own connection
    #[arg(long, default_value_t = 1)]
    callers: usize,
}

/// Runs the loop and counts the traps and the rejected calls.
pub(crate) async fn run(options: &Options) -> Result<Value> {
    let until = Instant::now() + Duration::from_secs_f64(options.seconds);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..options.callers {
        callers.spawn(one_caller(Connection::open(&options.endpoint).await?, until));
    }
    let (mut traps, mut refused) = (0, 0);
    while let Some(counts) = callers.join_next().await {
        let counts = counts??;
        traps += counts.0;
        refused += counts.1;
    }
    if traps == 0 {
        bail!("no call trapped: start the nodes with --fuel-per-call 1000000");
    }
    Ok(json!({ "traps": traps, "refused": refused }))
}

async fn one_caller(mut connection: Connection, until: Instant) -> Result<(u64, u64)> {
    let value = Bytes::from_static(&[7; VALUE_BYTES]);
    let (mut traps, mut refused) = (0, 0);
    while Instant::now() < until {
        for operations in [OPERATIONS, 0] {
            let call = Call::batch(operations, &value);
            match connection.send_within(call, CALL_TIME).await {
                Ok(()) => {}
                Err(status) if status.metadata().contains_key("conclave-trap") => traps += 1,
                Err(_) => {
                    refused += 1;
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        }
    }
    Ok((traps, refused))
}
