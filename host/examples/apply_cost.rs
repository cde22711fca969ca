//! What WebAssembly costs: the same puts applied by the key-value store natively, and as a component
//! by a node's worker, head and reader both.
//!
//! `cargo run --release --package conclave --example apply_cost`
#![allow(clippy::expect_used, clippy::print_stdout, reason = "a program for the terminal")]

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use conclave::{
    machine::{Engine, Entry, History, HistoryError, Limits, Module, SavedState, Work, Worker},
    node::DEFAULT_MACHINE,
    types::{Call, Trap},
};
use conclave_sdk::{Context, Machine, prost::Message};
use guest_kv::{
    Kv,
    pb::{PutRequest, put_request::Content},
};

const PUTS: u64 = 200_000;
const KEYS: u64 = 20_000;
const BATCH: u64 = 64;

fn put(number: u64) -> Vec<u8> {
    let key = format!("bench/{:08}", number.wrapping_mul(7919) % KEYS);
    PutRequest { key, ttl_ms: 0, content: Some(Content::Value(vec![7; 256])) }.encode_to_vec()
}

fn natively() -> f64 {
    let calls: Vec<_> = (0..PUTS)
        .map(|number| conclave_sdk::Call { method: "kv.v1.KV/Put".into(), request: put(number) })
        .collect();
    let mut kv = Kv::default();
    let begun = Instant::now();
    for (index, call) in calls.iter().enumerate() {
        let context =
            Context { index: index as u64 + 1, time_ms: 1, seed: 1, principal: String::new() };
        kv.apply(&context, call).expect("a put");
    }
    begun.elapsed().as_secs_f64() * 1e6 / PUTS as f64
}

/// Nothing traps here, so nothing is ever rebuilt.
struct Nothing;

impl History for Nothing {
    fn snapshot(&self) -> Result<Option<SavedState>, HistoryError> {
        Ok(None)
    }
    fn entries(&self, from: u64, _: u64) -> Result<Vec<Entry>, HistoryError> {
        Err(HistoryError::Gap(from))
    }
    fn record_trap(&self, _: u64, _: &Trap) {}
    fn trapped(&self, _: u64) -> Option<Trap> {
        None
    }
}

async fn in_wasm() -> f64 {
    let engine = Engine::new(&Limits::default()).expect("an engine");
    let module = Module::load(&engine, Bytes::from_static(DEFAULT_MACHINE)).expect("the machine");
    let worker = Worker::start(module, [7; 32], Arc::new(Nothing), None).expect("a worker");
    let (method, principal): (Arc<str>, Arc<str>) = ("kv.v1.KV/Put".into(), "".into());
    let entry = |index| {
        let (method, principal) = (method.clone(), principal.clone());
        let call = Call { method, request: put(index).into(), principal };
        (index, Some(Entry { index, time_ms: 1, work: Work::Call(call) }), None)
    };
    let batches: Vec<Vec<_>> = (0..PUTS / BATCH)
        .map(|batch| (batch * BATCH + 1..=(batch + 1) * BATCH).map(entry).collect())
        .collect();
    let begun = Instant::now();
    for batch in batches {
        worker.apply(batch).await.expect("applied");
    }
    while worker.applied() < PUTS / BATCH * BATCH {
        tokio::task::yield_now().await;
    }
    begun.elapsed().as_secs_f64() * 1e6 / PUTS as f64
}

#[tokio::main]
async fn main() {
    let native = natively();
    let wasm = in_wasm().await;
    println!("one put of 256 bytes among {KEYS} keys");
    println!("  natively         {native:>6.2} µs");
    println!("  in WebAssembly   {wasm:>6.2} µs, the reader applying it too on another thread");
    println!("  ratio            {:>6.2}", wasm / native);
}
