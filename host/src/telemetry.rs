//! The node's log, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// The environment variable that chooses what is logged, for example `debug` or `conclave=debug`.
const FILTER_VARIABLE: &str = "CONCLAVE_LOG";
/// openraft reports each step of a working cluster at `info`, and each failed heartbeat at `warn`.
const FILTER_DEFAULT: &str = "info,openraft=error,sled=warn,h2=warn,hyper=warn,tonic=warn";

/// Starts logging. A second start, as in a test, changes nothing.
pub fn start(format: LogFormat) {
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(FILTER_DEFAULT));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    drop(started);
}
