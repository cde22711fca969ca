//! Measures the cost of WebAssembly and of the host's own work per entry.
//! The same puts are applied in three ways: by the key-value store compiled natively, by two bare
//! instances of its component running at once, and by a node's worker with primary and standby. The
//! work that the host does at every entry for custom state machines is measured on its own, for each
//! of the worker's two threads: the digest of its outcome, events, ticks and the entry context of WASI.
//!
//! The ways alternate over several rounds. The figures are medians.
//!
//! `cargo run --release --workspace --features conclave-cli/bench --example apply_cost`
#![allow(clippy::expect_used, clippy::print_stdout, reason = "a program for the terminal")]

use std::{
    sync::{Arc, Barrier},
    time::Instant,
};

use conclave_machine::{
    Component, Engine, Entry, EntryContext, EntrySource, EntrySourceError, Limits, SavedState,
    Standalone, Work, Worker, bench::HostWork,
};
use conclave_sdk::{Context, Machine, prost::Message};
use conclave_types::{Call, Outcome, Trap};
use guest_kv::{
    Kv,
    pb::{PutRequest, put_request::Content},
};

const PUTS: u64 = 200_000;
const KEYS: u64 = 20_000;
const BATCH: u64 = 64;
const ROUNDS: usize = 11;

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

/// Applies all puts and returns their outcomes.
fn outcomes(component: &Component) -> Vec<(EntryContext, Outcome)> {
    Standalone::with_stack(&Limits::default(), || {
        let mut instance = Standalone::start(component).expect("an instance");
        let apply = |index| {
            let context = EntryContext { index, time_ms: 1, seed: 1 };
            (context, instance.apply(context, Some(&call(index))).expect("a put"))
        };
        (1..=PUTS).map(apply).collect()
    })
    .expect("a thread")
}

/// Measures the host's own work on the primary's thread and on the standby's.
fn host_work(outcomes: &[(EntryContext, Outcome)]) -> [f64; 2] {
    let micros = |begun: Instant| begun.elapsed().as_secs_f64() * 1e6 / PUTS as f64;
    let (mut primary, mut standby) = (HostWork::default(), HostWork::default());
    let begun = Instant::now();
    outcomes.iter().for_each(|(context, outcome)| primary.primary(*context, outcome));
    let on_primary = micros(begun);
    let own = outcomes.to_vec();
    let begun = Instant::now();
    own.into_iter().for_each(|(context, outcome)| standby.standby(context, outcome));
    [on_primary, micros(begun)]
}

/// An entry source without entries. Nothing traps here, so no instance is ever rebuilt.
struct Nothing;

impl EntrySource for Nothing {
    fn snapshot(&self) -> Result<Option<SavedState>, EntrySourceError> {
        Ok(None)
    }
    fn entries(&self, from: u64, _: u64) -> Result<Vec<Entry>, EntrySourceError> {
        Err(EntrySourceError::Gap(from))
    }
    fn record_trap(&self, _: u64, _: &Trap) {}
    fn trapped(&self, _: u64) -> Option<Trap> {
        None
    }
}

fn call(number: u64) -> Call {
    Call { method: "kv.v1.KV/Put".into(), request: put(number).into(), principal: "".into() }
}

/// Runs two instances at once, as a node does. They share caches and perhaps a core.
fn by_instances(component: &Component) -> f64 {
    let calls: Vec<_> = (0..PUTS).map(call).collect();
    let ready = Barrier::new(2);
    let apply_all = || {
        Standalone::with_stack(&Limits::default(), || {
            let mut instance = Standalone::start(component).expect("an instance");
            ready.wait();
            let begun = Instant::now();
            for (index, call) in (1..).zip(&calls) {
                let context = EntryContext { index, time_ms: 1, seed: 1 };
                instance.apply(context, Some(call)).expect("a put");
            }
            begun.elapsed().as_secs_f64() * 1e6 / PUTS as f64
        })
        .expect("a thread")
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(apply_all);
        let this = apply_all();
        this.max(other.join().expect("it does not panic"))
    })
}

async fn by_a_worker(component: &Component) -> f64 {
    let worker = Worker::start(component.clone(), [7; 32], Arc::new(Nothing), None, Arc::default())
        .expect("a worker");
    let entry =
        |index| (index, Some(Entry { index, time_ms: 1, work: Work::Call(call(index)) }), None);
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

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

#[tokio::main]
async fn main() {
    let engine = Engine::new(&Limits::default()).expect("an engine");
    let component = Component::load(&engine, conclave_testing::components::build("guest-kv"))
        .expect("the machine");
    let outcomes = outcomes(&component);
    let mut rounds = [const { Vec::new() }; 5];
    for _ in 0..ROUNDS {
        rounds[0].push(natively());
        rounds[1].push(by_instances(&component));
        rounds[2].push(by_a_worker(&component).await);
        let [primary, standby] = host_work(&outcomes);
        rounds[3].push(primary);
        rounds[4].push(standby);
    }
    let [native, instances, worker, primary, standby] = rounds.map(median);
    println!("one put of 256 bytes among {KEYS} keys");
    println!("  natively                {native:>6.2} µs");
    println!("  two bare instances      {instances:>6.2} µs, {:.2} times that", instances / native);
    println!("  a node's worker         {worker:>6.2} µs");
    println!(
        "  of it, digests, events, ticks and WASI take {primary:.2} µs on the primary's thread and {standby:.2} µs on the \
         standby's: a ratio of {:.2} to a worker without them",
        worker / (worker - primary.max(standby))
    );
}
