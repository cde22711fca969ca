//! The process's environment: read once, before the first thread starts.
//!
//! [`take`] is for the first lines of the binary. A program that embeds a node leaves its
//! environment unchanged and passes its settings to [`super::Config::from_settings`].

use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use zeroize::Zeroizing;

use super::{ConfigError, error::renamed};

/// The environment variable that may hold the master key itself.
pub(super) const MASTER_KEY_VARIABLE: &str = "CONCLAVE_MASTER_KEY";
/// The environment variable with the path of a TOML file of defaults. All other settings override
/// them. A container image sets its directories and addresses there.
const DEFAULTS_VARIABLE: &str = "CONCLAVE_DEFAULTS";
/// The prefix of this program's variables.
const PREFIX: &str = "CONCLAVE_";

static MASTER_KEY: Mutex<Option<Zeroizing<String>>> = Mutex::new(None);

/// Takes the master key out of the environment, so that no child process inherits it. Also removes
/// empty variables of this program: where variables can be emptied but not removed, empty means unset.
///
/// # Safety
/// No other thread may run yet: `setenv` and `getenv` of the C library are not synchronized.
#[allow(unsafe_code, reason = "changes the environment, which is sound before other threads start")]
pub unsafe fn take() {
    if let Some(value) = env::var_os(MASTER_KEY_VARIABLE) {
        // A value that is not text is not a key, and is rejected as too short.
        let value = Zeroizing::new(value.into_string().unwrap_or_default());
        // SAFETY: the caller's contract.
        unsafe { env::remove_var(MASTER_KEY_VARIABLE) };
        if !value.is_empty() {
            *MASTER_KEY.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        }
    }
    let is_empty = |(name, value): &(OsString, OsString)| {
        value.is_empty() && name.to_string_lossy().starts_with(PREFIX)
    };
    for (name, _) in env::vars_os().filter(is_empty) {
        // SAFETY: the caller's contract.
        unsafe { env::remove_var(name) };
    }
}

/// Returns the names of the variables that this program would read, except [`super::LOG_VARIABLE`].
pub fn variables() -> impl Iterator<Item = OsString> {
    let names = env::vars_os().map(|(name, _)| name);
    names.filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with(PREFIX) && name != crate::config::LOG_VARIABLE
    })
}

/// Rejects variables with former names of settings, which would be ignored otherwise.
pub(super) fn check_names() -> Result<(), ConfigError> {
    let renamed = env::vars_os().find_map(|(name, _)| renamed(name.to_str()?));
    renamed.map_or(Ok(()), |advice| Err(ConfigError::Renamed(advice)))
}

/// Returns the master key as text, if it was in the environment.
pub(super) fn master_key() -> Option<Zeroizing<String>> {
    MASTER_KEY.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Returns the path of the file of defaults, if the environment names one.
pub(super) fn defaults_file() -> Option<PathBuf> {
    env::var_os(DEFAULTS_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}
