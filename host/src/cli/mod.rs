//! The command line: one file a verb.
//!
//! Contract: a verb takes its arguments, does its work through the client crate alone (only `serve`
//! and `dev` know of nodes as processes, and `new`, `build`, `inspect`, `check` and `replay` of no cluster at all),
//! hands what it has to say to [`output`] and returns. It never prints and never exits by itself. Results go to
//! stdout, everything else to stderr, so that scripts can read the one and people the other. The exit code is 0
//! for success, 1 for a failure,
//! 2 for wrong usage and 3 when `kv get` finds no such key.
//!
//! Caveats: values given as arguments are visible in the process list; `kv put KEY -` and `--file`
//! are not.

pub mod build;
pub mod call;
pub mod check;
pub mod cluster;
pub mod dev;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod health;
pub mod inspect;
pub mod key;
pub mod kv;
pub mod module;
pub mod new;
pub mod output;
pub mod recover;
pub mod remote;
pub mod replay;
pub mod serve;
pub mod status;

use std::{env, process::ExitCode, thread};

use clap::{Parser, Subcommand};
use tokio::runtime;

use output::Output;

/// How a verb ends when it does not succeed.
#[derive(Debug)]
pub enum Failed {
    /// It did not work. One line for people that says what to do next, and gRPC's name of the code.
    Failure {
        /// For programs: `UNAVAILABLE`, `NOT_FOUND`, ...
        code: &'static str,
        /// For people.
        message: String,
    },
    /// The arguments do not make sense together.
    Usage(String),
    /// `kv get` found no such key.
    NotFound(String),
}

impl Failed {
    /// A failure of this program's own, without an answer from a node.
    pub fn local(message: impl Into<String>) -> Self {
        Self::Failure { code: "FAILED", message: message.into() }
    }

    /// Says so, and gives the process's exit code.
    fn report(&self) -> ExitCode {
        Output::new().failed(self);
        ExitCode::from(self.exit_code())
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failure { .. } => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
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
  conclave dev --module my-counter/target/my-counter.wasm --watch
  conclave module push my-counter/target/my-counter.wasm    to a cluster that runs

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 no such key (kv get)."
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
    Module(module::Arguments),
    New(new::Arguments),
    Build(build::Arguments),
    Inspect(inspect::Arguments),
    Check(check::Arguments),
    Replay(Box<replay::Arguments>),
    Recover(recover::Arguments),
}

/// The whole program: parse, run, exit.
pub fn main() -> ExitCode {
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
    /// Does what was asked and answers with the process's exit code.
    async fn run(self) -> u8 {
        let mut output = Output::new();
        let result = match self.verb {
            Verb::Dev(arguments) => dev::run(arguments, &mut output).await,
            Verb::Serve(arguments) => serve::run(*arguments).await,
            Verb::Status(arguments) => status::run(arguments, &mut output).await,
            Verb::Cluster(arguments) => cluster::run(arguments, &mut output).await,
            Verb::Health(arguments) => health::run(arguments, &mut output).await,
            Verb::Call(arguments) => call::run(arguments, &mut output).await,
            Verb::Kv(arguments) => kv::run(arguments, &mut output).await,
            Verb::Key(arguments) => key::run(arguments, &mut output),
            Verb::Module(arguments) => module::run(arguments, &mut output).await,
            Verb::New(arguments) => new::run(arguments, &mut output),
            Verb::Build(arguments) => build::run(arguments, &mut output),
            Verb::Inspect(arguments) => inspect::run(arguments, &mut output),
            Verb::Check(arguments) => check::run(arguments, &mut output).await,
            Verb::Replay(arguments) => replay::run(*arguments, &mut output).await,
            Verb::Recover(arguments) => recover::run(arguments, &mut output).await,
        };
        match result {
            Ok(()) => 0,
            Err(failed) => {
                output.failed(&failed);
                failed.exit_code()
            }
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
