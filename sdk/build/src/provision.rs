//! Installation of a compiler for state machines.

use std::{
    io,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{Compiler, TARGET, environment::clean_environment, toolchain};

/// A mirror that cannot be reached may never answer. After this time, Debian's packages are tried.
const RUSTUP_SECONDS_MAX: u64 = 120;
/// Enough to download three hundred megabytes over a slow connection.
const APT_SECONDS_MAX: u64 = 1800;
const POLL: Duration = Duration::from_millis(100);

/// Finds or installs a compiler that can build state machines. Uses an installed compiler if there
/// is one. Otherwise runs `rustup target add` for at most two minutes, and then, on Debian,
/// installs packages. Before each step, `say` receives a line about it. The installers' output goes
/// to stderr.
pub fn provision(say: &mut dyn FnMut(&str)) -> Result<Compiler> {
    let missing = match toolchain().compiler() {
        Ok(compiler) => {
            say(&format!("state machines are built with {compiler}"));
            return Ok(compiler);
        }
        Err(missing) => missing,
    };
    say(&format!("{missing:#}"));
    for install in [rustup_target, debian_packages] {
        if let Err(error) = install(say) {
            say(&format!("this step failed: {error:#}"));
            continue;
        }
        if let Ok(compiler) = toolchain().compiler() {
            say(&format!("state machines are built with {compiler}"));
            return Ok(compiler);
        }
    }
    bail!("cannot install a compiler for state machines. {}", toolchain::how_to_install())
}

fn rustup_target(say: &mut dyn FnMut(&str)) -> Result<()> {
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]);
    step(say, rustup, Duration::from_secs(RUSTUP_SECONDS_MAX))
}

fn debian_packages(say: &mut dyn FnMut(&str)) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("this system is not Debian: there is no apt-get");
    }
    let time = Duration::from_secs(APT_SECONDS_MAX);
    step(say, apt_get(&["update"]), time)?;
    let linker = newest_linker_package()?;
    let packages = ["rustc-web", "cargo-web", "rust-web-src", &linker];
    let mut install = apt_get(&["install", "-y", "--no-install-recommends"]);
    install.args(packages);
    step(say, install, time)
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut apt_get = Command::new("apt-get");
    apt_get.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    apt_get
}

fn newest_linker_package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["search", "--names-only", "^lld-[0-9]+$"])
        .output()
        .context("cannot run apt-cache")?;
    newest_package(&String::from_utf8_lossy(&output.stdout)).context("apt has no package lld-NN")
}

/// Returns the newest `lld-NN` in a listing such as `lld-19 - LLVM-based linker`.
fn newest_package(listing: &str) -> Option<String> {
    let names = listing.lines().filter_map(|line| line.split_whitespace().next());
    let version = names.filter_map(|name| name.strip_prefix("lld-")?.parse::<u32>().ok()).max()?;
    Some(format!("lld-{version}"))
}

/// Reports a command, runs it, and fails if it fails or takes too long.
fn step(say: &mut dyn FnMut(&str), mut command: Command, time: Duration) -> Result<()> {
    let line = command_line(&command);
    say(&format!("running `{line}` (at most {} s)", time.as_secs()));
    clean_environment(&mut command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    match wait(&mut child, time)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("`{line}` failed ({status})"),
        None => {
            child.kill().with_context(|| format!("cannot stop `{line}`"))?;
            child.wait().with_context(|| format!("cannot stop `{line}`"))?;
            bail!("`{line}` took longer than {} s", time.as_secs())
        }
    }
}

/// Returns the child's exit status, or `None` if it still runs.
fn wait(child: &mut Child, time: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        let status = child.try_wait().context("cannot wait for a command")?;
        if status.is_some() || start.elapsed() > time {
            return Ok(status);
        }
        thread::sleep(POLL);
    }
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_linker_package_wins_by_number() {
        let listing = "lld-9 - LLVM-based linker\nlld-19 - LLVM-based linker\nlldb - debugger\n";
        assert_eq!(newest_package(listing).as_deref(), Some("lld-19"));
        assert_eq!(newest_package(""), None);
    }

    #[test]
    fn a_step_that_hangs_is_stopped_and_named() {
        let mut said = Vec::new();
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let error = step(&mut |line| said.push(line.to_owned()), sleep, Duration::from_millis(1));
        assert!(error.unwrap_err().to_string().contains("`sleep 60` took longer"));
        assert_eq!(said.len(), 1);
    }
}
