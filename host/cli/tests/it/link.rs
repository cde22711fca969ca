//! TCP proxy in front of a node's peer port, which can throttle and cut connections.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::harness::free_address;

/// The proxy. Dropping this stops it.
pub(crate) struct Link {
    pub address: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    /// Maximum bytes per second towards the node; 0: no limit.
    rate: AtomicU64,
    /// The number of bytes that have passed towards the node.
    passed: AtomicU64,
    /// The number of passed bytes at which all connections are cut.
    cut_at: AtomicU64,
    /// Whether existing connections are silent: no byte passes, and neither end is notified.
    silent: watch::Sender<bool>,
    /// A counter that changes when the connections are cut.
    cuts: watch::Sender<u64>,
    /// The time at which the next byte may pass.
    next: Mutex<Instant>,
}

impl Link {
    pub(crate) async fn to(target: String) -> Self {
        let address = free_address();
        let listener = TcpListener::bind(&address).await.unwrap();
        let state = Arc::new(State {
            rate: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
            silent: watch::Sender::new(false),
            cuts: watch::Sender::new(0),
            next: Mutex::new(Instant::now()),
        });
        let task = tokio::spawn({
            let state = state.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(run(client, target.clone(), state.clone()));
                }
            }
        });
        Self { address, state, task }
    }

    /// Limits the bytes per second towards the node; 0 is no limit.
    pub(crate) fn throttle(&self, bytes_per_second: u64) {
        self.state.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Cuts all connections once this many more bytes have passed.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.state.cut_at.store(self.passed() + bytes, Ordering::Relaxed);
    }

    /// Returns the number of bytes that have passed towards the node.
    pub(crate) fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Relaxed)
    }

    /// Makes all existing connections silent permanently, and new ones until [`Link::appear`], as
    /// if the host at the other end had vanished.
    pub(crate) fn vanish(&self) {
        self.state.silent.send_replace(true);
    }

    /// Lets new connections work again.
    pub(crate) fn appear(&self) {
        self.state.silent.send_replace(false);
    }

    pub(crate) fn was_cut(&self) -> bool {
        *self.state.cuts.borrow() > 0
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn run(client: TcpStream, target: String, state: Arc<State>) {
    let mut cut = state.cuts.subscribe();
    let mut silent = state.silent.subscribe();
    if *silent.borrow() {
        let _ = cut.changed().await;
        return;
    }
    let Ok(node) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), node.set_nodelay(true));
    let ((mut from, mut back), (mut answers, mut to)) = (client.into_split(), node.into_split());
    tokio::select! {
        _ = cut.changed() => {}
        _ = forward(&mut from, &mut to, &state) => {}
        _ = tokio::io::copy(&mut answers, &mut back) => {}
        _ = async { silent.wait_for(|silent| *silent).await.map(drop) } => {
            let _ = cut.changed().await;
        }
    }
}

async fn forward(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    state: &State,
) -> std::io::Result<()> {
    let mut piece = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        let rate = state.rate.load(Ordering::Relaxed);
        if rate > 0 {
            let turn = {
                let mut next = state.next.lock().unwrap();
                let turn = (*next).max(Instant::now());
                *next = turn + Duration::from_secs_f64(length as f64 / rate as f64);
                turn
            };
            sleep_until(turn).await;
        }
        to.write_all(&piece[..length]).await?;
        let passed = state.passed.fetch_add(length as u64, Ordering::Relaxed) + length as u64;
        if passed >= state.cut_at.load(Ordering::Relaxed) {
            state.cut_at.store(u64::MAX, Ordering::Relaxed);
            state.cuts.send_modify(|cuts| *cuts += 1);
        }
    }
}
