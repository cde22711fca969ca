//! The nodes that a client knows, and the choice of the next one.
//!
//! The client knows its endpoints and the leaders named in responses. The address of a named leader
//! may be unreachable from here, for example inside a container network. It is tried first. If it
//! does not respond, the endpoints are preferred for a while.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{connection::Node, error::Error};

/// Maximum number of learned leaders. It bounds the memory if a node keeps naming new ones.
const LEARNED_MAX: usize = 64;

/// All nodes that a client knows.
pub(crate) struct Nodes {
    endpoints: Vec<Arc<Node>>,
    learned: RwLock<Vec<Arc<Node>>>,
    leader: RwLock<Option<Arc<Node>>>,
    turn: AtomicUsize,
    connections: usize,
    connect_timeout: Duration,
    follow: bool,
}

impl Nodes {
    pub(crate) fn new(
        endpoints: &[String],
        connections: usize,
        connect_timeout: Duration,
        follow: bool,
    ) -> Result<Self, Error> {
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for endpoint in endpoints {
            let node = Node::new(endpoint, connections, connect_timeout)?;
            if nodes.iter().all(|known| known.address() != node.address()) {
                nodes.push(Arc::new(node));
            }
        }
        if nodes.is_empty() {
            return Err(Error::invalid("no endpoints: give at least one host:port"));
        }
        Ok(Self {
            endpoints: nodes,
            learned: RwLock::default(),
            leader: RwLock::default(),
            // A random start, since many clients have the same list of endpoints.
            turn: AtomicUsize::new(rand::random::<u32>() as usize),
            connections,
            connect_timeout,
            follow,
        })
    }

    /// Returns the endpoints' addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|node| node.address())
    }

    /// Returns the next node that is not in `tried`: the leader first unless `spread`, then the
    /// endpoints. Nodes that recently did not respond come last. Returns `None` if all were tried.
    pub(crate) fn pick(&self, tried: &[Arc<Node>], spread: bool) -> Option<Arc<Node>> {
        let fresh = |node: &Arc<Node>| !tried.iter().any(|other| Arc::ptr_eq(other, node));
        if !spread
            && let Some(leader) = self.leader()
            && fresh(&leader)
            && !leader.is_shunned()
        {
            return Some(leader);
        }
        let count = self.endpoints.len();
        let start = match spread && tried.is_empty() {
            true => self.turn.fetch_add(1, Ordering::Relaxed),
            false => self.turn.load(Ordering::Relaxed),
        };
        let untried: Vec<_> = (0..count)
            .map(|step| &self.endpoints[(start.wrapping_add(step)) % count])
            .filter(|node| fresh(node))
            .collect();
        let awake = untried.iter().find(|node| !node.is_shunned());
        awake.or(untried.first()).map(|node| Arc::clone(node))
    }

    /// Records the leader named in a response.
    pub(crate) fn learn(&self, address: &str) {
        if !self.follow || self.leader().is_some_and(|leader| leader.address() == address) {
            return;
        }
        if let Some(node) = self.find(address) {
            *self.leader.write().unwrap_or_else(PoisonError::into_inner) = Some(node);
        }
    }

    /// Records that the node did not respond, and no longer treats it as the leader.
    pub(crate) fn lost(&self, node: &Arc<Node>) {
        node.shun();
        let mut leader = self.leader.write().unwrap_or_else(PoisonError::into_inner);
        if leader.as_ref().is_some_and(|leader| Arc::ptr_eq(leader, node)) {
            *leader = None;
        }
    }

    fn leader(&self) -> Option<Arc<Node>> {
        self.leader.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find(&self, address: &str) -> Option<Arc<Node>> {
        if let Some(node) = self.endpoints.iter().find(|node| node.address() == address) {
            return Some(Arc::clone(node));
        }
        let mut learned = self.learned.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = learned.iter().find(|node| node.address() == address) {
            return Some(Arc::clone(node));
        }
        if learned.len() >= LEARNED_MAX {
            return None;
        }
        let node = Arc::new(Node::new(address, self.connections, self.connect_timeout).ok()?);
        learned.push(Arc::clone(&node));
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(endpoints: &[&str]) -> Nodes {
        let endpoints: Vec<_> = endpoints.iter().map(|&e| e.to_owned()).collect();
        let mut nodes = Nodes::new(&endpoints, 1, Duration::from_secs(1), true).unwrap();
        nodes.turn = AtomicUsize::new(0);
        nodes
    }

    fn order(nodes: &Nodes, spread: bool) -> Vec<String> {
        let mut tried = Vec::new();
        while let Some(node) = nodes.pick(&tried, spread) {
            tried.push(node);
        }
        tried.iter().map(|node| node.address().to_owned()).collect()
    }

    #[test]
    fn the_leader_comes_first_and_everybody_once() {
        let nodes = nodes(&["a:1", "b:1", "c:1"]);
        nodes.learn("b:1");
        assert_eq!(order(&nodes, false), ["b:1", "a:1", "c:1"]);
    }

    #[test]
    fn a_silent_node_comes_last_and_is_no_longer_the_leader() {
        let nodes = nodes(&["a:1", "b:1"]);
        nodes.learn("a:1");
        let node = nodes.pick(&[], false).unwrap();
        nodes.lost(&node);
        assert_eq!(order(&nodes, false), ["b:1", "a:1"]);
    }

    #[test]
    fn a_leader_outside_the_endpoints_is_followed_until_it_stays_silent() {
        let nodes = nodes(&["a:1"]);
        nodes.learn("z:1");
        assert_eq!(order(&nodes, false), ["z:1", "a:1"]);
        let node = nodes.pick(&[], false).unwrap();
        nodes.lost(&node);
        nodes.learn("z:1");
        assert_eq!(order(&nodes, false), ["a:1"]);
    }

    #[test]
    fn any_endpoint_may_be_the_first() {
        let endpoints = ["a:1", "b:1", "c:1"].map(str::to_owned);
        let first = |_| {
            let nodes = Nodes::new(&endpoints, 1, Duration::from_secs(1), true).unwrap();
            order(&nodes, false)[0].clone()
        };
        // With 64 random choices among three, one of them is missing once in 10^11 runs.
        let first: std::collections::BTreeSet<_> = (0..64).map(first).collect();
        assert_eq!(first.len(), 3);
    }

    #[test]
    fn stale_reads_take_turns() {
        let nodes = nodes(&["a:1", "b:1", "c:1"]);
        let first: Vec<_> = (0..3).map(|_| order(&nodes, true)[0].clone()).collect();
        let mut sorted = first.clone();
        sorted.sort();
        assert_eq!(sorted, ["a:1", "b:1", "c:1"], "{first:?}");
    }

    #[test]
    fn endless_new_leaders_are_not_followed() {
        let nodes = nodes(&["a:1"]);
        for port in 1..1000 {
            nodes.learn(&format!("z:{port}"));
        }
        assert_eq!(nodes.learned.read().unwrap().len(), LEARNED_MAX);
    }
}
