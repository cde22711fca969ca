//! The command line: one file a verb.
//!
//! Contract: a verb takes its arguments, does its work through the client crate alone (only `serve`
//! and `dev` know of nodes as processes, and `new`, `build`, `inspect`, `check` and `replay` of no cluster at all),
//! hands what it has to say to [`output`] and returns. It never prints and never exits by itself. Results go to
//! stdout, everything else to stderr, so that scripts can read the one and people the other. The exit code is 0
//! for success, 1 for a failure, 2 for wrong usage or configuration, 3 when `kv get` finds no such key, 4 if it is unknown
//! whether a write was applied and 5 if a call certainly had no effect and can be sent again.
//!
//! Caveats: values given as arguments are visible in the process list; `kv put KEY -` and `--file`
//! are not.

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
pub mod serve;
mod signals;
pub mod status;
pub mod telemetry;

/// The component of the key-value store, which a new cluster begins with unless another is given.
pub const DEFAULT_MACHINE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kv.wasm"));

use std::{env, process::ExitCode, thread};

use clap::{Parser, Subcommand};
use tokio::runtime;

use self::output::Output;
use conclave::config;

/// How a verb ends when it does not succeed.
#[derive(Debug)]
pub enum Failed {
    /// It did not work. One line for people that says what to do next, and gRPC's name of the code.
    Failure {
        /// For programs: `UNAVAILABLE`, `NOT_FOUND`, ...
        code: &'static str,
        /// For people.
        message: String,
        /// Whether a call had an effect, if that is in question.
        outcome: Option<Outcome>,
    },
    /// The arguments do not make sense together.
    Usage(String),
    /// `kv get` found no such key.
    NotFound(String),
}

impl Failed {
    /// A failure of this program's own, without an answer from a node.
    pub fn local(message: impl Into<String>) -> Self {
        Self::Failure { code: "FAILED", message: message.into(), outcome: None }
    }

    /// Says so, and gives the process's exit code.
    fn report(&self) -> ExitCode {
        Output::new().failed(self);
        ExitCode::from(self.exit_code())
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failure { outcome: Some(Outcome::Unknown), .. } => 4,
            // A trap has no effect either, and would come again.
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

/// Whether a call that failed had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It had none, and never will.
    NotApplied,
    /// It had one, or may still have.
    Unknown,
}

impl Outcome {
    /// As the nodes name it in `conclave-outcome`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotApplied => "not-applied",
            Self::Unknown => "unknown",
        }
    }
}

/// How verbs end.
pub type Result<T = ()> = std::result::Result<T, Failed>;

/// A host for replicated state machines that are WebAssembly components.
#[derive(Debug, Parser)]
#[command(
    name = "conclave",
    version,
    arg_required_else_help = true,
    after_long_help = "\
Try it:
  conclave dev                             a cluster of three nodes on this machine
  conclave kv put greeting hello           in another terminal
  conclave kv get greeting
  conclave status
  conclave cluster verify                  whether all nodes have the same state
  conclave call --list                     what the cluster's machine can do

Write a machine:
  conclave new my-counter                  a project that builds and passes its tests
  conclave build my-counter                a component
  conclave check my-counter/target/my-counter.wasm
  conclave dev --component my-counter/target/my-counter.wasm --watch
  conclave component push my-counter/target/my-counter.wasm    to a cluster that runs

Exit codes:
  0  success
  1  failure
  2  wrong usage or configuration
  3  no such key (kv get)
  4  unknown outcome: the write may have been applied, so read the state before sending it again
  5  no effect: no node could serve the call in time, so it can be sent again

With --json errors are {\"error\": {\"code\", \"message\", \"outcome\" (not-applied or unknown; absent if the call was
answered)}} on standard error."
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
}

/// The whole program: parse, run, exit.
pub fn main() -> ExitCode {
    // SAFETY: this is the first line of the program, which has one thread.
    #[allow(unsafe_code, reason = "before there are threads")]
    unsafe {
        config::take_environment();
    }
    let cli = Cli::parse();
    let mut runtime = runtime::Builder::new_multi_thread();
    // Half of the processors: a node's storage, head and reader have threads of their own, and on
    // few processors more workers cost each write and read a fifth of its time in waking each other.
    if env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let processors = thread::available_parallelism().map_or(2, usize::from);
        runtime.worker_threads((processors / 2).max(1));
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failed::local(format!("cannot start threads: {error}")).report(),
    };
    let code = runtime.block_on(cli.run());
    // What is still at work, such as a query without end, must not keep the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}

impl Cli {
    /// Runs the verb and returns the process's exit code.
    async fn run(self) -> u8 {
        let mut output = Output::new();
        // A cluster or a node outlives the reader of what is printed, and a replay removes its copy first.
        let outlives = matches!(self.verb, Verb::Dev(_) | Verb::Serve(_) | Verb::Replay(_));
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
