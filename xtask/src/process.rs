//! Other programs: found on the path, and run in the foreground with progress lines, to capture
//! their output, or in parallel.

use std::{
    env,
    fs::File,
    io::{BufRead as _, BufReader, IsTerminal as _, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::output::{human, result, say};

const POLL: Duration = Duration::from_millis(50);
/// Without a terminal, cargo draws no progress bar. A line every 30 seconds shows that it still runs.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);
/// The time limit of commands whose output is captured.
const CAPTURE_TIME_MAX: Duration = Duration::from_secs(120);
/// Time for a node to sync its data and stop. After that it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(15);

/// Returns the program's path, if it is installed.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    // Debian's tools for root, such as debootstrap, are not always on the path of a shell.
    let system = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs a command to its end and shows its output immediately.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = command_line(command);
    say(&format!("$ {line}"));
    let mut child =
        command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot run `{line}`"))?;
    let start = Instant::now();
    let mut next_sign = SIGN_OF_LIFE;
    let quiet = std::io::stderr().is_terminal();
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for a command")? {
            break status;
        }
        if !quiet && start.elapsed() > next_sign {
            say(&format!("... {} so far: {line}", human(start.elapsed())));
            next_sign += SIGN_OF_LIFE;
        }
        thread::sleep(POLL);
    };
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// The result of [`stream`].
pub(crate) struct Streamed {
    pub(crate) status: ExitStatus,
    /// The lines that the command printed on stdout.
    pub(crate) lines: Vec<String>,
}

/// Runs a command to its end, whatever its status, and shows its output immediately.
pub(crate) fn stream(command: &mut Command) -> Result<Streamed> {
    let line = command_line(command);
    say(&format!("$ {line}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let output = child.stdout.take().context("a command without an output")?;
    let mut lines = Vec::new();
    for bytes in BufReader::new(output).split(b'\n') {
        let bytes = bytes.with_context(|| format!("cannot read the output of `{line}`"))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        result(&text);
        lines.push(text);
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
    Ok(Streamed { status, lines })
}

/// Runs a command and returns its output on stdout. Its error contains the output on stderr.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    capture_within(command, CAPTURE_TIME_MAX)
}

/// Like [`capture`], for at most `time`.
pub(crate) fn capture_within(command: &mut Command, time: Duration) -> Result<String> {
    let line = command_line(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let stdout = child.stdout.take().map(|pipe| thread::spawn(|| read_all(pipe)));
    let stderr = child.stderr.take().map(|pipe| thread::spawn(|| read_all(pipe)));
    let Some(status) = wait(&mut child, time)? else {
        child.kill().with_context(|| format!("cannot stop `{line}`"))?;
        child.wait().with_context(|| format!("cannot stop `{line}`"))?;
        bail!("`{line}` took longer than {}", human(time));
    };
    let text = |reader: Option<thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    if !status.success() {
        bail!("`{line}` failed ({status}): {}", stderr.trim());
    }
    Ok(stdout)
}

fn read_all(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // A broken pipe ends the output. The exit status shows whether the command failed.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn wait(child: &mut Child, time: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        let status = child.try_wait().context("cannot wait for a command")?;
        if status.is_some() || start.elapsed() > time {
            return Ok(status);
        }
        thread::sleep(POLL.min(time));
    }
}

/// Repeats `attempt` until it succeeds. After `time`, returns its last error.
pub(crate) fn retry<T>(
    what: &str,
    time: Duration,
    attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    retry_while(what, time, &mut [], attempt)
}

/// Like [`retry`], but fails at once if one of the given programs has ended.
pub(crate) fn retry_while<T>(
    what: &str,
    time: Duration,
    programs: &mut [&mut Running],
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        programs.iter_mut().try_for_each(|program| program.check()).context(what.to_owned())?;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > time => {
                return Err(error.context(format!("{what}: not completed within {}", human(time))));
            }
            Err(_) => thread::sleep(Duration::from_millis(250)),
        }
    }
}

/// A program that runs in parallel, with its output in a file. Dropping it ends the program.
pub(crate) struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Starts a program. If `setpriv` is installed, the kernel ends the program when this process
    /// is killed.
    pub(crate) fn start(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let errors = file.try_clone().context("cannot share the log file")?;
        let mut tied = match find_program("setpriv") {
            Some(setpriv) => {
                let mut tied = Command::new(setpriv);
                tied.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program());
                tied
            }
            None => Command::new(command.get_program()),
        };
        tied.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => tied.env(name, value),
                None => tied.env_remove(name),
            };
        }
        let child = tied
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails if the program has ended by itself.
    fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("cannot wait for a process")? {
            Some(status) => bail!("{} has ended ({status})", self.name),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait().context("cannot wait for a process")?.is_some() {
            return Ok(());
        }
        signal(self.pid(), Signal::TERM)?;
        if wait(&mut self.child, STOP_TIME_MAX)?.is_none() {
            say(&format!("{} did not stop within {}; killed", self.name, human(STOP_TIME_MAX)));
            self.child.kill().context("cannot kill a process")?;
            self.child.wait().context("cannot wait for a process")?;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            say(&format!("cannot stop {}: {error:#}", self.name));
        }
    }
}

/// Sends a signal to one process, selected by its id.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
    kill_process(id, signal).with_context(|| format!("cannot signal process {pid}"))
}

pub(crate) fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_failing_command_said_is_in_the_error() {
        assert_eq!(capture(&mut shell("echo out; echo err >&2")).unwrap(), "out\n");
        let error = capture(&mut shell("echo broken >&2; exit 3")).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }

    #[test]
    fn lines_of_a_failing_command_are_kept_with_its_status() {
        let Streamed { status, lines } = stream(&mut shell("echo one; echo two; exit 3")).unwrap();
        assert_eq!((status.code(), lines), (Some(3), vec!["one".to_owned(), "two".to_owned()]));
    }

    #[test]
    fn a_command_that_hangs_is_stopped() {
        let error = capture_within(&mut shell("exec sleep 60"), Duration::from_millis(10));
        assert!(error.unwrap_err().to_string().contains("took longer"));
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let running = Running::start("sleep", &shell("exec sleep 60"), &log).unwrap();
        let pid = running.pid();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(running);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
