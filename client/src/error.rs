//! The error type of this crate.

use std::{error::Error as StdError, fmt, time::Duration};

use tonic::Code;

use super::grpc_codes;

/// The error of a failed call. Programs use the predicates; the message is for humans and
/// lists the attempts.
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    message: String,
    outcome_unknown: bool,
    /// True if no node has responded.
    silence: bool,
    trap: Option<String>,
    tried: Tried,
    source: Option<Source>,
}

type Source = Box<dyn StdError + Send + Sync>;

impl Error {
    /// Returns the error for a request that cannot be sent because of a mistake of the caller.
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
            source: None,
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

    pub(crate) fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Returns the gRPC code: that of the node or the state machine if one responded.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Returns the gRPC name of the code, for example `NOT_FOUND`.
    pub fn code_name(&self) -> &'static str {
        code_name(self.0.code)
    }

    /// Returns the message of the responding node, or the failure, without the list of attempts.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Returns whether no node could serve the call until the deadline.
    pub fn is_unavailable(&self) -> bool {
        self.0.code == Code::Unavailable
    }

    /// Returns whether the deadline passed before a response arrived.
    pub fn is_deadline(&self) -> bool {
        self.0.code == Code::DeadlineExceeded
    }

    /// Returns whether the state machine or the node responded with NOT_FOUND.
    pub fn is_not_found(&self) -> bool {
        self.0.code == Code::NotFound
    }

    /// Returns the kind of the trap, if the state machine trapped: for example `panic` or
    /// `fuel-exhausted`. The call was rolled back. The same call is likely to trap again.
    pub fn trap_kind(&self) -> Option<&str> {
        self.0.trap.as_deref()
    }

    /// Returns whether no node responded until the deadline.
    pub fn is_unreachable(&self) -> bool {
        self.0.silence
    }

    /// Returns whether the call certainly had no effect: no node could serve it in time, or the
    /// state machine trapped. Returns false for responses, including failures of the state machine.
    pub fn not_applied(&self) -> bool {
        !self.outcome_unknown()
            && (self.is_unavailable() || self.is_deadline() || self.0.trap.is_some())
    }

    /// Returns whether the write may have been applied, or may still be. Always false for reads.
    pub fn outcome_unknown(&self) -> bool {
        self.0.outcome_unknown
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        // Shown here, because more text follows.
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if !self.0.tried.failures.is_empty() {
            write!(f, "; tried {}", self.0.tried)?;
        }
        if self.0.outcome_unknown {
            f.write_str(
                "; it is unknown whether the write was applied: read it back before you send it again",
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

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// The addresses with their last failures, in the order of the first attempts.
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

/// Formats a duration as `10 s`, `1.5 s` or `250 ms`.
pub(crate) fn plain(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds < 1000 {
        format!("{milliseconds} ms")
    } else {
        format!("{} s", milliseconds as f64 / 1000.0)
    }
}

/// Returns the gRPC name of the code.
pub(crate) fn code_name(code: Code) -> &'static str {
    grpc_codes::NAMES[code as usize]
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn cause_is_kept_as_a_value_and_shown_before_what_to_do() {
        let Err(cause) = <()>::decode(&[0xff_u8][..]) else { unreachable!() };
        let text = cause.to_string();
        let error = Error::new(Code::Internal, "the response of a/B does not decode")
            .with_source(cause)
            .with_unknown_outcome(true);
        assert!(error.source().is_some_and(|cause| cause.is::<prost::DecodeError>()));
        let expected = format!("the response of a/B does not decode: {text}; it is unknown");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}
