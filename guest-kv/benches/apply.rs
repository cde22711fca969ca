//! Benchmark of the store itself, natively, without WebAssembly: the lower bound for the cost of a put.
//!
//! Run `cargo bench -p guest-kv`. As a test, it runs each case only once, with few keys.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for the terminal")]
#![allow(clippy::disallowed_types, reason = "it measures time and is not a state machine")]

use std::{hint::black_box, time::Instant};

use conclave_sdk::{Call, Context, Machine, snapshot::CHUNK_BYTES_MAX};
use guest_kv::{
    Kv,
    pb::{GetRequest, PutRequest, RangeRequest, put_request::Content},
};

fn main() {
    let measured = std::env::args().any(|argument| argument == "--bench");
    let keys = if measured { 200_000 } else { 1_000 };
    let rounds = if measured { 500_000 } else { 1_000 };
    println!("{keys} keys, 256-byte values");

    let puts: Vec<Call> = (0..keys).map(put).collect();
    let mut kv = Kv::default();
    report("put, new key", keys, |number| apply(&mut kv, number, &puts[number]));
    report("put, old key", rounds, |number| apply(&mut kv, number, &puts[scatter(number, keys)]));

    let gets: Vec<Call> = (0..keys).map(|number| call("Get", &get(number))).collect();
    report("get", rounds, |number| query(&kv, &gets[scatter(number, keys)]));
    let range = call("Range", &RangeRequest { limit: 100, ..Default::default() });
    report("range of 100", rounds / 100, |_| query(&kv, &range));

    let snapshot = Instant::now();
    let mut reader = kv.snapshot();
    println!("{:<24} {:>10.1} µs", "snapshot, start", snapshot.elapsed().as_secs_f64() * 1e6);
    report("put beside a snapshot", rounds, |number| {
        apply(&mut kv, number, &puts[scatter(number, keys)]);
    });
    let read = Instant::now();
    let mut bytes = 0;
    loop {
        let chunk = reader.read(CHUNK_BYTES_MAX);
        if chunk.is_empty() {
            break;
        }
        bytes += chunk.len();
    }
    let rate = bytes as f64 / read.elapsed().as_secs_f64() / 1e6;
    println!("{:<24} {rate:>10.0} MB/s of {bytes} bytes", "snapshot, read");
    let saved = kv.save();
    let restore = Instant::now();
    black_box(Kv::load(2, &saved).unwrap());
    let rate = saved.len() as f64 / restore.elapsed().as_secs_f64() / 1e6;
    println!("{:<24} {rate:>10.0} MB/s", "restore");
}

fn report(what: &str, count: usize, mut body: impl FnMut(usize)) {
    let start = Instant::now();
    for number in 0..count {
        body(number);
    }
    println!("{what:<24} {:>10.0} ns", start.elapsed().as_secs_f64() * 1e9 / count as f64);
}

/// Visits the keys in an order that no cache predicts (Knuth's multiplicative hash).
fn scatter(number: usize, keys: usize) -> usize {
    number.wrapping_mul(2_654_435_761) % keys
}

fn put(number: usize) -> Call {
    let content = Some(Content::Value(vec![7; 256]));
    call("Put", &PutRequest { key: key(number), content, ttl_ms: 0 })
}

fn get(number: usize) -> GetRequest {
    GetRequest { key: key(number) }
}

fn key(number: usize) -> String {
    format!("config/service/{number:09}")
}

fn call(method: &str, request: &impl conclave_sdk::prost::Message) -> Call {
    Call::of(format!("kv.v1.KV/{method}"), request)
}

fn context(number: usize) -> Context {
    Context { index: number as u64, time_ms: number as u64, seed: 0, principal: String::new() }
}

fn apply(kv: &mut Kv, number: usize, call: &Call) {
    black_box(kv.apply(&context(number), call).unwrap());
}

fn query(kv: &Kv, call: &Call) {
    black_box(kv.query(&context(0), call).unwrap());
}
