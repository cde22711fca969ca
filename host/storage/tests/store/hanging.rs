//! A disk that hangs, and a storage thread that panics. Neither returns an error by itself.

use std::{
    fs::File,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use conclave_storage::{Medium, Storage};

use crate::support::*;

/// A medium whose syncs wait for this lock, and panic on request.
#[derive(Default)]
struct Hanging {
    answers: Mutex<()>,
    panics: std::sync::atomic::AtomicBool,
}

impl Hanging {
    fn hang(&self) -> MutexGuard<'_, ()> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Medium for Hanging {
    fn sync(&self, file: &File) -> io::Result<()> {
        assert!(!self.panics.load(std::sync::atomic::Ordering::SeqCst), "a planted panic");
        drop(self.answers.lock());
        file.sync_data()
    }
}

fn open_hanging(dir: &std::path::Path) -> (Storage, Arc<Hanging>) {
    let medium = Arc::new(Hanging::default());
    (Storage::open_on(options(dir), medium.clone()).unwrap(), medium)
}

/// The duration of a hanging sync is reported while it hangs, and is zero after it returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_hangs_is_seen_while_it_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, medium) = open_hanging(dir.path());
    append(&storage.log, vec![entry(1, 0, 10)]).await.unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while storage.log.busy_for() > Duration::ZERO {
        assert!(Instant::now() < until, "the idle store reports a duration");
    }
    let appending = {
        let hanging = medium.hang();
        let log = storage.log.clone();
        let appending = tokio::spawn(async move { append(&log, vec![entry(1, 1, 10)]).await });
        while storage.log.busy_for() < Duration::from_millis(200) {
            assert!(Instant::now() < until, "the hanging sync is not reported");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(hanging);
        appending
    };
    appending.await.unwrap().unwrap();
    while storage.log.busy_for() > Duration::ZERO {
        assert!(Instant::now() < until, "the finished sync is still reported");
    }
    assert!(storage.log.poisoned().is_none());
}

/// A panic poisons the store, and is published to the task that ends the process.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_storage_thread_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, medium) = open_hanging(dir.path());
    let mut panicked = storage.log.panicked();
    medium.panics.store(true, std::sync::atomic::Ordering::SeqCst);
    append(&storage.log, vec![entry(1, 0, 10)]).await.unwrap_err();
    let told = panicked.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(told.contains("a planted panic"), "{told}");
    assert!(storage.log.poisoned().is_some());
}
