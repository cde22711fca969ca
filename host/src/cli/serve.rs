//! `conclave serve`: one node.

use std::{future::Future, io, process::ExitCode};

use tokio::{
    io::AsyncReadExt,
    runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{
    config::{Config, Settings},
    error::Error,
    node, telemetry,
};

/// Run one node of a cluster.
#[derive(clap::Args)]
#[command(long_about = "\
Run one node of a cluster.

Every setting can be given as a flag, as an environment variable or in a TOML file (--config), in this
order of precedence. The nodes that found a cluster are given the same list of members; once they have
met, the cluster remembers its members by itself.

Examples:
  A cluster of one:
    conclave key generate master.key
    conclave serve --node-id 1 --data-dir data --master-key-file master.key \\
        --member 1=127.0.0.1:7201,127.0.0.1:7101

  The first of three:
    conclave serve --node-id 1 --data-dir data --master-key-file master.key \\
        --listen-client 0.0.0.0:7101 --listen-peer 0.0.0.0:7201 \\
        --member 1=10.0.0.1:7201,10.0.0.1:7101 \\
        --member 2=10.0.0.2:7201,10.0.0.2:7101 \\
        --member 3=10.0.0.3:7201,10.0.0.3:7101")]
pub struct Serve {
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    /// Runs the node until it is told to stop.
    pub fn run(self) -> Result<ExitCode, Error> {
        let config = Config::load(self.settings)
            .map_err(|error| Error::invalid(error.to_string()).with_source(error))?;
        telemetry::start(config.log_format);
        let runtime = runtime::Builder::new_multi_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Error::fault(format!("cannot start threads: {error}")))?;
        let exit_on_stdin_close = config.exit_on_stdin_close;
        let result = runtime.block_on(async {
            let stop = stop_requested(exit_on_stdin_close)
                .map_err(|error| Error::fault(format!("cannot listen for signals: {error}")))?;
            node::run(config, stop).await
        });
        // A query that never ends must not keep the process.
        runtime.shutdown_background();
        result.map(|()| ExitCode::SUCCESS)
    }
}

/// Done at SIGTERM, at Ctrl-C and, if asked for, when standard input closes.
fn stop_requested(exit_on_stdin_close: bool) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let stdin_closed = async {
            if !exit_on_stdin_close {
                return std::future::pending().await;
            }
            let mut stdin = tokio::io::stdin();
            let mut ignored = [0; 64];
            while stdin.read(&mut ignored).await.is_ok_and(|bytes| bytes > 0) {}
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stdin_closed => {}
        }
    })
}
