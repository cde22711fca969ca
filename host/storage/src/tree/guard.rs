//! Guard around the calls of sled: panics and errors of sled become errors of I/O that keep their causes.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use conclave_types::panic_message;

/// A failure of sled, other than an error of the operating system that sled returns as it is.
#[derive(Debug, thiserror::Error)]
enum SledFailure {
    /// sled returned an error of its own.
    #[error("sled failed")]
    Returned(#[source] sled::Error),
    /// sled returned an error of the operating system as text.
    #[error("sled failed: {text}")]
    AsText { text: String, source: Option<io::Error> },
    /// sled panicked, perhaps because of an error of the operating system.
    #[error("sled panicked: {text}")]
    Panicked { text: String, source: Option<io::Error> },
}

/// Calls sled, and converts a panic into an error.
pub(super) fn guard<T>(call: impl FnOnce() -> sled::Result<T>) -> io::Result<T> {
    let failure = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(sled::Error::Io(error))) if error.raw_os_error().is_some() => return Err(error),
        Ok(Err(sled::Error::Io(error))) => {
            let text = error.to_string();
            let Some(source) = quoted_os_error(&text) else { return Err(error) };
            SledFailure::AsText { text, source: Some(source) }
        }
        Ok(Err(error)) => SledFailure::Returned(error),
        Err(panic) => {
            let text = panic_message(&*panic).to_owned();
            SledFailure::Panicked { source: quoted_os_error(&text), text }
        }
    };
    let kind = match &failure {
        SledFailure::Returned(sled::Error::ReportableBug(_)) => io::ErrorKind::Other,
        SledFailure::Returned(sled::Error::Unsupported(_)) => io::ErrorKind::InvalidInput,
        SledFailure::AsText { source: Some(source), .. }
        | SledFailure::Panicked { source: Some(source), .. } => source.kind(),
        _ => io::ErrorKind::InvalidData,
    };
    Err(io::Error::new(kind, failure))
}

/// Returns the error of the operating system that a text of sled quotes in its debug format. sled
/// copies such errors as text, and panics with them, so nothing but the text has the code. No
/// other code reads an error's text.
fn quoted_os_error(text: &str) -> Option<io::Error> {
    let (_, rest) = text.split_once("Os { code: ")?;
    let (code, _) = rest.split_once(',')?;
    code.parse().ok().map(io::Error::from_raw_os_error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Error;

    /// The errors of the operating system in the forms that sled returns, and real damage.
    #[test]
    fn full_disk_is_recognized_in_every_form_that_sled_returns() {
        let full = || io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let failed = |error: sled::Error| guard::<()>(|| Err(error)).unwrap_err();
        let panicked = guard::<()>(|| panic!("called unwrap on {:?}", full())).unwrap_err();
        let path = Path::new("/data/log");
        for error in [
            failed(sled::Error::Io(full())),
            // A clone has the error as text.
            failed(sled::Error::Io(full()).clone()),
            panicked,
        ] {
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            let error = Error::unreadable("the log", path, error);
            assert!(matches!(error, Error::Io { .. }), "{error}");
            assert!(error.to_string().contains("Make room"), "{error}");
        }
        let corruption = failed(sled::Error::Corruption { at: None, bt: () });
        let cause = corruption.get_ref().and_then(|failure| failure.source());
        assert!(cause.is_some_and(|cause| cause.is::<sled::Error>()));
        let bug = guard::<()>(|| panic!("index out of bounds")).unwrap_err();
        for error in [corruption, bug] {
            let error = Error::unreadable("the log", path, error);
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
        }
    }
}
