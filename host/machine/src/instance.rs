//! One instance of a state machine: its store, its limits, and typed calls into it.
//!
//! An instance runs on one thread at a time and is called synchronously. After a call that returned
//! [`Broken`] it must be dropped. wasmtime locks a store whose guest trapped, and a reply that was
//! rejected for its size has already changed the state. A query whose answer is too large fails,
//! and the instance remains usable.

mod moving;

use bytes::Bytes;
use wasmtime::{Store, WasmBacktrace};

use super::{
    bindings::{
        Machine, MachinePre,
        conclave::fsm::types::{
            Call as WireCall, Code as WireCode, Context as WireContext, Event as WireEvent,
            Failure as WireFailure,
        },
        exports::conclave::fsm::fsm::Guest,
    },
    engine::Engine,
    entry_context::EntryContext,
    error::Broken,
    guest_log::GuestLog,
    limits::{Limiter, Limits, SNAPSHOT_READ_BYTES},
    state::{State, Wasi},
    trap::{About, METHOD_BYTES_MAX, TrapReport, classify},
};
use conclave_types::{
    Call, Code, Event, Failure, Outcome, Reply, TrapKind,
    limits::{ClusterLimits, EVENT_OVERHEAD_BYTES},
};

/// A state machine's answer to a subscriber.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) from_topic: Vec<u8>,
    /// The exclusive end of the topic range. Empty means no end.
    pub(super) to_topic: Vec<u8>,
    pub(super) initial: Vec<Bytes>,
}

/// The instances of this build. Those of a benchmark can answer calls with a native state machine.
#[cfg(not(feature = "bench"))]
pub(super) type Instance = WasmInstance;
#[cfg(feature = "bench")]
pub(super) type Instance = super::bench::NativeInstance;

/// One instance. See the module documentation.
pub(super) struct WasmInstance {
    store: Store<State>,
    machine: Machine,
    limits: Limits,
    fuel_used: u64,
    fuel_used_in_all: u64,
    /// The size of the last call's answer, even if it was rejected for its size.
    answer: AnswerSize,
    /// The backtrace of the call that trapped.
    backtrace: Vec<String>,
}

/// The maximum length of a failure's message in bytes; the rest is cut off. Set by the contract in `wit/`.
pub(super) const FAILURE_BYTES_MAX: usize = 4096;
/// The maximum number of handles that a guest may hold. It needs few: one per snapshot being read.
const HANDLES_MAX: usize = 1_000;

impl WasmInstance {
    /// Creates an instance in the initial state. `role` names it in the node's log. `cluster` are
    /// the limits of the entry at which it stands. `interrupted` is called when the engine's epoch
    /// moves, and ends a running call if it returns true.
    pub(super) fn new(
        engine: &Engine,
        pre: &MachinePre<State>,
        role: &'static str,
        cluster: ClusterLimits,
        interrupted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Self, Broken> {
        let limits = Limits { cluster, ..engine.limits().clone() };
        let state = State {
            limiter: Limiter::new(&limits),
            log: GuestLog::new(role, &limits),
            wasi: Wasi::new(),
        };
        let mut store = Store::new(engine.inner(), state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(limits.transfer_bytes_max());
        store.set_max_component_handles(HANDLES_MAX);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            Ok(if interrupted() {
                wasmtime::UpdateDeadline::Interrupt
            } else {
                wasmtime::UpdateDeadline::Continue(1)
            })
        });
        let fuel = limits.cluster.fuel_per_state_call;
        let about = About { method: "instantiate", fuel, limits: &limits };
        store.set_fuel(fuel).map_err(|error| classify(&error, false, &about))?;
        let machine = pre.instantiate(&mut store).map_err(|error| {
            let denied = store.data().limiter.denied();
            if denied {
                return Broken::Trap(about.trap(TrapKind::MemoryExhausted, ""));
            }
            classify(&error, denied, &about)
        })?;
        let mut instance = Self {
            store,
            machine,
            limits,
            fuel_used: 0,
            fuel_used_in_all: 0,
            answer: AnswerSize::default(),
            backtrace: Vec::new(),
        };
        // A runtime initializes itself in its first call, for example seeds a generator. The call
        // of `describe` makes that happen here, in the same context for every instance.
        instance.describe()?;
        Ok(instance)
    }

    /// Returns the limits of the entry at which the instance stands.
    pub(super) fn cluster_limits(&self) -> ClusterLimits {
        self.limits.cluster
    }

    /// Sets other limits for all later calls.
    pub(super) fn set_cluster_limits(&mut self, limits: ClusterLimits) {
        self.limits.cluster = limits;
        self.set_memory_bytes_max(limits.memory_bytes_max);
        self.store.set_hostcall_fuel(self.limits.transfer_bytes_max());
    }

    /// Applies one entry: a call, or a tick if `call` is `None`. On `Err`, the call trapped or
    /// failed fatally, and the instance is unusable.
    pub(super) fn run(
        &mut self,
        context: EntryContext,
        call: Option<&Call>,
    ) -> Result<Outcome, Broken> {
        self.store.data_mut().wasi.begin(context);
        let fuel = self.limits.cluster.fuel_per_call;
        let (about, answer) = match call {
            Some(call) => {
                let (context, wire) = arguments(context, call);
                let about = (&*call.method, fuel);
                (about, self.call(about, |guest, store| guest.call_apply(store, context, wire))?)
            }
            None => {
                let context = wire_context(context, "");
                let about = ("tick", fuel);
                (about, Ok(self.call(about, |guest, store| guest.call_tick(store, context))?))
            }
        };
        match answer {
            Ok(reply) => {
                self.answer = AnswerSize {
                    response_bytes: reply.response.len(),
                    event_bytes: reply.events.iter().map(counted_bytes).sum(),
                };
                self.check_size(about)?;
                let event = |event: WireEvent| Event {
                    topic: Bytes::from(event.topic),
                    payload: Bytes::from(event.payload),
                };
                Ok(Outcome::Reply(Reply {
                    response: Bytes::from(reply.response),
                    events: reply.events.into_iter().map(event).collect(),
                    wake_at_ms: reply.wake_at_ms,
                }))
            }
            Err(wire) => Ok(Outcome::Failure(failure(wire))),
        }
    }

    /// Answers a query.
    pub(super) fn query(
        &mut self,
        context: EntryContext,
        call: &Call,
    ) -> Result<Result<Bytes, Failure>, Broken> {
        self.store.data_mut().wasi.begin(context);
        let (context, wire) = arguments(context, call);
        let about = (&*call.method, self.limits.cluster.fuel_per_query);
        match self.ask(about, |guest, store| guest.call_query(store, context, wire))? {
            Ok(response) => {
                self.answer.response_bytes = response.len();
                Ok(self.check_answer(about.0).map(|()| Bytes::from(response)))
            }
            Err(wire) => Ok(Err(failure(wire))),
        }
    }

    /// Begins a subscription.
    pub(super) fn subscribe(
        &mut self,
        context: EntryContext,
        call: &Call,
    ) -> Result<Result<Subscription, Failure>, Broken> {
        self.store.data_mut().wasi.begin(context);
        let (context, wire) = arguments(context, call);
        let about = (&*call.method, self.limits.cluster.fuel_per_query);
        match self.ask(about, |guest, store| guest.call_subscribe(store, context, wire))? {
            Ok(wire) => {
                let bytes = wire.initial.iter().map(Vec::len).sum::<usize>();
                self.answer.response_bytes = bytes + wire.from_topic.len() + wire.to_topic.len();
                Ok(self.check_answer(about.0).map(|()| Subscription {
                    from_topic: wire.from_topic,
                    to_topic: wire.to_topic,
                    initial: wire.initial.into_iter().map(Bytes::from).collect(),
                }))
            }
            Err(wire) => Ok(Err(failure(wire))),
        }
    }

    /// Returns the description that the state machine gives of itself.
    pub(super) fn describe(
        &mut self,
    ) -> Result<super::bindings::conclave::fsm::types::Description, Broken> {
        let about = ("describe", self.limits.cluster.fuel_per_state_call);
        self.call(about, |guest, store| guest.call_describe(store))
    }

    /// Returns the fuel that the last call used.
    pub(super) fn fuel_used(&self) -> u64 {
        self.fuel_used
    }

    /// Returns the fuel that all calls used.
    pub(super) fn fuel_used_in_all(&self) -> u64 {
        self.fuel_used_in_all
    }

    /// Returns the size of the last answer.
    pub(super) fn answer_size(&self) -> AnswerSize {
        self.answer
    }

    /// Returns the trap report of an instance that trapped.
    pub(super) fn trap_report(&mut self) -> TrapReport {
        TrapReport { last_error: self.take_error(), backtrace: std::mem::take(&mut self.backtrace) }
    }

    /// Returns the linear memory that the instance holds, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.store.data().limiter.memory_bytes()
    }

    /// Returns the memory that the types of its memories allow at most, in bytes.
    pub(super) fn memory_bytes_declared(&self) -> usize {
        self.store.data().limiter.memory_bytes_declared()
    }

    /// Sets whether the state machine's log lines are suppressed.
    pub(super) fn mute(&mut self, muted: bool) {
        self.store.data_mut().log.mute(muted);
    }

    /// Keeps the last error line that the state machine logs.
    pub(super) fn keep_errors(&mut self) {
        self.store.data_mut().log.keep_errors();
    }

    /// Takes the last error line that was kept.
    pub(super) fn take_error(&mut self) -> Option<String> {
        self.store.data_mut().log.take_error()
    }

    /// Changes the role of the instance, when a standby becomes the primary.
    pub(super) fn set_role(&mut self, role: &'static str) {
        let log = &mut self.store.data_mut().log;
        log.set_role(role);
        log.mute(false);
    }

    /// Runs every call: refills the fuel before, and classifies the result after.
    fn call<R>(
        &mut self,
        (method, fuel): (&str, u64),
        body: impl FnOnce(&Guest, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<R, Broken> {
        self.store.data_mut().limiter.begin_call();
        self.answer = AnswerSize::default();
        let result = self
            .store
            .set_fuel(fuel)
            .and_then(|()| body(self.machine.conclave_fsm_fsm(), &mut self.store));
        self.fuel_used = fuel.saturating_sub(self.store.get_fuel().unwrap_or(0));
        self.fuel_used_in_all = self.fuel_used_in_all.saturating_add(self.fuel_used);
        self.store.data_mut().end_call();
        result.map_err(|error| {
            tracing::debug!(method, ?error, "a call of the state machine failed");
            self.backtrace = error.downcast_ref().map(frames).unwrap_or_default();
            let about = About { method, fuel, limits: &self.limits };
            classify(&error, self.store.data().limiter.denied(), &about)
        })
    }

    /// Runs a query or a subscription, as [`Self::call`] does. The transfer limit is higher than
    /// the limit of the answer. An answer that is found to be too large only after the call has
    /// returned leaves the instance intact.
    fn ask<R>(
        &mut self,
        about: (&str, u64),
        body: impl FnOnce(&Guest, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<R, Broken> {
        self.store.set_hostcall_fuel(self.limits.query_transfer_bytes_max());
        let answer = self.call(about, body);
        self.store.set_hostcall_fuel(self.limits.transfer_bytes_max());
        answer
    }

    fn set_memory_bytes_max(&mut self, bytes: usize) {
        self.limits.cluster.memory_bytes_max = bytes;
        self.store.data_mut().limiter.set_memory_bytes_max(bytes);
    }

    /// Fails a query whose answer is larger than the limit. The query changed nothing, so the
    /// instance is kept.
    fn check_answer(&self, method: &str) -> Result<(), Failure> {
        let AnswerSize { response_bytes, .. } = self.answer;
        let ClusterLimits { response_bytes_max, .. } = self.limits.cluster;
        if response_bytes <= response_bytes_max {
            return Ok(());
        }
        let message = format!(
            "{}: the response has {response_bytes} bytes; at most {response_bytes_max} are allowed \
             (response_bytes_max): request less at once",
            super::cut(method, METHOD_BYTES_MAX)
        );
        Err(Failure { code: Code::ResourceExhausted, message })
    }

    /// Rejects an answer that is larger than the limits. Response and events have one limit each.
    fn check_size(&self, (method, fuel): (&str, u64)) -> Result<(), Broken> {
        let AnswerSize { response_bytes, event_bytes } = self.answer;
        let ClusterLimits { response_bytes_max, event_bytes_max, .. } = self.limits.cluster;
        let detail = if response_bytes > response_bytes_max {
            format!(
                "the response has {response_bytes} bytes; at most {response_bytes_max} are allowed"
            )
        } else if event_bytes > event_bytes_max {
            format!("the events count {event_bytes} bytes; at most {event_bytes_max} are allowed")
        } else {
            return Ok(());
        };
        let about = About { method, fuel, limits: &self.limits };
        Err(Broken::Trap(about.trap(TrapKind::BadAnswer, &detail)))
    }
}

/// The size of an answer, as counted towards its two limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerSize {
    /// The size of the response, or of the initial messages of a subscription.
    pub response_bytes: usize,
    /// The size of topics and payloads, plus a constant per event.
    pub event_bytes: usize,
}

/// Returns the size of an event, as counted towards the limit. The constant covers what wasmtime
/// counts for the event's vectors, so an answer within its limits can always be transferred.
fn counted_bytes(event: &WireEvent) -> usize {
    const { assert!(size_of::<WireEvent>() <= EVENT_OVERHEAD_BYTES) };
    event.topic.len() + event.payload.len() + EVENT_OVERHEAD_BYTES
}

/// Returns the frames as wasmtime formats them, which also demangles names, without the heading.
fn frames(backtrace: &WasmBacktrace) -> Vec<String> {
    backtrace.to_string().lines().skip(1).map(|line| line.trim_end().to_owned()).collect()
}

fn arguments(context: EntryContext, call: &Call) -> (WireContext<'_>, WireCall<'_>) {
    let wire = WireCall { method: &call.method, request: &call.request };
    (wire_context(context, &call.principal), wire)
}

fn wire_context(context: EntryContext, principal: &str) -> WireContext<'_> {
    let EntryContext { index, time_ms, seed } = context;
    WireContext { index, time_ms, seed, principal }
}

fn failure(wire: WireFailure) -> Failure {
    let code = match wire.code {
        WireCode::InvalidArgument => Code::InvalidArgument,
        WireCode::NotFound => Code::NotFound,
        WireCode::AlreadyExists => Code::AlreadyExists,
        WireCode::PermissionDenied => Code::PermissionDenied,
        WireCode::FailedPrecondition => Code::FailedPrecondition,
        WireCode::Aborted => Code::Aborted,
        WireCode::OutOfRange => Code::OutOfRange,
        WireCode::Unimplemented => Code::Unimplemented,
        WireCode::ResourceExhausted => Code::ResourceExhausted,
        WireCode::Internal => Code::Internal,
    };
    let mut message = wire.message;
    message.truncate(super::cut(&message, FAILURE_BYTES_MAX).len());
    Failure { code, message }
}
