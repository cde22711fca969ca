//! The guarantees of the log store.

use std::{
    sync::{atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use conclave_storage::{Error, raft_types::Vote};
use futures::{FutureExt, StreamExt, TryStreamExt, poll};
use openraft::{RaftLogReader, storage::RaftLogStorage};

use crate::support::*;

/// Entries of all sizes can be read, from memory and, after a restart, from disk. Some are larger
/// than the largest value of the tree.
#[tokio::test(flavor = "multi_thread")]
async fn entries_of_any_size_survive_a_restart() {
    let (dir, storage) = fresh();
    let sizes = [0, 1, 100, 240 << 10, (240 << 10) - 50, 4 << 20, 5, 1 << 20, 700_000, 3];
    let entries: Vec<_> = (0..).zip(sizes).map(|(index, size)| entry(1, index, size)).collect();
    append(&storage.log, entries[..4].to_vec()).await.unwrap();
    append(&storage.log, entries[4..].to_vec()).await.unwrap();
    assert!(all(&storage.log) == entries);
    drop(storage);
    let storage = open(dir.path());
    assert!(all(&storage.log) == entries);
    assert!(storage.log.entries(5..6, 1).unwrap() == entries[5..6], "one at least");
    assert!(storage.log.entries(2..9, 100).unwrap() == entries[2..3]);
    assert!(storage.log.entries(6..9, 1).unwrap() == entries[6..7]);
    assert!(storage.log.entries(10..90, 1).unwrap().is_empty());
    let mut reader = storage.log.clone();
    let stream = reader.entries_stream(1..9).await;
    let streamed: Vec<_> = stream.try_collect().await.unwrap();
    assert!(streamed == entries[1..9]);
}

/// A read from the disk blocks no thread of the runtime. While the only blocking thread is
/// occupied, the read waits. Entries in memory are returned at once.
#[test]
fn reads_from_the_disk_leave_the_runtime_alone() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (dir, storage) = fresh();
        let entries: Vec<_> = (0..10).map(|index| entry(1, index, 50)).collect();
        append(&storage.log, entries.clone()).await.unwrap();
        let (release, released) = mpsc::channel::<()>();
        let occupied = tokio::task::spawn_blocking(move || released.recv());
        let mut cached = storage.log.clone();
        let read = cached.limited_get_log_entries(2, 9).now_or_never();
        assert!(read.expect("from memory").unwrap() == entries[2..9]);
        let streamed = cached.entries_stream(2..9).await.try_collect::<Vec<_>>().now_or_never();
        assert!(streamed.expect("from memory").unwrap() == entries[2..9]);
        drop((storage, cached));

        let mut log = open(dir.path()).log;
        append(&log, vec![entry(1, 10, 50)]).await.unwrap();
        let mut streaming = log.clone();
        let read = log.limited_get_log_entries(2, 9);
        let mut read = std::pin::pin!(read);
        assert!(poll!(read.as_mut()).is_pending());
        let mut stream = streaming.entries_stream(8..11).await;
        assert!(poll!(stream.next()).is_pending());
        release.send(()).unwrap();
        occupied.await.unwrap().unwrap();
        assert!(read.await.unwrap() == entries[2..9]);
        let streamed: Vec<_> = stream.try_collect().await.unwrap();
        assert!(streamed == [&entries[8..], &[entry(1, 10, 50)]].concat());
    });
}

/// The state of a killed process equals a copy of its directory.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_kill() {
    let (dir, storage) = fresh();
    let mut log = storage.log.clone();
    for index in 0..20 {
        append(&log, vec![entry(2, index, 300)]).await.unwrap();
    }
    log.save_vote(&Vote::new_committed(7, 3)).await.unwrap();
    let crashed = copy(dir.path());
    let mut again = open(crashed.path()).log;
    assert_eq!(again.read_vote().await.unwrap(), Some(Vote::new_committed(7, 3)));
    assert!(all(&again) == all(&log));
}

/// A truncation in the middle of a block keeps the beginning of the block. New entries can follow
/// it. Both also hold across restarts.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_is_cut_where_it_is_truncated() {
    let (dir, storage) = fresh();
    let mut log = storage.log.clone();
    append(&log, (0..10).map(|index| entry(1, index, 50)).collect()).await.unwrap();
    append(&log, (10..20).map(|index| entry(1, index, 300_000)).collect()).await.unwrap();
    log.truncate_after(Some(log_id(1, 14))).await.unwrap();
    log.truncate_after(Some(log_id(1, 4))).await.unwrap();
    append(&log, (5..8).map(|index| entry(3, index, 60)).collect()).await.unwrap();
    let mut expected: Vec<_> = (0..5).map(|index| entry(1, index, 50)).collect();
    expected.extend((5..8).map(|index| entry(3, index, 60)));
    assert!(all(&log) == expected);
    let crashed = copy(dir.path());
    assert!(all(&open(crashed.path()).log) == expected);
    drop((log, storage));
    let mut log = open(dir.path()).log;
    assert!(all(&log) == expected);
    // Removes all entries and starts a new log, without a write in between.
    log.truncate_after(None).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, None);
    drop(log);
    let log = open(dir.path()).log;
    assert!(all(&log).is_empty());
    append(&log, vec![entry(4, 0, 1)]).await.unwrap();
}

/// A purge takes effect at once, in the middle of a block and also far beyond the end of the log,
/// as after a snapshot from a peer.
#[tokio::test(flavor = "multi_thread")]
async fn purges_hold_across_restarts() {
    let (dir, storage) = fresh();
    let mut log = storage.log.clone();
    for first in (0..1000).step_by(5) {
        append(&log, (first..first + 5).map(|index| entry(1, index, 50)).collect()).await.unwrap();
    }
    log.purge(log_id(1, 902)).await.unwrap();
    assert_eq!(all(&log).first().unwrap().log_id.index, 903);
    drop((log, storage));
    let mut log = open(dir.path()).log;
    assert_eq!(all(&log).first().unwrap().log_id.index, 903);
    assert_eq!(log.get_log_state().await.unwrap().last_purged_log_id, Some(log_id(1, 902)));
    log.purge(log_id(2, 5000)).await.unwrap();
    assert!(all(&log).is_empty());
    append(&log, vec![entry(2, 5001, 9)]).await.unwrap();
    drop(log);
    let mut log = open(dir.path()).log;
    assert!(all(&log) == vec![entry(2, 5001, 9)]);
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(log_id(2, 5000)), Some(log_id(2, 5001)))
    );
}

/// Data for which no caller waits reaches the disk without further operations.
#[tokio::test(flavor = "multi_thread")]
async fn lazy_writes_arrive_without_a_batch_to_ride_along_with() {
    let (dir, storage) = fresh();
    let mut log = storage.log.clone();
    append(&log, (0..9).map(|index| entry(1, index, 50)).collect()).await.unwrap();
    // Long enough for the storage thread to sleep without a deadline.
    tokio::time::sleep(Duration::from_millis(500)).await;
    log.save_committed(Some(log_id(1, 7))).await.unwrap();
    log.put_record("trap/5", Some(b"why".to_vec())).unwrap();
    log.put_record("trap/6", Some(b"gone".to_vec())).unwrap();
    log.put_record("trap/6", None).unwrap();
    assert_eq!(log.get_record("trap/5").unwrap().unwrap(), b"why");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let crashed = copy(dir.path());
    let mut again = open(crashed.path()).log;
    assert_eq!(again.read_committed().await.unwrap(), Some(log_id(1, 7)));
    assert_eq!(again.list_records("trap/").unwrap(), [("trap/5".to_owned(), b"why".to_vec())]);
    assert!(again.put_record("big", Some(vec![0; 1 << 20])).is_err());
    again.put_record("trap/5", None).unwrap();
    drop(again);
    assert_eq!(open(crashed.path()).log.get_record("trap/5").unwrap(), None);
}

/// Metadata entries can be synced on demand, without an append.
#[tokio::test(flavor = "multi_thread")]
async fn records_are_synced_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, medium) = open_failing(dir.path());
    append(&storage.log, vec![entry(1, 0, 5)]).await.unwrap();
    medium.0.store(true, Ordering::SeqCst);
    storage.log.put_record("name", Some(b"value".to_vec())).unwrap();
    // The metadata entries are written, but not synced. A sync must now fail.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(storage.log.poisoned().is_none());
    storage.log.sync_records().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while storage.log.poisoned().is_none() {
        assert!(Instant::now() < until, "no sync was tried");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The committed id is written lazily, and may remain after its entries were truncated. It must
/// then not be applied to another leader's uncommitted entries at the same indexes.
#[tokio::test(flavor = "multi_thread")]
async fn a_committed_index_names_no_entries_of_other_leaders() {
    let (dir, storage) = fresh();
    let mut log = storage.log.clone();
    append(&log, (0..=10).map(|index| entry(3, index, 50)).collect()).await.unwrap();
    log.purge(log_id(3, 2)).await.unwrap();
    for (noted, found) in [
        (log_id(4, 8), log_id(3, 2)),
        (log_id(4, 20), log_id(3, 2)),
        (log_id(3, 20), log_id(3, 10)),
        (log_id(3, 7), log_id(3, 7)),
        (log_id(2, 20), log_id(3, 2)),
        (log_id(2, 5), log_id(3, 2)),
    ] {
        log.save_committed(Some(noted)).await.unwrap();
        // A vote is synced, together with the waiting lazy values.
        tokio::time::sleep(Duration::from_millis(250)).await;
        log.save_vote(&Vote::new(noted.leader_id.term + 9, 1)).await.unwrap();
        let crashed = copy(dir.path());
        let recovered = open(crashed.path()).log.read_committed().await.unwrap();
        assert_eq!(recovered, Some(found), "noted: {noted}");
    }
}

/// A crash right after the installation of a leader's snapshot may leave entries that contradict
/// it. The log then has higher indexes than the snapshot, but lower terms, and must be discarded.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_gives_way_to_a_snapshot_that_contradicts_it() {
    for (term, index, left) in [(2, 8, None), (1, 8, Some(10)), (2, 11, Some(10)), (2, 0, None)] {
        let (dir, storage) = fresh();
        append(&storage.log, (0..=10).map(|index| entry(1, index, 50)).collect()).await.unwrap();
        storage.snapshots.create(term, index, b"").unwrap().commit().unwrap();
        drop(storage);
        let last = async || {
            let mut log = open(dir.path()).log;
            log.get_log_state().await.unwrap().last_log_id.map(|last| last.index)
        };
        assert_eq!(last().await, left, "({term}, {index})");
        assert_eq!(last().await, left, "({term}, {index}), once more");
    }
}

/// After a failed sync the kernel discards the unwritten data, so the store must reject further operations.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_poisons_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, medium) = open_failing(dir.path());
    let mut log = storage.log.clone();
    append(&log, vec![entry(1, 0, 5)]).await.unwrap();
    medium.0.store(true, Ordering::SeqCst);
    let error = append(&log, vec![entry(1, 1, 5)]).await.unwrap_err();
    assert!(error.to_string().contains("on fire"), "{error}");
    medium.0.store(false, Ordering::SeqCst);
    let later = [
        append(&log, vec![entry(1, 2, 5)]).await,
        log.save_vote(&Vote::new(9, 1)).await,
        log.save_committed(None).await,
        log.purge(log_id(1, 0)).await,
        log.truncate_after(None).await,
        log.put_record("a", None),
    ];
    for later in later {
        let error = later.unwrap_err();
        assert!(error.to_string().contains("on fire"));
        let error = error.get_ref().unwrap().downcast_ref::<Error>();
        assert!(matches!(error, Some(Error::Poisoned(_))), "{error:?}");
    }
    assert!(log.poisoned().unwrap().to_string().contains("on fire"));
    assert_eq!(log.read_vote().await.unwrap(), None);
    drop((log, storage));
    let again = open(dir.path()).log;
    assert!(all(&again)[..1] == [entry(1, 0, 5)], "what was acknowledged is there");
}

/// Readers get consecutive and correct entries while the log grows, is purged, and is truncated.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_are_not_misled_by_concurrent_changes() {
    let (_dir, storage) = fresh();
    let mut log = storage.log.clone();
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|at| {
            let (log, done) = (storage.log.clone(), done.clone());
            std::thread::spawn(move || {
                let mut reads = 0_u64;
                while !done.load(Ordering::SeqCst) {
                    let from = (reads * 37 + at) % 3000;
                    let entries = log.entries(from..from + 200, 1 << 20).unwrap();
                    for pair in entries.windows(2) {
                        assert_eq!(pair[0].log_id.index + 1, pair[1].log_id.index);
                        assert!(pair[0].log_id <= pair[1].log_id);
                    }
                    for read in &entries {
                        let log_id = read.log_id;
                        assert!(*read == entry(log_id.leader_id.term, log_id.index, 20_000));
                    }
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    let mut next = 0;
    for term in 1..60 {
        let end = next + 60;
        append(&log, (next..end).map(|index| entry(term, index, 20_000)).collect()).await.unwrap();
        next = end - 13;
        let last = log.entries(next - 1..next, 1).unwrap()[0].log_id;
        log.truncate_after(Some(last)).await.unwrap();
        if term % 5 == 0 {
            let purged = log.entries(next - 90..next - 89, 1).unwrap()[0].log_id;
            log.purge(purged).await.unwrap();
        }
    }
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
}

/// A gap or an overlap is a bug of the caller. It is rejected before anything changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_hole_is_refused() {
    let (_dir, storage) = fresh();
    append(&storage.log, vec![entry(1, 0, 5)]).await.unwrap();
    assert!(append(&storage.log, vec![entry(1, 2, 5)]).await.is_err());
    assert!(append(&storage.log, vec![entry(1, 0, 5)]).await.is_err());
    assert!(append(&storage.log, vec![entry(1, 1, 5), entry(1, 3, 5)]).await.is_err());
    assert_eq!(all(&storage.log).len(), 1);
    append(&storage.log, vec![entry(1, 1, 5)]).await.unwrap();
}

/// A snapshot that ends in an earlier term may cover uncommitted entries that a later leader appended.
#[tokio::test]
async fn purge_beyond_a_tail_of_a_later_term_continues_after_the_snapshot() {
    let (dir, storage) = fresh();
    let mut log = storage.log.clone();
    append(&log, vec![entry(1, 0, 5), entry(1, 1, 5), entry(3, 2, 5)]).await.unwrap();
    log.purge(log_id(2, 10)).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(2, 10)));
    append(&log, vec![entry(4, 11, 5)]).await.unwrap();
    drop((log, storage));
    let storage = open(dir.path());
    assert_eq!(storage.log.extent().last, Some(log_id(4, 11)));
    assert_eq!(storage.log.extent().purged, Some(log_id(2, 10)));
}

/// The retained log is measured in bytes, also across a restart.
#[tokio::test]
async fn sizes_of_the_log_survive_a_restart() {
    let (dir, storage) = fresh();
    append(&storage.log, (0..100).map(|index| entry(1, index, 100_000)).collect()).await.unwrap();
    let about = |bytes: u64| bytes * 100_000..bytes * 100_000 + 400_000;
    let check = |log: &conclave_storage::LogStore| {
        assert!(about(50).contains(&log.bytes_after(49)), "{}", log.bytes_after(49));
        let first = log.first_within(3_000_000);
        assert!((70..74).contains(&first), "{first}");
        assert_eq!(log.first_within(1000), 100, "the last entry has more");
    };
    check(&storage.log);
    drop(storage);
    check(&open(dir.path()).log);
}
