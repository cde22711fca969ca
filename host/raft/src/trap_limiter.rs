//! The trap limiter: slows down callers whose calls keep trapping, so that
//! they cost other callers little.
//!
//! A trap costs a node an instance. Until the next standby is built, a second trap stops the writes
//! of all callers, and snapshots that are being read are lost.
//!
//! So once a call of a method has trapped, its caller may call that method only one call at a
//! time, and only while there is a standby. After each trap the caller waits nine times as long as
//! the standby took to build, so traps take at most a tenth of the time. A caller without further
//! traps is free again after a minute. Several callers that trap on one method are limited
//! together, as one caller.
//!
//! Commands are limited on the leader, queries and subscriptions on the node that serves them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex as Gate, OwnedMutexGuard},
    time::{Instant, sleep_until, timeout_at},
};

use conclave_machine::Worker;
use conclave_types::{Call, Caller, error::Error};

/// The pause after a trap, as a multiple of the time that the standby took to build.
const PAUSE_FACTOR: u32 = 9;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The time for which a caller is limited after its last trap.
const MEMORY: Duration = Duration::from_secs(60);
/// The number of callers per method that are limited separately. Further callers are limited together.
const CALLERS_MAX: usize = 4;
/// The number of methods that are limited separately. Further methods are limited together.
const METHODS_MAX: usize = 256;
/// The maximum number of calls that wait for their turn.
const WAITING_MAX: usize = 256;

/// The data about the node's state machine that the limiter needs.
pub(super) trait Standby: Send + Sync {
    /// Waits until there is a standby.
    fn present(&self) -> impl Future<Output = ()> + Send;

    /// Returns the time that the last standby took to build.
    fn build_time(&self) -> Duration;
}

impl Standby for Worker {
    async fn present(&self) {
        // On an error, the worker has ended, and the call ends with it.
        let _ = self.standby().wait_for(|present| *present).await;
    }

    fn build_time(&self) -> Duration {
        self.standby_build_time()
    }
}

/// The trap limiter of a node. See the module page.
pub(super) struct TrapLimiter {
    /// The time for which a caller is limited after its last trap.
    memory: Duration,
    methods: Mutex<Methods>,
    waiting: AtomicUsize,
}

impl Default for TrapLimiter {
    fn default() -> Self {
        Self { memory: MEMORY, methods: Mutex::default(), waiting: AtomicUsize::default() }
    }
}

/// The limited callers of each method.
type Methods = BTreeMap<Arc<str>, BTreeMap<Caller, Arc<Limited>>>;

/// A caller, or several together, whose calls of a method trapped.
struct Limited {
    /// Held by the one call that is running.
    gate: Arc<Gate<()>>,
    trapped_at: Mutex<Instant>,
}

impl Limited {
    fn new() -> Self {
        Self { gate: Arc::default(), trapped_at: Mutex::new(Instant::now()) }
    }

    fn trapped_at(&self) -> MutexGuard<'_, Instant> {
        self.trapped_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn of a call. The next call of a limited caller gets its turn when this is dropped.
pub(super) struct Turn {
    _gate: Option<OwnedMutexGuard<()>>,
}

/// The slot of a call that waits for its turn.
struct Slot<'a>(&'a AtomicUsize);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TrapLimiter {
    fn methods(&self) -> MutexGuard<'_, Methods> {
        self.methods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a call.
    ///
    /// # Errors
    /// Fails if the turn would come after the deadline, or if too many calls wait.
    pub(super) async fn admit(
        &self,
        call: &Call,
        caller: &Caller,
        standby: &impl Standby,
        deadline: Instant,
    ) -> Result<Turn, Error> {
        let Some(limited) = self.limited(&call.method, caller) else {
            return Ok(Turn { _gate: None });
        };
        let busy = || {
            Error::busy(format!(
                "calls of {} by this caller keep trapping and are slowed down: correct the request or the component",
                call.method
            ))
        };
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(busy());
        }
        let _slot = Slot(&self.waiting);
        let ready = async {
            let gate = Arc::clone(&limited.gate).lock_owned().await;
            standby.present().await;
            gate
        };
        let gate = timeout_at(deadline, ready).await.map_err(|_| busy())?;
        // Read while the gate is held: the previous call may have trapped.
        let pause = (standby.build_time() * PAUSE_FACTOR).clamp(PAUSE_MIN, PAUSE_MAX);
        let free_at = *limited.trapped_at() + pause;
        if free_at > deadline {
            return Err(busy());
        }
        sleep_until(free_at).await;
        Ok(Turn { _gate: Some(gate) })
    }

    /// Returns the limited caller that a call belongs to, if any.
    fn limited(&self, method: &Arc<str>, caller: &Caller) -> Option<Arc<Limited>> {
        let mut methods = self.methods();
        if methods.is_empty() {
            return None;
        }
        let now = Instant::now();
        methods.retain(|_, callers| {
            callers.retain(|_, limited| *limited.trapped_at() + self.memory > now);
            !callers.is_empty()
        });
        let callers = methods.get(method).or_else(|| methods.get(""))?;
        callers.get(caller).or_else(|| callers.get(&Caller::default())).cloned()
    }

    /// Records that a call trapped.
    pub(super) fn trapped(&self, method: &Arc<str>, caller: &Caller) {
        let mut methods = self.methods();
        let method = match methods.contains_key(method) || methods.len() < METHODS_MAX {
            true => Arc::clone(method),
            false => Arc::from(""),
        };
        let callers = methods.entry(method).or_default();
        let caller = if callers.contains_key(caller) || callers.len() < CALLERS_MAX {
            caller.clone()
        } else {
            Caller::default()
        };
        let limited = callers.entry(caller).or_insert_with(|| Arc::new(Limited::new()));
        *limited.trapped_at() = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::{sync::watch, task::yield_now, time::sleep};

    use super::*;

    struct Fake(watch::Sender<bool>);

    impl Standby for Fake {
        async fn present(&self) {
            self.0.subscribe().wait_for(|present| *present).await.unwrap();
        }

        fn build_time(&self) -> Duration {
            BUILD_TIME
        }
    }

    const BUILD_TIME: Duration = Duration::from_millis(20);
    const PAUSE: Duration = Duration::from_millis(180);

    fn call(method: &str) -> Call {
        Call { method: method.into(), request: Bytes::new(), principal: "".into() }
    }

    fn caller(name: &str) -> Caller {
        Caller(name.into())
    }

    async fn admit(limiter: &TrapLimiter, method: &str, name: &str) -> Turn {
        let standby = Fake(watch::Sender::new(true));
        let deadline = Instant::now() + Duration::from_secs(60);
        limiter.admit(&call(method), &caller(name), &standby, deadline).await.unwrap()
    }

    /// Returns whether a call is not limited.
    fn is_free(limiter: &TrapLimiter, method: &str, name: &str) -> bool {
        limiter.limited(&method.into(), &caller(name)).is_none()
    }

    #[tokio::test]
    async fn a_caller_waits_after_its_trap_and_no_other_does() {
        let limiter = TrapLimiter::default();
        limiter.trapped(&"a/A".into(), &caller("one"));
        let began = Instant::now();
        assert!(is_free(&limiter, "a/A", "two") && is_free(&limiter, "a/B", "one"));
        drop(admit(&limiter, "a/A", "two").await);
        drop(admit(&limiter, "a/A", "one").await);
        assert!(began.elapsed() >= PAUSE);
    }

    #[tokio::test]
    async fn time_frees_a_caller_and_a_success_does_not() {
        let memory = Duration::from_millis(400);
        let limiter = TrapLimiter { memory, ..TrapLimiter::default() };
        limiter.trapped(&"a/A".into(), &caller("one"));
        // This call succeeds, so no trap is recorded.
        drop(admit(&limiter, "a/A", "one").await);
        assert!(!is_free(&limiter, "a/A", "one"));
        sleep(memory).await;
        assert!(is_free(&limiter, "a/A", "one"));
        assert!(limiter.methods().is_empty());
    }

    /// All calls trap. Without the gate they would be released together.
    #[tokio::test]
    async fn calls_that_wait_are_admitted_one_at_a_time_with_a_pause_after_each_trap() {
        let limiter = Arc::new(TrapLimiter::default());
        limiter.trapped(&"a/A".into(), &caller("one"));
        let began = Instant::now();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let limiter = limiter.clone();
            calls.spawn(async move {
                let turn = admit(&limiter, "a/A", "one").await;
                let at = began.elapsed();
                limiter.trapped(&"a/A".into(), &caller("one"));
                drop(turn);
                at
            });
        }
        let mut admitted = calls.join_all().await;
        admitted.sort();
        for (number, at) in (1..).zip(admitted) {
            assert!(at >= PAUSE * number, "call {number} after {at:?}");
        }
    }

    #[tokio::test]
    async fn a_limited_caller_waits_for_a_standby() {
        let limiter = TrapLimiter::default();
        limiter.trapped(&"a/A".into(), &caller("one"));
        let standby = Fake(watch::Sender::new(false));
        let deadline = Instant::now() + Duration::from_secs(60);
        let (call, caller) = (call("a/A"), caller("one"));
        let waiting = limiter.admit(&call, &caller, &standby, deadline);
        let waiting = &mut std::pin::pin!(waiting);
        assert!(timeout_at(Instant::now() + PAUSE * 2, &mut *waiting).await.is_err());
        standby.0.send_replace(true);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_turn_after_the_deadline_is_refused_at_once() {
        let limiter = TrapLimiter::default();
        limiter.trapped(&"a/A".into(), &caller("one"));
        let standby = Fake(watch::Sender::new(true));
        let deadline = Instant::now() + PAUSE / 3;
        let refused = limiter.admit(&call("a/A"), &caller("one"), &standby, deadline).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("keep trapping")));
        assert_eq!(limiter.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn too_many_waiting_calls_are_refused() {
        let limiter = Arc::new(TrapLimiter::default());
        limiter.trapped(&"a/A".into(), &caller("one"));
        let turn = admit(&limiter, "a/A", "one").await;
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..WAITING_MAX {
            let limiter = limiter.clone();
            waiting.spawn(async move { drop(admit(&limiter, "a/A", "one").await) });
        }
        while limiter.waiting.load(Ordering::Relaxed) < WAITING_MAX {
            yield_now().await;
        }
        let standby = Fake(watch::Sender::new(true));
        let deadline = Instant::now() + Duration::from_secs(60);
        let refused = limiter.admit(&call("a/A"), &caller("one"), &standby, deadline).await;
        assert!(refused.is_err());
        drop(turn);
        waiting.join_all().await;
    }

    /// A caller that opens a connection for each call.
    #[tokio::test]
    async fn many_callers_that_trap_on_one_method_are_limited_as_one() {
        let limiter = TrapLimiter::default();
        for number in 0..CALLERS_MAX {
            limiter.trapped(&"a/A".into(), &caller(&number.to_string()));
        }
        assert!(is_free(&limiter, "a/A", "new"));
        limiter.trapped(&"a/A".into(), &caller("one more"));
        assert!(!is_free(&limiter, "a/A", "new"));
        for number in 0..=METHODS_MAX {
            limiter.trapped(&format!("b/{number}").into(), &caller("one"));
        }
        assert!(!is_free(&limiter, "c/C", "one"));
        assert!(limiter.methods().len() <= METHODS_MAX + 1);
    }
}
