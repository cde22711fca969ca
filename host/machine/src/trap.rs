//! The table that classifies wasmtime's errors: as an outcome, the same on every replica, or as a
//! fatal error of this node.
//!
//! An error is an outcome only if it is known to be a function of the state and the entry. wasmtime's
//! `Trap` may get new variants; a variant that is not in the table is a fatal error. Errors of
//! lifting and lowering have no types in wasmtime 48, so they are recognized by their text. The text
//! is fixed by the version, which is part of the engine's fingerprint. `tests/machine` provokes these
//! errors, and `trap_tests.rs` compares the table with wasmtime's source.
//!
//! The details of a trap that are no outcome are in its [`TrapReport`].

use wasmtime::Trap as Wasm;

use super::{
    error::{Broken, Ended, FatalError},
    limits::Limits,
};
use conclave_types::{Trap, TrapKind, limits::ClusterLimits};

/// The trap report: diagnostics of an instance that trapped, for people who look for the cause. No outcome
/// contains any of it, because it names addresses, and the state machine's error line may be secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrapReport {
    /// The guest's call stack, innermost frame first: one line per function, followed by one for
    /// its position in the source, as far as the component has names and debugging information.
    /// Empty for a trap outside of the guest.
    pub backtrace: Vec<String>,
    /// The last error line that the state machine logged in this call. For a state machine in Rust
    /// it is the panic message.
    pub last_error: Option<String>,
}

/// An error of a function that the host provides to the guest, known to be the same on every replica.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) kind: TrapKind,
    /// The state machine's mistake, which ends the trap's message.
    pub(super) message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// The context of a call, for its error message.
pub(super) struct About<'a> {
    /// The method of the state machine, or the function of the contract.
    pub(super) method: &'a str,
    /// The fuel of the call.
    pub(super) fuel: u64,
    /// The limits of the call.
    pub(super) limits: &'a Limits,
}

/// The maximum length in bytes of a method's name in a message. The caller chooses the name, so
/// it may be long.
pub(super) const METHOD_BYTES_MAX: usize = 256;

impl About<'_> {
    /// Creates a trap. Its message names the method, the class and the limit, and contains nothing
    /// that could differ between replicas.
    pub(super) fn trap(&self, kind: TrapKind, detail: &str) -> Trap {
        let method = super::cut(self.method, METHOD_BYTES_MAX);
        let what = match kind {
            TrapKind::Panic if detail.is_empty() => "the state machine panicked".to_owned(),
            TrapKind::Panic => detail.to_owned(),
            TrapKind::Invalid => format!("the state machine is faulty: {detail}"),
            TrapKind::FuelExhausted => format!("the call used up its fuel of {}", self.fuel),
            TrapKind::MemoryExhausted => {
                format!(
                    "the state machine reached its memory limit of {} bytes",
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

    /// Creates the trap of an answer that is too large for its parts to be counted.
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

/// Classifies an error. `denied` means that the limiter denied memory or table space during the call.
pub(super) fn classify(error: &wasmtime::Error, denied: bool, about: &About<'_>) -> Broken {
    if let Some(fatal_error) = error.downcast_ref::<FatalError>() {
        return Broken::Ended(Ended::Fatal(fatal_error.clone()));
    }
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return Broken::Trap(about.trap(refusal.kind, &refusal.message));
    }
    if let Some(trap) = error.downcast_ref::<Wasm>() {
        return match kind_of(*trap, denied) {
            Some(kind) => Broken::Trap(about.trap(kind, detail(*trap))),
            None if *trap == Wasm::Interrupt => Broken::Ended(Ended::Stopped),
            None => unknown(error, about),
        };
    }
    let root = error.root_cause();
    let words = root.to_string();
    let is_untyped = NOT_UNICODE.contains(&words.as_str());
    if is_untyped || root.is::<std::str::Utf8Error>() || root.is::<std::char::DecodeUtf16Error>() {
        return Broken::Trap(
            about.trap(TrapKind::BadAnswer, "the state machine passed text that is not Unicode"),
        );
    }
    if words.contains("fuel allocated for hostcalls has been exhausted") {
        return Broken::Trap(about.too_large());
    }
    // Occurs only while a component is instantiated, and depends only on its parts.
    if words.starts_with("resource limit exceeded: ") {
        return Broken::Trap(about.trap(TrapKind::Invalid, &Limits::too_many_parts()));
    }
    if BAD_ANSWERS.iter().any(|known| words.starts_with(known)) {
        // Leaves out wasmtime's text, because it may contain handle numbers, which differ
        // between instances.
        return Broken::Trap(about.trap(
            TrapKind::BadAnswer,
            "the state machine passed a value that violates the component ABI",
        ));
    }
    unknown(error, about)
}

fn unknown(error: &wasmtime::Error, about: &About<'_>) -> Broken {
    Broken::Ended(Ended::Fatal(FatalError::new(format!(
        "the state machine failed in {} with an error that may differ between nodes: {error:#}",
        super::cut(about.method, METHOD_BYTES_MAX)
    ))))
}

/// Returns the class of a wasmtime trap. `None` means that it is not an outcome.
fn kind_of(trap: Wasm, denied: bool) -> Option<TrapKind> {
    Some(match trap {
        // A guest that is denied memory aborts, and so does one that panics.
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
        // Data that one component inside the state machine passed to another, or to the host.
        Wasm::StringOutOfBounds
        | Wasm::ListOutOfBounds
        | Wasm::InvalidDiscriminant
        | Wasm::InvalidChar
        | Wasm::UnalignedPointer => TrapKind::BadAnswer,
        _ => return None,
    })
}

/// Returns the description of a trap, independent of wasmtime's text.
fn detail(trap: Wasm) -> &'static str {
    match trap {
        Wasm::MemoryOutOfBounds => "memory access out of bounds",
        Wasm::TableOutOfBounds => "table access out of bounds",
        Wasm::IndirectCallToNull => "call of a null function",
        Wasm::BadSignature => "indirect call of another type",
        Wasm::IntegerOverflow => "integer overflow",
        Wasm::IntegerDivisionByZero => "integer division by zero",
        Wasm::BadConversionToInteger => "conversion of a float that is not an integer",
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

/// The beginnings of wasmtime 48's errors about data from the guest that violates the ABI.
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
