//! The one table from wasmtime's errors to what they mean: an outcome, the same on every replica, or
//! a fault of this node.
//!
//! An error is an outcome only if it is known to be a function of the state and the entry. `Trap` may
//! grow variants; one that is not in the table is a fault. Errors that lifting and lowering give have
//! no type of their own in wasmtime 48, so they are known by their words, which the version that is
//! pinned in the engine's fingerprint fixes; `tests/machine` provokes them, and `trap_tests.rs` compares the table
//! with wasmtime's source.

use wasmtime::Trap as Wasm;

use super::{error::FatalError, limits::Limits};
use conclave_types::{Trap, TrapKind, limits::ClusterLimits};

/// How a call ended that gave no answer. The instance is unusable afterwards.
#[derive(Debug)]
pub(super) enum Broken {
    /// An outcome.
    Trap(Trap),
    /// This node's own.
    Fatal(FatalError),
    /// The worker shuts down.
    Interrupted,
}

/// An error of a function that the host gives the guest, known to be the same on every replica.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) kind: TrapKind,
    /// What the machine did. Ends the trap's message.
    pub(super) message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// What a call was about, for its message and its limits.
pub(super) struct About<'a> {
    /// The machine's method, or the function of the contract.
    pub(super) method: &'a str,
    /// The fuel it had.
    pub(super) fuel: u64,
    /// The limits it ran under.
    pub(super) limits: &'a Limits,
}

/// A method's name is the caller's; what goes into a message is bounded.
pub(super) const METHOD_BYTES_MAX: usize = 256;

impl About<'_> {
    /// A trap whose message names the method, the class and the limit, and nothing that could differ
    /// between replicas.
    pub(super) fn trap(&self, kind: TrapKind, detail: &str) -> Trap {
        let method = super::cut(self.method, METHOD_BYTES_MAX);
        let what = match kind {
            TrapKind::Panic if detail.is_empty() => "the machine panicked".to_owned(),
            TrapKind::Panic => detail.to_owned(),
            TrapKind::Invalid => format!("the machine is faulty: {detail}"),
            TrapKind::FuelExhausted => format!("the call used up its fuel of {}", self.fuel),
            TrapKind::MemoryExhausted => {
                format!(
                    "the machine reached its memory limit of {} bytes",
                    self.limits.cluster.memory_bytes_max
                )
            }
            TrapKind::StackExhausted => {
                format!("the call reached the stack limit of {} bytes", self.limits.stack_bytes)
            }
            TrapKind::BadAnswer => detail.to_owned(),
        };
        Trap { kind, message: format!("{method}: {what}") }
    }

    /// The trap of an answer that is larger than allowed before its parts can be counted.
    fn too_large(&self) -> Trap {
        let ClusterLimits { response_bytes_max, event_bytes_max, .. } = self.limits.cluster;
        self.trap(
            TrapKind::BadAnswer,
            &format!(
                "the answer is larger than the limits of {response_bytes_max} bytes for a response and \
                 {event_bytes_max} bytes for events together"
            ),
        )
    }
}

/// Tells what an error means. `denied`: the limiter refused memory or table space during the call.
pub(super) fn classify(error: &wasmtime::Error, denied: bool, about: &About<'_>) -> Broken {
    if let Some(fatal_error) = error.downcast_ref::<FatalError>() {
        return Broken::Fatal(fatal_error.clone());
    }
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return Broken::Trap(about.trap(refusal.kind, &refusal.message));
    }
    if let Some(trap) = error.downcast_ref::<Wasm>() {
        return match kind_of(*trap, denied) {
            Some(kind) => Broken::Trap(about.trap(kind, detail(*trap))),
            None if *trap == Wasm::Interrupt => Broken::Interrupted,
            None => unknown(error, about),
        };
    }
    let root = error.root_cause();
    let words = root.to_string();
    let is_untyped = NOT_UNICODE.contains(&words.as_str());
    if is_untyped || root.is::<std::str::Utf8Error>() || root.is::<std::char::DecodeUtf16Error>() {
        return Broken::Trap(
            about.trap(TrapKind::BadAnswer, "the machine handed over text that is not Unicode"),
        );
    }
    if words.contains("fuel allocated for hostcalls has been exhausted") {
        return Broken::Trap(about.too_large());
    }
    // Only while a machine is instantiated, by what it consists of.
    if words.starts_with("resource limit exceeded: ") {
        return Broken::Trap(about.trap(TrapKind::Invalid, &Limits::too_many_parts()));
    }
    if BAD_ANSWERS.iter().any(|known| words.starts_with(known)) {
        // Without wasmtime's words: they may name handles, whose numbers differ between instances.
        return Broken::Trap(
            about
                .trap(TrapKind::BadAnswer, "what the machine handed over breaks the component ABI"),
        );
    }
    unknown(error, about)
}

fn unknown(error: &wasmtime::Error, about: &About<'_>) -> Broken {
    Broken::Fatal(FatalError::new(format!(
        "the machine failed in {} in a way that is not known to be the same on every node: {error:#}",
        super::cut(about.method, METHOD_BYTES_MAX)
    )))
}

/// The classes of wasmtime's traps. `None`: not an outcome.
fn kind_of(trap: Wasm, denied: bool) -> Option<TrapKind> {
    Some(match trap {
        // A guest that is denied memory aborts; so does one that panics.
        Wasm::UnreachableCodeReached if denied => TrapKind::MemoryExhausted,
        Wasm::UnreachableCodeReached => TrapKind::Panic,
        Wasm::OutOfFuel => TrapKind::FuelExhausted,
        Wasm::StackOverflow => TrapKind::StackExhausted,
        Wasm::AllocationTooLarge => TrapKind::MemoryExhausted,
        Wasm::MemoryOutOfBounds
        | Wasm::TableOutOfBounds
        | Wasm::IndirectCallToNull
        | Wasm::BadSignature
        | Wasm::IntegerOverflow
        | Wasm::IntegerDivisionByZero
        | Wasm::BadConversionToInteger
        | Wasm::NullReference
        | Wasm::ArrayOutOfBounds
        | Wasm::CastFailure
        | Wasm::CannotLeaveComponent
        | Wasm::CannotEnterComponent => TrapKind::Invalid,
        // What one component inside the machine handed to another, or to the host.
        Wasm::StringOutOfBounds
        | Wasm::ListOutOfBounds
        | Wasm::InvalidDiscriminant
        | Wasm::InvalidChar
        | Wasm::UnalignedPointer => TrapKind::BadAnswer,
        _ => return None,
    })
}

/// The trap in words that do not change with wasmtime's.
fn detail(trap: Wasm) -> &'static str {
    match trap {
        Wasm::MemoryOutOfBounds => "memory access out of bounds",
        Wasm::TableOutOfBounds => "table access out of bounds",
        Wasm::IndirectCallToNull => "call of a null function",
        Wasm::BadSignature => "indirect call of another type",
        Wasm::IntegerOverflow => "integer overflow",
        Wasm::IntegerDivisionByZero => "integer division by zero",
        Wasm::BadConversionToInteger => "conversion of a float that is no integer",
        Wasm::NullReference => "null reference",
        Wasm::ArrayOutOfBounds => "array access out of bounds",
        Wasm::CastFailure => "failed cast",
        Wasm::CannotLeaveComponent => "call of an import where none is allowed",
        Wasm::CannotEnterComponent => "call of a component that may not be entered",
        Wasm::StringOutOfBounds => "a string lies outside of memory",
        Wasm::ListOutOfBounds => "a list lies outside of memory",
        Wasm::InvalidDiscriminant => "a variant has no such case",
        Wasm::InvalidChar => "a char is not Unicode",
        Wasm::UnalignedPointer => "a pointer is not aligned",
        _ => "",
    }
}

/// The errors of wasmtime 48 about text that one component inside the state machine passes to another.
const NOT_UNICODE: [&str; 2] = ["invalid utf16 encoding", "invalid utf8 encoding"];

/// How wasmtime 48 begins to say that what the guest handed over breaks the ABI.
const BAD_ANSWERS: [&str; 22] = [
    "borrow handles still remain",
    "byte length too large",
    "cannot allocate another handle",
    "cannot lend resource",
    "cannot lift own resource from a borrow",
    "cannot remove owned resource while borrowed",
    "handle index ",
    "index ",
    "invalid expected discriminant",
    "invalid option discriminant",
    "list pointer is not aligned",
    "list pointer/length out of bounds of memory",
    "pointer not aligned",
    "pointer out of bounds",
    "pointer size overflow",
    "realloc return: beyond end of memory",
    "realloc return: result not aligned",
    "return pointer not aligned",
    "string pointer not aligned",
    "string pointer/length out of bounds of memory",
    "unexpected discriminant",
    "unknown handle index",
];

#[cfg(test)]
#[path = "trap_tests.rs"]
mod tests;
