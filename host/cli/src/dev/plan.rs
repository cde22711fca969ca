//! Plan of a development cluster: its nodes with their ports, files and commands. It is stored in
//! `cluster.json`, which tests and scripts read too.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    net::TcpListener,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Failed, Result};
use conclave_types::error::chain;

/// Distance from client ports to peer ports, and from those to admin ports. It bounds the number
/// of nodes.
const PORTS_APART: u16 = 100;
/// Maximum number of nodes: more on one host teach nothing.
pub(super) const NODES_MAX: u64 = 9;
/// Maximum port base, so that the last port of the last node is a valid port.
pub(super) const PORT_BASE_MAX: i64 = 65_535 - 2 * PORTS_APART as i64 - NODES_MAX as i64;

/// The file that a running `conclave dev` holds locked, with its process id.
pub(super) const LOCK: &str = "dev.lock";
/// The file with the cluster's plan.
const PLAN: &str = "cluster.json";
/// Names of files that a directory without a cluster may contain.
const OWN_FILES: [&str; 3] = [LOCK, "master.key", ".gitignore"];

/// A development cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) cluster_id: String,
    pub(super) port_base: u16,
    /// The component's file; null for the key-value store.
    pub(super) component: Option<PathBuf>,
    pub(super) nodes: Vec<Node>,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) id: u64,
    /// Null while the node does not run.
    pub(super) pid: Option<u32>,
    pub(super) client: String,
    pub(super) peer: String,
    pub(super) admin: String,
    pub(super) data_dir: PathBuf,
    pub(super) log: PathBuf,
}

/// The user's flags; `None` if a flag was not given.
#[derive(Clone, Debug, Default)]
pub(super) struct Wishes {
    pub(super) nodes: Option<u64>,
    pub(super) port_base: Option<u16>,
    pub(super) component: Option<PathBuf>,
}

impl Plan {
    /// Reads the cluster in `dir`, or plans a new one according to `wishes`.
    pub(super) fn of(dir: &Path, wishes: &Wishes) -> Result<Self> {
        let path = dir.join(PLAN);
        let mut plan = match fs::read(&path) {
            Ok(bytes) => {
                let plan: Self = serde_json::from_slice(&bytes).map_err(|cause| {
                    Failed::local(format!(
                        "{}: {}; --reset starts a new cluster",
                        path.display(),
                        chain(&cause)
                    ))
                })?;
                plan.check(dir, wishes)?;
                plan
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let suffix: u32 = rand::random();
                Self::new(dir, wishes, format!("dev-{suffix:08x}"))
            }
            Err(cause) => return Err(Failed::because(path.display(), &cause)),
        };
        if wishes.component.is_some() {
            plan.component.clone_from(&wishes.component);
        }
        Ok(plan)
    }

    fn new(dir: &Path, wishes: &Wishes, cluster_id: String) -> Self {
        let port_base = wishes.port_base.unwrap_or(7100);
        let address = |at: u64, above: u16| format!("127.0.0.1:{}", port_base + above + at as u16);
        let node = |id| Node {
            id,
            pid: None,
            client: address(id, 0),
            peer: address(id, PORTS_APART),
            admin: address(id, 2 * PORTS_APART),
            data_dir: dir.join(format!("node-{id}")),
            log: dir.join(format!("node-{id}.log")),
        };
        let nodes = (1..=wishes.nodes.unwrap_or(3)).map(node).collect();
        Self { cluster_id, port_base, component: None, nodes }
    }

    /// Reads the cluster in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(PLAN);
        let bytes = fs::read(&path)
            .map_err(|cause| Failed::because(format!("no cluster: {}", path.display()), &cause))?;
        serde_json::from_slice(&bytes).map_err(|cause| Failed::because(path.display(), &cause))
    }

    /// Rejects flags that contradict the cluster: its members and their addresses are in its log.
    fn check(&self, dir: &Path, wishes: &Wishes) -> Result {
        let nodes = self.nodes.len() as u64;
        let wrong = match (wishes.nodes, wishes.port_base) {
            (Some(wish), _) if wish != nodes => format!("{nodes} nodes: pass --nodes {nodes}"),
            (_, Some(wish)) if wish != self.port_base => {
                format!("port base {}: pass --port-base {0}", self.port_base)
            }
            _ => return Ok(()),
        };
        Err(Failed::Usage(format!(
            "{} holds a cluster with {wrong}, another --data-dir, or --reset to delete its data",
            dir.display()
        )))
    }

    /// Fails with the first address that is in use.
    pub(super) fn check_ports(&self) -> Result {
        for node in &self.nodes {
            for address in [&node.client, &node.peer, &node.admin] {
                TcpListener::bind(address).map_err(|cause| {
                    Failed::local(format!(
                        "node {} cannot listen on {address}: {}; stop the program that uses it, or choose another --port-base and --data-dir",
                        node.id,
                        chain(&cause)
                    ))
                })?;
            }
        }
        Ok(())
    }

    /// Replaces `cluster.json` atomically: a reader sees the old file or the new one.
    pub(super) fn write(&self, dir: &Path) -> Result {
        let path = dir.join(PLAN);
        let temporary = dir.join("cluster.json.new");
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(Failed::at(&path))
    }

    /// Returns the arguments that start `node` by itself.
    pub(super) fn serve_arguments(&self, dir: &Path, node: &Node) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["serve".into()];
        let mut flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            arguments.push(name.into());
            arguments.push(value.as_ref().to_owned());
        };
        flag("--node-id", &node.id.to_string());
        flag("--cluster-id", &self.cluster_id);
        flag("--data-dir", &node.data_dir);
        flag("--listen-client", &node.client);
        flag("--listen-peer", &node.peer);
        flag("--listen-admin", &node.admin);
        for member in &self.nodes {
            flag("--member", &format!("{}={},{}", member.id, member.peer, member.client));
        }
        flag("--master-key-file", &dir.join("master.key"));
        if let Some(component) = &self.component {
            flag("--component", component);
        }
        flag("--log-format", &"text");
        arguments
    }

    /// Returns the nodes' client addresses in the form of `--endpoints`.
    pub(super) fn endpoints(&self) -> String {
        let clients: Vec<_> = self.nodes.iter().map(|node| node.client.as_str()).collect();
        clients.join(",")
    }
}

/// Removes the files of `dev` from `dir`, except the key. Refuses a directory that `dev` did
/// not create.
pub(super) fn reset(dir: &Path) -> Result {
    let failed = |path: &Path, cause| Failed::because(path.display(), &cause);
    if !dir.join(PLAN).exists() {
        return match is_ours(dir).map_err(|cause| failed(dir, cause))? {
            false => Err(Failed::local(format!(
                "{} has no cluster.json, so it is not the directory of a development cluster; nothing was removed",
                dir.display()
            ))),
            true => Ok(()),
        };
    }
    for id in 1..=NODES_MAX {
        let data = dir.join(format!("node-{id}"));
        if data.exists() {
            fs::remove_dir_all(&data).map_err(|cause| failed(&data, cause))?;
        }
        let log = dir.join(format!("node-{id}.log"));
        if log.exists() {
            fs::remove_file(&log).map_err(|cause| failed(&log, cause))?;
        }
    }
    let compiled = compile_cache(dir);
    if compiled.exists() {
        fs::remove_dir_all(&compiled).map_err(|cause| failed(&compiled, cause))?;
    }
    let plan = dir.join(PLAN);
    fs::remove_file(&plan).map_err(|cause| failed(&plan, cause))
}

/// Returns whether a directory holds a development cluster, or no files other than those of one.
pub(super) fn is_ours(dir: &Path) -> io::Result<bool> {
    if dir.join(PLAN).exists() {
        return Ok(true);
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !OWN_FILES.iter().any(|own| name == *own) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the directory of compiled components, which all nodes share.
pub(super) fn compile_cache(dir: &Path) -> PathBuf {
    dir.join("compiled")
}

/// Formats a command with shell quoting.
pub(super) fn shell(program: &Path, arguments: &[OsString]) -> String {
    let quote = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@".contains(c);
        match !word.is_empty() && word.chars().all(plain) {
            true => word.into_owned(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        }
    };
    let words = std::iter::once(program.as_os_str()).chain(arguments.iter().map(AsRef::as_ref));
    words.map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster_has_the_documented_ports_and_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::of(dir.path(), &Wishes::default()).unwrap();
        let node = &plan.nodes[2];
        assert_eq!(
            (node.client.as_str(), node.peer.as_str(), node.admin.as_str()),
            ("127.0.0.1:7103", "127.0.0.1:7203", "127.0.0.1:7303")
        );
        assert_eq!(plan.endpoints(), "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103");
        plan.write(dir.path()).unwrap();
        assert_eq!(Plan::of(dir.path(), &Wishes::default()).unwrap(), plan);
    }

    #[test]
    fn a_cluster_is_not_turned_into_another_by_flags() {
        let dir = tempfile::tempdir().unwrap();
        Plan::of(dir.path(), &Wishes::default()).unwrap().write(dir.path()).unwrap();
        for wishes in [
            Wishes { nodes: Some(5), ..Default::default() },
            Wishes { port_base: Some(8100), ..Default::default() },
        ] {
            let Err(Failed::Usage(message)) = Plan::of(dir.path(), &wishes) else {
                panic!("{wishes:?} was accepted")
            };
            assert!(message.contains("--reset"), "{message}");
        }
        reset(dir.path()).unwrap();
        let wishes = Wishes { nodes: Some(5), ..Default::default() };
        assert_eq!(Plan::of(dir.path(), &wishes).unwrap().nodes.len(), 5);
    }

    #[test]
    fn reset_leaves_what_is_not_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "irreplaceable").unwrap();
        assert!(reset(dir.path()).is_err());
        let plan = Plan::of(dir.path(), &Wishes::default()).unwrap();
        plan.write(dir.path()).unwrap();
        fs::write(dir.path().join("master.key"), "key").unwrap();
        fs::create_dir(&plan.nodes[0].data_dir).unwrap();
        reset(dir.path()).unwrap();
        assert!(dir.path().join("thesis.txt").exists() && dir.path().join("master.key").exists());
        assert!(!plan.nodes[0].data_dir.exists());
    }

    #[test]
    fn a_command_can_be_pasted() {
        let arguments = ["serve".into(), "--data-dir".into(), "it's here".into()];
        assert_eq!(
            shell(Path::new("/bin/conclave"), &arguments),
            r"/bin/conclave serve --data-dir 'it'\''s here'"
        );
    }

    #[test]
    fn serve_understands_what_dev_passes() {
        use clap::Parser;
        let plan = Plan::of(Path::new("/nowhere"), &Wishes::default()).unwrap();
        let arguments = plan.serve_arguments(Path::new("/nowhere"), &plan.nodes[0]);
        let words = std::iter::once("conclave".into()).chain(arguments);
        crate::Cli::try_parse_from(words).unwrap();
    }
}
