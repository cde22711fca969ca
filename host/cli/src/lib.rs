//! Command line of Conclave, one file per verb.
//!
//! Contract: a verb takes its arguments and does its work through the client crate alone. Exceptions: `serve`
//! and `dev` run nodes as processes; `new`, `build`, `inspect`, `check`, `replay`, `recover` and `restore`
//! need no cluster. A verb passes its results to [`output`] and returns. It never prints and never exits by itself.
//!
//! Results go to stdout and everything else to stderr, so that scripts can read the former and people the
//! latter. Exit codes: 0 for success, 1 for a failure, 2 for wrong usage or configuration, 3 when `kv get`
//! finds no such key, 4 if it is unknown whether a write was applied, 5 if a call certainly had no effect and
//! can be sent again.
//!
//! Caveat: values given as arguments are visible in the process list. Values from `kv put KEY -` and `--file`
//! are not.

pub mod backup;
pub mod build;
pub mod call;
pub mod check;
pub mod cluster;
pub mod component;
pub mod dev;
#[doc(hidden)]
pub mod fuzz;
#[doc(hidden)]
pub mod fuzz_targets;
pub mod health;
pub mod inspect;
pub mod key;
pub mod kv;
pub mod new;
pub mod output;
pub mod recover;
pub mod remote;
pub mod replay;
pub mod restore;
pub mod serve;
mod signals;
pub mod status;
pub mod telemetry;
pub mod whole_file;

/// The component of the key-value store: the initial component of a new cluster unless another one
/// is given.
pub const DEFAULT_MACHINE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kv.wasm"));

use std::{env, error::Error as StdError, fmt, io, path::Path, process::ExitCode, thread};

use clap::{Parser, Subcommand};
use tokio::runtime;

use self::output::Output;
use conclave::config;
use conclave_types::error::chain;

/// The reason why a verb did not succeed.
#[derive(Debug)]
pub enum Failed {
    /// The verb failed.
    Failure {
        /// gRPC's name of the status code, for programs: `UNAVAILABLE`, `NOT_FOUND`, ...
        code: &'static str,
        /// One line for people that also says what to do next.
        message: String,
        /// The effect of a call, if it is in question whether there was one.
        outcome: Option<Outcome>,
    },
    /// The arguments do not make sense together.
    Usage(String),
    /// `kv get` found no such key.
    NotFound(String),
}

impl Failed {
    /// A failure inside this program, without a response from a node.
    pub fn local(message: impl Into<String>) -> Self {
        Self::Failure { code: "FAILED", message: message.into(), outcome: None }
    }

    /// A failure inside this program because of an error, with all its causes.
    pub fn of(error: &(dyn StdError + 'static)) -> Self {
        Self::local(chain(error))
    }

    /// A failure of `what` inside this program because of an error, with all its causes.
    pub fn because(what: impl fmt::Display, error: &(dyn StdError + 'static)) -> Self {
        Self::local(format!("{what}: {}", chain(error)))
    }

    /// Returns a closure for `map_err` that names the file or directory.
    pub fn at(path: &Path) -> impl Fn(io::Error) -> Self + Copy {
        move |error| Self::because(path.display(), &error)
    }

    /// A wrong use of the arguments because of an error, with all its causes.
    pub fn usage(error: &(dyn StdError + 'static)) -> Self {
        Self::Usage(chain(error))
    }

    /// Reports the failure and returns the process's exit code.
    fn report(&self) -> ExitCode {
        Output::new().failed(self);
        ExitCode::from(self.exit_code())
    }

    /// Returns the process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failure { outcome: Some(Outcome::Unknown), .. } => 4,
            // A trap has no effect either, but a retry would trap again: exit code 1.
            Self::Failure { code: "UNAVAILABLE" | "DEADLINE_EXCEEDED", outcome, .. }
                if outcome.is_some() =>
            {
                5
            }
            Self::Failure { .. } => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
        }
    }
}

/// The effect of a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The call had no effect and never will.
    NotApplied,
    /// The call had an effect, or may still have one.
    Unknown,
}

impl Outcome {
    /// Returns the value that nodes send in the metadata `conclave-outcome`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotApplied => "not-applied",
            Self::Unknown => "unknown",
        }
    }
}

/// The result of a verb.
pub type Result<T = ()> = std::result::Result<T, Failed>;

/// Replicate a state machine, written as a WebAssembly component, across a cluster of nodes
#[derive(Debug, Parser)]
#[command(
    name = "conclave",
    version,
    arg_required_else_help = true,
    after_long_help = "\
Try it:
  conclave dev                             run a cluster of three nodes on this computer
  conclave kv put greeting hello           in another terminal
  conclave kv get greeting
  conclave status
  conclave cluster verify                  check that all nodes have the same state
  conclave call --list                     list the methods of the cluster's state machine

Write a state machine:
  conclave new my-counter                  create a project that builds and passes its tests
  conclave build my-counter                compile it to a component
  conclave check my-counter/target/my-counter.wasm
  conclave dev --component my-counter/target/my-counter.wasm --watch
  conclave component push my-counter/target/my-counter.wasm    send it to a running cluster

Keep a copy elsewhere, and start a new cluster from it:
  conclave backup create cluster.backup    save the state of a running cluster
  conclave backup verify cluster.backup    restore it into an instance, offline
  conclave restore cluster.backup ...      make the data directories of a new cluster

Exit codes:
  0  success
  1  failure
  2  wrong usage or configuration
  3  no such key (kv get)
  4  unknown outcome: the write may have been applied; read the state before you send it again
  5  no effect: no node could serve the call in time; it can be sent again

With --json, errors are printed to standard error as {\"error\": {\"code\", \"message\", \"outcome\"}}. \"outcome\" is
not-applied or unknown, and absent if the call was answered."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Dev(dev::Arguments),
    Serve(Box<serve::Arguments>),
    Status(status::Arguments),
    Cluster(cluster::Arguments),
    Health(health::Arguments),
    Call(call::Arguments),
    Kv(kv::Arguments),
    Key(key::Arguments),
    Component(component::Arguments),
    New(new::Arguments),
    Build(build::Arguments),
    Inspect(inspect::Arguments),
    Check(check::Arguments),
    Replay(Box<replay::Arguments>),
    Recover(recover::Arguments),
    Backup(backup::Arguments),
    Restore(Box<restore::Arguments>),
}

/// Parses the arguments, runs the verb and returns the exit code.
pub fn main() -> ExitCode {
    // SAFETY: this is the first line of the program, which has one thread.
    #[allow(unsafe_code, reason = "before there are threads")]
    unsafe {
        config::take_environment();
    }
    let cli = Cli::parse();
    let mut runtime = runtime::Builder::new_multi_thread();
    // Half of the processors: a node's storage, primary and standby have threads of their own.
    // On few processors, more workers wake each other so often that each write and read takes a
    // fifth longer.
    if env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let processors = thread::available_parallelism().map_or(2, usize::from);
        runtime.worker_threads((processors / 2).max(1));
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failed::because("cannot start threads", &error).report(),
    };
    let code = runtime.block_on(cli.run());
    // Tasks that still run, such as a query without end, must not keep the process alive.
    runtime.shutdown_background();
    ExitCode::from(code)
}

impl Cli {
    /// Runs the verb and returns the process's exit code.
    async fn run(self) -> u8 {
        let mut output = Output::new();
        // A cluster or a node continues when the reader of its output is gone. A replay removes its
        // copy first. A backup that was not read to its end is a failure.
        let outlives =
            matches!(self.verb, Verb::Dev(_) | Verb::Serve(_) | Verb::Replay(_) | Verb::Backup(_));
        let watched = output.clone();
        let result = tokio::select! {
            biased;
            result = self.verb.run(&mut output) => result,
            () = watched.broken(), if !outlives => Ok(()),
        };
        match output.finish(result) {
            Ok(()) => 0,
            Err(failed) => {
                output.failed(&failed);
                failed.exit_code()
            }
        }
    }
}

impl Verb {
    async fn run(self, output: &mut Output) -> Result {
        match self {
            Self::Dev(arguments) => dev::run(arguments, output).await,
            Self::Serve(arguments) => serve::run(*arguments, output).await,
            Self::Status(arguments) => status::run(arguments, output).await,
            Self::Cluster(arguments) => cluster::run(arguments, output).await,
            Self::Health(arguments) => health::run(arguments, output).await,
            Self::Call(arguments) => call::run(arguments, output).await,
            Self::Kv(arguments) => kv::run(arguments, output).await,
            Self::Key(arguments) => key::run(arguments, output),
            Self::Component(arguments) => component::run(arguments, output).await,
            Self::New(arguments) => new::run(arguments, output),
            Self::Build(arguments) => build::run(arguments, output),
            Self::Inspect(arguments) => inspect::run(arguments, output),
            Self::Check(arguments) => check::run(arguments, output).await,
            Self::Replay(arguments) => replay::run(*arguments, output).await,
            Self::Recover(arguments) => recover::run(arguments, output).await,
            Self::Backup(arguments) => backup::run(arguments, output).await,
            Self::Restore(arguments) => restore::run(*arguments, output).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_teaches_by_example() {
        fn check(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
                let path = format!("{path} {}", verb.get_name());
                let help = verb
                    .get_after_long_help()
                    .map(ToString::to_string)
                    .unwrap_or_else(|| panic!("{path} has no examples"));
                assert!(
                    help.contains(&format!("{path} ")) || help.contains(&path),
                    "{path}: {help}"
                );
                check(verb, &path);
            }
        }
        check(&Cli::command(), "conclave");
    }

    #[test]
    fn nothing_at_all_is_wrong_usage_that_shows_the_help() {
        let error = Cli::try_parse_from(["conclave"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    }
}
