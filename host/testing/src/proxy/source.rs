//! Finds the node that opened a connection: the node whose process owns the other end.
//!
//! `/proc/net/tcp` contains the socket's inode, and `/proc/PID/fd` lists the sockets that a process
//! has open. This also works for stopped processes.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
};

/// The processes of the nodes.
#[derive(Default)]
pub struct Owners(Mutex<BTreeMap<u64, u32>>);

impl Owners {
    /// Sets the process of a node.
    pub fn insert(&self, node: u64, pid: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, pid);
    }

    /// The node that opened the connection from `local` to `remote`.
    pub fn owner_of(&self, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
        let table = fs::read_to_string("/proc/net/tcp").ok()?;
        let inode = inode_of(&table, local, remote)?;
        let link = format!("socket:[{inode}]");
        let processes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        processes.into_iter().find(|(_, pid)| has_open(*pid, &link)).map(|(node, _)| node)
    }
}

fn has_open(pid: u32, link: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| target == Path::new(link))
}

/// The inode of a socket in the text of `/proc/net/tcp`.
fn inode_of(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let (local, remote) = (in_hex(local)?, in_hex(remote)?);
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let matches = words.next()? == local && words.next()? == remote;
        // The fields after the addresses: state, queues, timer, retransmissions, user, timeout.
        let inode = words.nth(6)?;
        if matches { inode.parse().ok() } else { None }
    })
}

/// Formats an address as in `/proc/net/tcp`: the four bytes as one little-endian number.
fn in_hex(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    let [a, b, c, d] = address.ip().octets();
    Some(format!("{d:02X}{c:02X}{b:02X}{a:02X}:{:04X}", address.port()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_belongs_to_the_process_that_opened_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let advertised = listener.local_addr().unwrap();
        let client = TcpStream::connect(advertised).unwrap();
        let owners = Owners::default();
        assert_eq!(owners.owner_of(client.local_addr().unwrap(), advertised), None);
        // Process 1 does not have this socket.
        owners.insert(1, 1);
        owners.insert(2, std::process::id());
        assert_eq!(owners.owner_of(client.local_addr().unwrap(), advertised), Some(2));
    }

    #[test]
    fn addresses_are_written_as_the_kernel_writes_them() {
        let hex = in_hex("127.0.0.1:7101".parse().unwrap());
        assert_eq!(hex.as_deref(), Some("0100007F:1BBD"));
    }
}
