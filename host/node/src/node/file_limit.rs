//! The limit of open files: raised to the hard limit, and shared between clients and the node itself.

use conclave_types::limits::CONNECTIONS_MAX;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files for the log, snapshots, the admin port and the process itself.
const OWN_FILES: u64 = 192;
/// Files per member: connections of three classes in both directions, doubled while they are
/// replaced, and a snapshot.
const FILES_PER_MEMBER: u64 = 16;
/// No node needs more files, and programs that iterate over all possible files would take long.
const RAISED_MAX: u64 = 1 << 20;

/// Raises this process's soft limit of open files to its hard limit. For the program that owns the process.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(RAISED_MAX);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, wanted, "cannot raise the limit of open files");
    }
}

/// Returns the number of client connections that the limit of open files allows, at most
/// the configured one.
pub(super) fn connections_max(configured: Option<usize>, members: usize) -> usize {
    let wanted = CONNECTIONS_MAX.or_default(configured);
    let Some(files) = getrlimit(Resource::Nofile).current else { return wanted };
    let room = room(files, members);
    if wanted > room {
        tracing::warn!(
            files,
            connections_max = room,
            "the limit of open files allows fewer client connections than {wanted}: raise it (LimitNOFILE in systemd, \
             --ulimit nofile in Docker)"
        );
    }
    wanted.min(room)
}

/// Returns the number of connections that a limit of `files` leaves for clients: at least an eighth of it.
fn room(files: u64, members: usize) -> usize {
    let own = OWN_FILES + FILES_PER_MEMBER * members as u64;
    usize::try_from(files.saturating_sub(own).max(files / 8)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_files_to_the_node() {
        assert_eq!(room(1024, 3), 1024 - 240);
        assert_eq!(room(256, 3), 32);
        assert_eq!(connections_max(Some(7), 3), 7);
    }
}
