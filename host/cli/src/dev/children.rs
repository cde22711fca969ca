//! Child processes of `conclave dev`, one per node: start, supervision and stop.
//!
//! Each node has a process group of its own, so that Ctrl-C reaches only the parent, which then
//! stops all nodes in order. Each node's stdin is a pipe that only the parent holds open. However
//! the parent dies, the pipe closes and the node stops because of `--exit-on-stdin-close`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::OpenOptions,
    io::{Read, Seek, SeekFrom},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
};

use super::plan::Node;
use crate::{Failed, Result};
use conclave::config;

/// Time for a node to transfer its leadership and sync its files after SIGTERM. Then it is killed.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Number of lines shown from the end of a log.
const TAIL_LINES: usize = 15;
const TAIL_BYTES_MAX: u64 = 16 << 10;

/// The requested state of the children.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Running,
    Stopped,
    Killed,
}

/// A child that has ended.
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) status: Option<ExitStatus>,
}

/// All children. Dropping this kills them.
pub(super) struct Children {
    wanted: watch::Sender<Wanted>,
    ended: mpsc::UnboundedReceiver<Ended>,
    report: mpsc::UnboundedSender<Ended>,
    running: usize,
    /// Channel that stops one child, by node id.
    stops: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Children {
    pub(super) fn new() -> Self {
        let (report, ended) = mpsc::unbounded_channel();
        let wanted = watch::channel(Wanted::Running).0;
        Self { wanted, ended, report, running: 0, stops: BTreeMap::new() }
    }

    /// Starts a node and returns its process id. The node's output is appended to its log file.
    pub(super) fn start(
        &mut self,
        program: &Path,
        arguments: &[OsString],
        compile_cache: &Path,
        node: &Node,
    ) -> Result<u32> {
        let failed = |what: &Path, cause| Failed::because(what.display(), &cause);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&node.log)
            .map_err(|cause| failed(&node.log, cause))?;
        let log_too = log.try_clone().map_err(|cause| failed(&node.log, cause))?;
        let mut command = Command::new(program);
        // Flags alone configure a node, not this shell's variables.
        for name in config::variables() {
            command.env_remove(name);
        }
        let child = command
            .args(arguments)
            .arg("--exit-on-stdin-close")
            // With a shared cache the nodes compile each component once.
            .env("CONCLAVE_COMPILE_CACHE", compile_cache)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(log_too)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|cause| failed(program, cause))?;
        let pid = child.id().ok_or_else(|| Failed::local("the node ended immediately"))?;
        let (report, wanted, id) = (self.report.clone(), self.wanted.subscribe(), node.id);
        self.running += 1;
        let (stop, stopped) = oneshot::channel();
        self.stops.insert(id, stop);
        tokio::spawn(async move {
            let status = watch_over(child, wanted, stopped).await;
            // The receiver is gone only when the program ends.
            let _ = report.send(Ended { id, status });
        });
        Ok(pid)
    }

    /// Waits for the next child to end. Returns `None` if all have ended.
    pub(super) async fn next_ended(&mut self) -> Option<Ended> {
        if self.running == 0 {
            return None;
        }
        let ended = self.ended.recv().await;
        self.running -= 1;
        ended
    }

    /// Requests one child to stop.
    pub(super) fn stop_one(&mut self, id: u64) {
        if let Some(stop) = self.stops.remove(&id) {
            // The child's task is gone if the child has ended.
            let _ = stop.send(());
        }
    }

    /// Requests all children to stop. [`Children::next_ended`] reports the end of each.
    pub(super) fn stop(&self) {
        self.wanted.send_replace(Wanted::Stopped);
    }

    /// Kills all children.
    pub(super) fn kill(&self) {
        self.wanted.send_replace(Wanted::Killed);
    }
}

/// Waits until one child ends, by itself or as requested.
async fn watch_over(
    mut child: Child,
    mut wanted: watch::Receiver<Wanted>,
    stopped: oneshot::Receiver<()>,
) -> Option<ExitStatus> {
    // Kept open until the child has ended: a closed pipe tells the child that the parent is gone.
    let stdin = child.stdin.take();
    tokio::select! {
        status = child.wait() => return status.ok(),
        _ = wanted.wait_for(|wanted| *wanted != Wanted::Running) => {}
        Ok(()) = stopped => {}
    }
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // Fails only if the child has ended meanwhile.
        let _ = kill_process(pid, Signal::TERM);
    }
    tokio::select! {
        status = child.wait() => return status.ok(),
        _ = wanted.wait_for(|wanted| *wanted == Wanted::Killed) => {}
        () = tokio::time::sleep(STOP_WAIT) => {}
    }
    let _ = child.start_kill();
    let status = child.wait().await.ok();
    drop(stdin);
    status
}

/// Describes how a process ended.
pub(super) fn in_words(status: Option<ExitStatus>) -> String {
    match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("exited with code {code}"),
        Some((_, Some(signal))) => format!("was ended by signal {signal}"),
        _ => "ended".to_owned(),
    }
}

/// Returns the last lines of a log file, or none if the file cannot be read.
pub(super) fn tail(path: &Path) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES_MAX)))?;
        let mut end = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut end)?;
        Ok(end)
    };
    let end = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&end);
    let lines: Vec<_> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)).map(|&l| l.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn node(dir: &Path) -> Node {
        Node {
            id: 7,
            pid: None,
            client: String::new(),
            peer: String::new(),
            admin: String::new(),
            data_dir: dir.join("node-7"),
            log: dir.join("node-7.log"),
        }
    }

    fn start(children: &mut Children, dir: &Path, script: &str) -> u32 {
        let arguments = ["-c".into(), script.into()];
        children.start(Path::new("/bin/sh"), &arguments, dir, &node(dir)).unwrap()
    }

    #[tokio::test]
    async fn a_child_that_dies_leaves_its_code_and_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut children = Children::new();
        start(&mut children, dir.path(), "seq 1 100; echo broken >&2; exit 9");
        let ended = children.next_ended().await.unwrap();
        assert_eq!((ended.id, in_words(ended.status).as_str()), (7, "exited with code 9"));
        let lines = tail(&dir.path().join("node-7.log"));
        assert_eq!((lines.len(), lines.last().unwrap().as_str()), (TAIL_LINES, "broken"));
        assert!(children.next_ended().await.is_none());
    }

    #[tokio::test]
    async fn a_child_is_asked_to_stop_and_killed_if_it_will_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut children = Children::new();
        start(&mut children, dir.path(), "exec sleep 600");
        let began = Instant::now();
        children.stop();
        let ended = children.next_ended().await.unwrap();
        assert_eq!(in_words(ended.status), "was ended by signal 15");

        let mut children = Children::new();
        let deaf = "trap '' TERM; echo deaf; while :; do sleep 600; done";
        start(&mut children, dir.path(), deaf);
        while !tail(&dir.path().join("node-7.log")).contains(&"deaf".to_owned()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        children.stop();
        tokio::time::sleep(Duration::from_millis(50)).await;
        children.kill();
        let ended = children.next_ended().await.unwrap();
        assert_eq!(in_words(ended.status), "was ended by signal 9");
        assert!(began.elapsed() < STOP_WAIT);
    }

    #[tokio::test]
    async fn a_child_sees_the_end_of_its_stdin_only_when_the_parent_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut children = Children::new();
        start(&mut children, dir.path(), "read line; exit 4");
        let still = tokio::time::timeout(Duration::from_millis(100), children.next_ended()).await;
        assert!(still.is_err(), "stdin ended early");
    }
}
