//! Closed-loop workloads.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    Shape,
    wire::{Call, Connection, Work},
};

/// Clients per connection. HTTP/2 is designed for a few dozen requests in flight.
const CLIENTS_PER_CONNECTION: usize = 16;
/// Latencies from a microsecond to a minute, with three digits.
const LATENCY_US_MAX: u64 = 60_000_000;
const LATENCY_DIGITS: u8 = 3;
/// Clients of [`fill`].
const FILL_CLIENTS: u64 = 64;
/// A client stops after this number of errors, since its results would not be representative.
const ERRORS_PER_CLIENT_MAX: u64 = 10;
/// A step through the keys that makes neighbouring calls use distant keys. Prime.
const KEY_STRIDE: u64 = 104_729;

#[derive(Args, Clone)]
pub(crate) struct Options {
    #[command(flatten)]
    shape: Shape,
    #[arg(long, value_enum)]
    work: Work,
    #[arg(long)]
    clients: usize,
    /// Duration of the measurement, in seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Duration of the warm-up before the measurement, in seconds
    #[arg(long, default_value_t = 1.0)]
    warm_up_seconds: f64,
}

struct Measured {
    latency_us: Histogram<u64>,
    errors: u64,
    error: Option<String>,
}

/// Writes every key once.
pub(crate) async fn fill(shape: &Shape) -> Result<Value> {
    let value = value(shape.value_bytes);
    let mut clients = JoinSet::new();
    for client in 0..FILL_CLIENTS {
        let (mut connection, value, shape) =
            (Connection::new(&shape.endpoint), value.clone(), shape.clone());
        clients.spawn(async move {
            let mut key = client;
            while key < shape.keys {
                connection.send(Call::new(shape.target, Work::Put, key, &value)).await?;
                key += FILL_CLIENTS;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client?.context("cannot write the keys")?;
    }
    Ok(json!({ "keys": shape.keys }))
}

/// Runs the loop and returns its results.
pub(crate) async fn run(options: &Options) -> Result<Value> {
    let value = value(options.shape.value_bytes);
    let count = options.clients.div_ceil(CLIENTS_PER_CONNECTION);
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(Connection::open(&options.shape.endpoint).await?);
    }

    let from = Instant::now() + Duration::from_secs_f64(options.warm_up_seconds);
    let until = from + Duration::from_secs_f64(options.seconds);
    let mut clients = JoinSet::new();
    for (client, connection) in connections.iter().cycle().take(options.clients).enumerate() {
        let (options, connection, value) = (options.clone(), connection.clone(), value.clone());
        clients.spawn(one_client(options, client as u64, connection, value, from, until));
    }

    let mut all = empty()?;
    while let Some(client) = clients.join_next().await {
        let client = client??;
        all.latency_us.add(&client.latency_us).context("histograms of different shapes")?;
        all.errors += client.errors;
        all.error = all.error.or(client.error);
    }
    if all.latency_us.is_empty() {
        bail!("no call succeeded: {}", all.error.unwrap_or_default());
    }
    Ok(figures(options, &all))
}

async fn one_client(
    options: Options,
    client: u64,
    mut connection: Connection,
    value: Bytes,
    from: Instant,
    until: Instant,
) -> Result<Measured> {
    let (shape, mut measured) = (&options.shape, empty()?);
    let mut key = client.wrapping_mul(7_919);
    loop {
        key = key.wrapping_add(KEY_STRIDE);
        let call = Call::new(shape.target, options.work, key % shape.keys, &value);
        let start = Instant::now();
        if start >= until {
            return Ok(measured);
        }
        match connection.send(call).await {
            Ok(()) if start >= from => {
                let latency = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                measured.latency_us.saturating_record(latency);
            }
            Ok(()) => {}
            Err(status) => {
                measured.errors += 1;
                measured.error = Some(format!("{:?}: {}", status.code(), status.message()));
                if measured.errors >= ERRORS_PER_CLIENT_MAX {
                    return Ok(measured);
                }
            }
        }
    }
}

fn empty() -> Result<Measured> {
    let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS)
        .context("cannot make a histogram")?;
    Ok(Measured { latency_us, errors: 0, error: None })
}

fn figures(options: &Options, measured: &Measured) -> Value {
    let latency = &measured.latency_us;
    json!({
        "clients": options.clients,
        "ops": latency.len(),
        "ops_per_second": latency.len() as f64 / options.seconds,
        "p50_us": latency.value_at_quantile(0.5),
        "p99_us": latency.value_at_quantile(0.99),
        "max_us": latency.max(),
        "errors": measured.errors,
        "error": measured.error,
    })
}

/// Returns bytes that do not compress, the same in every run.
fn value(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = (0..size).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    bytes.collect()
}
