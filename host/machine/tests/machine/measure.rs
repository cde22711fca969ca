//! Measurements, to be run by hand:
//! `cargo test --workspace --test machine -- --ignored --nocapture measure`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use conclave_machine::{BatchItem, Component, Engine, Entry, EntryContext, Standalone, Work};
use conclave_types::{Call, Outcome, TrapKind};
use prost::Message;
use tokio::sync::oneshot;

use crate::support::{HOSTILE, Node, Number, add, build, call, limits, number, trap_kind, with};
use conclave_testing::wat::Wat;

const HEAD: &str = "primary";

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Returns the CPU time of the threads with this name, which does not depend on other load of the host.
fn cpu(thread: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if !name.starts_with(thread) {
            return 0;
        }
        let line = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        line.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0)
    };
    Duration::from_nanos(tasks.map(|task| of(task.unwrap())).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn measure_apply_throughput_and_latency() {
    const ENTRIES: u64 = 400_000;
    const BATCH: u64 = 64;
    let mut node = Node::start();
    let call = add(1);
    let mut last = None;
    let (started, cpu_before) = (Instant::now(), cpu(HEAD));
    for first in (1..=ENTRIES).step_by(BATCH as usize) {
        let mut batch: Vec<BatchItem> = Vec::with_capacity(BATCH as usize);
        for index in first..first + BATCH {
            let (send, receive) = oneshot::channel();
            last = Some(receive);
            let entry = Entry { index, time_ms: index, work: Work::Call(call.clone()) };
            batch.push((index, Some(entry), Some(Box::new(move |outcome| _ = send.send(outcome)))));
        }
        node.index = first + BATCH - 1;
        node.worker.apply(batch).await.unwrap();
    }
    let total = number(&last.unwrap().await.unwrap());
    let took = started.elapsed();
    node.until("the standby", |node| {
        node.worker.metrics().standby_applied.get() as u64 == node.index
    })
    .await;
    let with_standby = started.elapsed();
    let cpu = cpu(HEAD) - cpu_before;
    let metrics = node.worker.metrics();
    eprintln!(
        "{total} entries in batches of {BATCH}: {:.0} ns each, {:.0}/s; with the standby {:.0} ns, the primary alone {:.0} \
         ns of CPU; {} fuel each",
        took.as_nanos() as f64 / ENTRIES as f64,
        ENTRIES as f64 / took.as_secs_f64(),
        with_standby.as_nanos() as f64 / ENTRIES as f64,
        cpu.as_nanos() as f64 / ENTRIES as f64,
        metrics.fuel.get() / ENTRIES
    );

    let mut latencies: Vec<Duration> = Vec::new();
    for _ in 0..20_000 {
        let started = Instant::now();
        node.add(1).await;
        latencies.push(started.elapsed());
    }
    latencies.sort();
    eprintln!("one entry at a time: p50 {:?}, p99 {:?}", latencies[10_000], latencies[19_800]);
    latencies.clear();
    for _ in 0..20_000 {
        let started = Instant::now();
        node.total().await;
        latencies.push(started.elapsed());
    }
    latencies.sort();
    eprintln!("one query at a time: p50 {:?}, p99 {:?}", latencies[10_000], latencies[19_800]);
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_fuel_a_second() {
    let mut node = Node::start();
    node.total().await;
    let (started, cpu_before) = (Instant::now(), cpu(HEAD));
    let outcome = node.apply(call("Loop", Number::default())).await;
    assert_eq!(trap_kind(&outcome), TrapKind::FuelExhausted);
    eprintln!(
        "{} fuel in {:?}, CPU {:?}",
        limits().cluster.fuel_per_call,
        started.elapsed(),
        cpu(HEAD) - cpu_before
    );
}

/// Measures the time of one unit of fuel, for loops of single instructions. No instruction should
/// take much longer than others for the same fuel, because fuel is the only limit of time.
#[test]
#[ignore = "a measurement"]
fn measure_fuel_of_operators() {
    const FUEL: u64 = 100_000_000;
    let limits = with(|limits| limits.fuel_per_call = FUEL);
    let engine = Engine::new(&limits).unwrap();
    let i64s = "(local.set 0 (i64.add (local.get 0) (i64.const 1)))";
    for (name, instruction) in [
        ("i64.add", i64s),
        ("i32.div_u", "(drop (i32.div_u (i32.const -1) (i32.or (i32.wrap_i64 (local.get 0)) (i32.const 1))))
             (local.set 0 (i64.extend_i32_u (i32.div_u (i32.const -1) (i32.or (i32.wrap_i64 (local.get 0)) (i32.const 3)))))"),
        ("i64.rem_u", "(local.set 0 (i64.add (i64.const 0x7fffffffffff) (i64.rem_u (i64.const -1) (i64.or (local.get 0) (i64.const 1)))))"),
        ("f64.sqrt", "(local.set 0 (i64.reinterpret_f64 (f64.sqrt (f64.reinterpret_i64 (local.get 0)))))"),
        ("f64.div", "(local.set 0 (i64.reinterpret_f64 (f64.div (f64.const 3) (f64.reinterpret_i64 (local.get 0)))))"),
        ("memory.grow 0", "(drop (memory.grow (i32.const 0)))"),
        ("memory.size", "(drop (memory.size))"),
        ("table.grow 0", "(drop (table.grow $t (ref.null func) (i32.const 0)))"),
        ("table.get", "(drop (ref.is_null (table.get $t (i32.const 0))))"),
        ("table.set", "(table.set $t (i32.const 0) (ref.null func))"),
        ("ref.func", "(drop (ref.is_null (ref.func $one)))"),
        ("memory.copy 0", "(memory.copy (i32.const 0) (i32.const 8) (i32.wrap_i64 (local.get 9)))"),
        ("memory.fill 0", "(memory.fill (i32.const 0) (i32.const 8) (i32.wrap_i64 (local.get 9)))"),
        ("memory.copy 4096", "(memory.copy (i32.const 1024) (i32.const 16384) (i32.const 4096))"),
        ("call_indirect", "(call_indirect $t (i32.const 0))"),
        ("load", "(local.set 0 (i64.load (i32.wrap_i64 (local.get 9))))"),
    ] {
        let apply = format!("(loop $l {instruction} (br $l)) (i32.const 256)").replace("(local.get 9)", "(i64.extend_i32_u (local.get 9))");
        let wat = Wat {
            apply: Box::leak(apply.into_boxed_str()),
            more: "(table $t 10 funcref) (func $one) (elem $t (i32.const 0) $one) (elem declare func $one)".to_owned(),
            ..Wat::default()
        };
        let component = Component::load(&engine, wat.component()).unwrap();
        let took = Standalone::with_stack(&limits, || {
            let mut standalone = Standalone::start(&component).unwrap();
            let started = Instant::now();
            let context = EntryContext { index: 1, time_ms: 0, seed: 0 };
            let call = Call { method: "any".into(), request: Bytes::new(), principal: "".into() };
            standalone.apply(context, Some(&call)).unwrap_err();
            started.elapsed()
        })
        .unwrap();
        eprintln!("{name}: {:.2} ns per unit of fuel", took.as_nanos() as f64 / FUEL as f64);
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_start_and_memory() {
    for (name, component) in [("hostile", HOSTILE.clone()), ("guest-kv", build("guest-kv"))] {
        measure_one(name, component).await;
    }
}

async fn measure_one(name: &str, component: Bytes) {
    let before = resident_bytes();
    let started = Instant::now();
    let engine = Engine::new(&limits()).unwrap();
    let made = started.elapsed();
    let bytes = component.len();
    let component = match Component::load(&engine, component) {
        Ok(component) => component,
        Err(error) => return eprintln!("{name}: {error}"),
    };
    let loaded = started.elapsed();
    let after_load = resident_bytes();
    let node = Node::start_with(component);
    let ran = started.elapsed();
    let answer = node
        .worker
        .query(Call { method: "".into(), request: Bytes::new(), principal: "".into() }, 0)
        .await;
    eprintln!(
        "{name}: {bytes} bytes; engine {made:?}, load {:?}, start of two instances {:?}; resident +{} KiB by loading, \
         +{} KiB by running; {answer:?}",
        loaded - made,
        ran - loaded,
        (after_load - before) / 1024,
        (resident_bytes().saturating_sub(after_load)) / 1024,
    );
}

#[derive(Clone, PartialEq, Message)]
struct Put {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
    #[prost(int64, tag = "4")]
    ttl_ms: i64,
}

impl Put {
    fn call(&self) -> Call {
        let method = "kv.v1.KV/Put".into();
        Call { method, request: self.encode_to_vec().into(), principal: "".into() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn measure_key_values() {
    const KEYS: u64 = 100_000;
    let component = Component::load(&Engine::new(&limits()).unwrap(), build("guest-kv")).unwrap();
    let mut node = Node::start_with(component);
    let value = Bytes::from(vec![7; 256]);
    for round in ["first", "second"] {
        let (started, cpu_before, fuel_before) =
            (Instant::now(), cpu(HEAD), node.worker.metrics().fuel.get());
        let mut last = None;
        for key in 0..KEYS {
            let key = format!("key-{:08}", key * 7919 % KEYS);
            let put = Put { key, value: value.clone(), ttl_ms: 0 };
            last = Some(node.push(put.call()).await);
        }
        let outcome = last.unwrap().await.unwrap();
        assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
        eprintln!(
            "{round} {KEYS} puts of 256 bytes: {:.0} ns each, the primary alone {:.0} ns of CPU, {} fuel each",
            started.elapsed().as_nanos() as f64 / KEYS as f64,
            (cpu(HEAD) - cpu_before).as_nanos() as f64 / KEYS as f64,
            (node.worker.metrics().fuel.get() - fuel_before) / KEYS,
        );
    }
    let started = Instant::now();
    let stream = node.worker.snapshot(node.index).await.unwrap();
    let taken = started.elapsed();
    let saved = crate::support::read(stream).await.unwrap();
    let bytes = saved.bytes.len();
    eprintln!(
        "snapshot of {bytes} bytes: taken in {taken:?}, read in {:?}",
        started.elapsed() - taken
    );
    let started = Instant::now();
    node.worker.restore(saved.state_in(1 << 20)).await.unwrap();
    let metrics = node.worker.metrics();
    eprintln!(
        "restored in two instances in {:?}; memory {} and {}; resident {} MiB",
        started.elapsed(),
        metrics.primary_memory_bytes.get(),
        metrics.standby_memory_bytes.get(),
        resident_bytes() >> 20
    );
    let again =
        crate::support::read(node.worker.snapshot(node.index).await.unwrap()).await.unwrap();
    assert_eq!(again.bytes, saved.bytes);
}

/// Measures the memory that a record takes in addition to its key and value, which
/// `guest_kv::limits::RECORD_OVERHEAD_BYTES` has to cover. The keys are put in order, then
/// overwritten twice with values of other sizes.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn measure_key_values_in_memory() {
    const KEY_BYTES: usize = 9;
    let component = Component::load(&Engine::new(&limits()).unwrap(), build("guest-kv")).unwrap();
    for (keys, value_bytes) in [(100_000, 0), (100_000, 64), (50_000, 1000), (1_500, 40_000)] {
        for ttl_ms in [0, 1 << 40] {
            let mut node = Node::start_with(component.clone());
            let empty = node.worker.metrics().primary_memory_bytes.get();
            let mut growth = Vec::new();
            for round in 0..3 {
                let mut held = 0;
                for key in 0..keys {
                    let other = (key * 7919 + round * 104_729) % (value_bytes + 1) * 2;
                    let bytes = if round == 0 { value_bytes } else { other };
                    held += KEY_BYTES + bytes;
                    let put =
                        Put { key: format!("k{key:08}"), value: vec![7; bytes].into(), ttl_ms };
                    drop(node.push(put.call()).await);
                }
                node.until("the primary", |node| node.worker.applied() == node.index).await;
                let memory = node.worker.metrics().primary_memory_bytes.get() - empty;
                growth.push((memory as f64 - held as f64) / keys as f64);
            }
            eprintln!(
                "values of {value_bytes} bytes, ttl {ttl_ms}: {growth:.0?} bytes per key in addition"
            );
        }
    }
}
