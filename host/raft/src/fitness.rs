//! The facts that decide whether this node may lead and may propose.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::disk::DiskWatch;
use conclave_types::error::Error;

/// The reason why a node must not lead.
#[derive(Clone, Debug)]
pub(super) enum Unfit {
    Disk(Duration),
    Clock(String),
    Stopping,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(busy) => {
                write!(f, "the disk has not completed a write for {:.1} s", busy.as_secs_f64())
            }
            Self::Clock(why) => f.write_str(why),
            Self::Stopping => f.write_str("this node is shutting down"),
        }
    }
}

/// This node's fitness to lead, and its running proposals.
pub(super) struct Fitness {
    disk: DiskWatch,
    stopping: AtomicBool,
    clock: Mutex<Option<String>>,
    /// Set while proposals are rejected, because another node is about to lead.
    transferring: AtomicBool,
    /// The number of proposals that openraft has received and not answered.
    proposals: Arc<AtomicUsize>,
    hung: watch::Sender<bool>,
}

/// A running proposal.
pub(super) struct Proposal(Arc<AtomicUsize>);

impl Drop for Proposal {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fitness {
    pub(super) fn new(disk: DiskWatch) -> Self {
        Self {
            disk,
            stopping: AtomicBool::new(false),
            clock: Mutex::new(None),
            transferring: AtomicBool::new(false),
            proposals: Arc::default(),
            hung: watch::Sender::new(false),
        }
    }

    /// Counts a proposal, or rejects it while leadership is being transferred.
    pub(super) fn propose(&self) -> Result<Proposal, Error> {
        // Counted before the check, because a transfer sets the flag before it reads the count.
        self.proposals.fetch_add(1, Ordering::SeqCst);
        let proposal = Proposal(self.proposals.clone());
        if self.transferring.load(Ordering::SeqCst) {
            return Err(Error::not_leader(None));
        }
        Ok(proposal)
    }

    /// Returns the number of running proposals.
    pub(super) fn proposals(&self) -> usize {
        self.proposals.load(Ordering::SeqCst)
    }

    /// Rejects or permits new proposals.
    pub(super) fn set_transferring(&self, transferring: bool) {
        self.transferring.store(transferring, Ordering::SeqCst);
    }

    /// Sets or clears a fault of this node's clock. The node must not lead with a fault.
    pub(super) fn set_clock_fault(&self, fault: Option<String>) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Publishes whether the disk hangs.
    pub(super) fn set_hung(&self, hung: bool) {
        self.hung.send_if_modified(|known| std::mem::replace(known, hung) != hung);
    }

    /// Waits until the disk hangs.
    pub(super) async fn disk_hangs(&self) {
        let mut hung = self.hung.subscribe();
        if hung.wait_for(|hung| *hung).await.is_err() {
            std::future::pending().await
        }
    }

    /// Records that this node is about to stop.
    pub(super) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Returns whether this node is about to stop, or has stopped.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Returns the reason why this node must not lead, if there is one.
    pub(super) fn unfit(&self) -> Option<Unfit> {
        if let Some(busy) = self.disk.hung_for() {
            return Some(Unfit::Disk(busy));
        }
        if self.is_stopping() {
            return Some(Unfit::Stopping);
        }
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.clone().map(Unfit::Clock)
    }
}
