//! A long random history, compared with a model that only counts: entries that count and entries
//! that trap, queries that trap, snapshots, purges, restores and restarts.
//!
//! A failure prints its seed; `CONCLAVE_SEED=<seed>` runs it again.

use std::sync::Arc;

use conclave_types::{Outcome, TrapKind};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::support::{MARK, Node, Number, add, call, hostile, number, trap_kind};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    Total(i64),
    Failure,
    Trap(TrapKind),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_life_agrees_with_a_model() {
    let seed = std::env::var("CONCLAVE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seed
        .map_or_else(|| (0..6).chain([rand::random()]).collect::<Vec<u64>>(), |seed| vec![seed]);
    for seed in seeds {
        eprintln!("CONCLAVE_SEED={seed}");
        live(seed).await;
    }
}

async fn live(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Node::start();
    let mut total = 0;
    let mut pending = Vec::new();
    for _ in 0..600 {
        match random.random_range(0..100) {
            0..60 => {
                let value = random.random_range(-50..50);
                total += value;
                pending.push((node.push(add(value)).await, Expected::Total(total)));
            }
            60..66 => node.push_blank().await,
            66..72 => {
                total += MARK;
                pending.push((node.push(call("Fail", Number::default())).await, Expected::Failure));
            }
            72..80 => {
                let (method, kind) =
                    [("Panic", TrapKind::Panic), ("DivideByZero", TrapKind::Invalid)]
                        [random.random_range(0..2)];
                pending
                    .push((node.push(call(method, Number::default())).await, Expected::Trap(kind)));
            }
            80..84 => assert!(node.query("QueryPanic").await.is_err()),
            84..92 => assert_eq!(node.total().await, total),
            92..95 => {
                let snapshot = node.worker.snapshot(node.index);
                total += 1;
                pending.push((node.push(add(1)).await, Expected::Total(total)));
                // The snapshot may be lost with its standby.
                if let Ok(stream) = snapshot.await
                    && let Ok(saved) = crate::support::read(stream).await
                {
                    assert_eq!(
                        i64::from_be_bytes(saved.bytes.clone().try_into().unwrap()),
                        total - 1
                    );
                    node.entry_source.install(saved);
                }
            }
            95..97 => {
                // As if another node had sent its state.
                settle(&mut pending).await;
                let mut saved = node.snapshot().await;
                saved.index += 10;
                node.entry_source.install(saved.clone());
                node.worker.restore(saved.state()).await.unwrap();
                node.index = saved.index;
            }
            _ => {
                // A restart from the snapshot, sometimes without the records of traps.
                settle(&mut pending).await;
                let saved = node.snapshot().await;
                let entry_source = Arc::clone(&node.entry_source);
                entry_source.install(saved.clone());
                if random.random() {
                    entry_source.forget_traps();
                }
                node = Node::start_from(hostile(), entry_source, Some(saved.state()));
            }
        }
    }
    settle(&mut pending).await;
    assert_eq!(node.total().await, total);
    assert_eq!(node.worker.fatal_error(), None);
}

async fn settle(pending: &mut Vec<(tokio::sync::oneshot::Receiver<Outcome>, Expected)>) {
    for (outcome, expected) in pending.drain(..) {
        let outcome = outcome.await.unwrap();
        let found = match &outcome {
            Outcome::Reply(_) => Expected::Total(number(&outcome)),
            Outcome::Failure(_) => Expected::Failure,
            Outcome::Trap(_) => Expected::Trap(trap_kind(&outcome)),
        };
        assert_eq!(found, expected);
    }
}
