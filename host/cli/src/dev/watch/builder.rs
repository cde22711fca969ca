//! Runs `conclave build` as a child process, so that it can be killed at any time together with
//! its compilers.

use std::{
    path::Path,
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use crate::dev::children::in_words;
use conclave_types::error::chain;

/// A process group of its own. Dropping this kills the whole group. The component file is either
/// complete or absent.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // The id is `None` once the process has ended.
        if let Some(pid) = self.0.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            // Fails only if all processes of the group have ended meanwhile.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Group {
    fn start(command: &mut Command) -> std::io::Result<Self> {
        let command = command.stdin(Stdio::null()).process_group(0);
        command.kill_on_drop(true).spawn().map(Self)
    }

    async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.0.wait().await
    }
}

/// Builds a project into `file`. The compilers' messages go to stderr.
///
/// # Errors
/// The build failed; the compilers have printed the reason.
pub(super) async fn build(program: &Path, project: &Path, file: &Path) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg("build").arg(project).arg("--output").arg(file).stdout(Stdio::null());
    let failed = |cause| format!("cannot run {}: {}", program.display(), chain(&cause));
    let mut group = Group::start(&mut command).map_err(failed)?;
    let status = group.ended().await.map_err(failed)?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("the build {}", in_words(Some(status)))),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[tokio::test]
    async fn a_build_that_is_no_longer_wanted_leaves_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let compiler = dir.path().join("compiler");
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg("sleep 600 & echo $! > compiler.new; mv compiler.new compiler; wait");
        let group = Group::start(command.current_dir(dir.path())).unwrap();
        while !compiler.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let pid = fs::read_to_string(&compiler).unwrap().trim().parse().unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        assert!(is_alive(pid));
        drop(group);
        let gone = async {
            while is_alive(pid) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("it is still there");
    }

    /// A process without a parent that waits for it stays a zombie, in some containers permanently.
    fn is_alive(pid: Pid) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }
}
