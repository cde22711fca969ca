//! The connections to one node: opened on first use, kept, and reopened after a failure.
//!
//! Connecting is a separate step before any request, so a call whose connection fails was certainly
//! not applied. Callers that need the same connection wait for one attempt together and share its
//! failure. So a thousand calls to a dead node cost one connect timeout in total.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tonic::transport::{Channel, Endpoint};

use crate::{
    error::{Error, plain},
    heard,
};

/// A node that does not respond is avoided for this time, doubled after each further failure.
const SHUN_FIRST: Duration = Duration::from_millis(500);
/// Maximum time of avoidance. A recovered node is used again within this time.
const SHUN_MAX: Duration = Duration::from_secs(8);
/// A peer that vanished without closing its connections is detected after one interval and timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Large enough that one message of a few MiB does not wait for window updates.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// The address of one node, and its connections.
pub(crate) struct Node {
    address: String,
    endpoint: Endpoint,
    connect_timeout: Duration,
    slots: Vec<Slot>,
    turn: AtomicUsize,
    shunned: Mutex<Option<Shunned>>,
}

#[derive(Clone, Copy)]
struct Shunned {
    until: Instant,
    last: Duration,
}

#[derive(Default)]
struct Slot {
    ready: Mutex<Option<(u64, Channel)>>,
    /// Locked while connecting. Holds the time and the message of the last failure.
    gate: tokio::sync::Mutex<Gate>,
}

#[derive(Default)]
struct Gate {
    made: u64,
    failed: Option<(Instant, String)>,
}

/// A connection in use by a call, with the data to discard it.
pub(crate) struct Loan {
    pub(crate) channel: Channel,
    slot: usize,
    made: u64,
}

impl Node {
    /// Creates a node at `host:port`, with at most `connections` connections.
    pub(crate) fn new(
        address: &str,
        connections: usize,
        connect_timeout: Duration,
    ) -> Result<Self, Error> {
        let address = bare_address(address)?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|cause| {
                Error::invalid(format!("{address} is not an address")).with_source(cause)
            })?
            .connect_timeout(connect_timeout)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(Self {
            address,
            endpoint,
            connect_timeout,
            slots: (0..connections.max(1)).map(|_| Slot::default()).collect(),
            turn: AtomicUsize::new(0),
            shunned: Mutex::new(None),
        })
    }

    /// Returns the address as `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Returns a connection, and opens one if there is none. The error is the reason why connecting failed.
    pub(crate) async fn connect(&self) -> Result<Loan, String> {
        let at = self.turn.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        let slot = &self.slots[at];
        if let Some((made, channel)) = slot.get() {
            return Ok(Loan { channel, slot: at, made });
        }
        let asked = Instant::now();
        let mut gate = slot.gate.lock().await;
        if let Some((made, channel)) = slot.get() {
            return Ok(Loan { channel, slot: at, made });
        }
        if let Some((failed, message)) = &gate.failed
            && *failed >= asked
        {
            return Err(message.clone());
        }
        // The endpoint's own timeout does not cover the name lookup.
        let connecting = heard::connect(&self.endpoint, self.connect_timeout);
        let message = match tokio::time::timeout(self.connect_timeout, connecting).await {
            Ok(Ok(channel)) => {
                gate.made += 1;
                slot.set(Some((gate.made, channel.clone())));
                return Ok(Loan { channel, slot: at, made: gate.made });
            }
            Ok(Err(cause)) => cause,
            Err(_) => format!("no connection within {}", plain(self.connect_timeout)),
        };
        gate.failed = Some((Instant::now(), message.clone()));
        Err(message)
    }

    /// Discards a failed connection, so that the next call opens a new one.
    pub(crate) fn give_up(&self, loan: &Loan) {
        let slot = &self.slots[loan.slot];
        if slot.get().is_some_and(|(made, _)| made == loan.made) {
            slot.set(None);
        }
    }

    /// Records that the node did not respond, so that other nodes are preferred for a while.
    pub(crate) fn shun(&self) {
        let mut shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let pause = match *shunned {
            // One failure that affects many calls counts once.
            Some(Shunned { until, .. }) if until > now => return,
            Some(Shunned { last, .. }) => (last * 2).min(SHUN_MAX),
            None => SHUN_FIRST,
        };
        *shunned = Some(Shunned { until: now + pause, last: pause });
    }

    /// Records that the node responded.
    pub(crate) fn welcome(&self) {
        *self.shunned.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn is_shunned(&self) -> bool {
        let shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        shunned.is_some_and(|shunned| shunned.until > Instant::now())
    }
}

impl Slot {
    fn get(&self) -> Option<(u64, Channel)> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, ready: Option<(u64, Channel)>) {
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = ready;
    }
}

/// Returns `host:port` from an address in one of the usual notations.
pub(crate) fn bare_address(address: &str) -> Result<String, Error> {
    let trimmed = address.trim();
    if trimmed.starts_with("https://") {
        return Err(Error::invalid(format!(
            "{trimmed}: this client does not support TLS yet; use http:// inside a private network"
        )));
    }
    let bare = trimmed.strip_prefix("http://").unwrap_or(trimmed).trim_end_matches('/');
    let port = bare
        .rsplit_once(':')
        .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok()).flatten());
    match port {
        Some(port) if port > 0 && !bare.contains('/') => Ok(bare.to_owned()),
        _ => Err(Error::invalid(format!(
            "{address:?} is not an endpoint: write host:port, for example 127.0.0.1:7101"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_host_and_port() {
        assert_eq!(bare_address(" http://localhost:7101/ ").unwrap(), "localhost:7101");
        assert_eq!(bare_address("[::1]:7101").unwrap(), "[::1]:7101");
        for bad in ["", "localhost", ":7101", "host:0", "host:99999", "host:1/path", "https://h:1"]
        {
            assert!(bare_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_silent_node_is_shunned_until_it_answers() {
        let node = Node::new("127.0.0.1:7101", 1, Duration::from_secs(1)).unwrap();
        assert!(!node.is_shunned());
        node.shun();
        assert!(node.is_shunned());
        node.welcome();
        assert!(!node.is_shunned());
    }
}
