//! The one error of this crate.

use std::{fmt, time::Duration};

use tonic::Code;

/// Why a call failed. Predicates say what a program needs; the message is for people and lists what
/// was tried.
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    message: String,
    outcome_unknown: bool,
    /// No node has answered.
    silence: bool,
    trap: Option<String>,
    tried: Tried,
}

impl Error {
    /// The request cannot be sent: it is the caller's mistake.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            outcome_unknown: false,
            silence: false,
            trap: None,
            tried: Tried::default(),
        }))
    }

    pub(crate) fn with_unknown_outcome(mut self, unknown: bool) -> Self {
        self.0.outcome_unknown = unknown;
        self
    }

    pub(crate) fn with_silence(mut self, silence: bool) -> Self {
        self.0.silence = silence;
        self
    }

    pub(crate) fn with_trap(mut self, trap: Option<String>) -> Self {
        self.0.trap = trap;
        self
    }

    pub(crate) fn with_tried(mut self, tried: Tried) -> Self {
        self.0.tried = tried;
        self
    }

    /// The gRPC code: the node's or the machine's own if one answered.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The code as gRPC writes it: `NOT_FOUND`.
    pub fn code_name(&self) -> &'static str {
        code_name(self.0.code)
    }

    /// The answering node's message, or what happened, without the list of what was tried.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// No node could serve the call until the deadline.
    pub fn is_unavailable(&self) -> bool {
        self.0.code == Code::Unavailable
    }

    /// The deadline passed before an answer came.
    pub fn is_deadline(&self) -> bool {
        self.0.code == Code::DeadlineExceeded
    }

    /// The machine or the node says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.0.code == Code::NotFound
    }

    /// The kind of the trap, if the state machine trapped: `panic`, `fuel-exhausted`. The call was rolled back, and the
    /// same call is likely to trap again.
    pub fn trap_kind(&self) -> Option<&str> {
        self.0.trap.as_deref()
    }

    /// No node answered until the deadline.
    pub fn is_unreachable(&self) -> bool {
        self.0.silence
    }

    /// The call certainly had no effect: no node could serve it in time, or the state machine trapped over it. False for
    /// answers, of which a state machine's failure is one.
    pub fn not_applied(&self) -> bool {
        !self.outcome_unknown()
            && (self.is_unavailable() || self.is_deadline() || self.0.trap.is_some())
    }

    /// The write may have been applied, or may still be. Always false for reads.
    pub fn outcome_unknown(&self) -> bool {
        self.0.outcome_unknown
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if !self.0.tried.failures.is_empty() {
            write!(f, "; tried {}", self.0.tried)?;
        }
        if self.0.outcome_unknown {
            f.write_str(
                "; whether the write was applied is unknown: read it back before you send it again",
            )?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({}: {self})", self.code_name())
    }
}

impl std::error::Error for Error {}

/// Each address with its last failure, in the order of the first attempts.
#[derive(Default)]
pub(crate) struct Tried {
    failures: Vec<(String, String, u32)>,
}

impl Tried {
    pub(crate) fn add(&mut self, address: &str, failure: &str) {
        match self.failures.iter_mut().find(|(known, _, _)| known == address) {
            Some((_, last, times)) => {
                failure.clone_into(last);
                *times += 1;
            }
            None => self.failures.push((address.to_owned(), failure.to_owned(), 1)),
        }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (address, failure, times)) in self.failures.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{address} ({failure}")?;
            if *times > 1 {
                write!(f, ", {times} times")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// `10 s`, `1.5 s` or `250 ms`: as people write it.
pub(crate) fn plain(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds < 1000 {
        format!("{milliseconds} ms")
    } else {
        format!("{} s", milliseconds as f64 / 1000.0)
    }
}

/// The code as gRPC writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
