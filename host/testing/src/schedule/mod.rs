//! Schedules of faults: from a seed, as text, and from text.
//!
//! A schedule is a list of lines, `BEGIN+LENGTH FAULT`, in milliseconds:
//!
//! ```text
//! nodes 3 length 20000 snapshots
//! 1200+900 pause leader
//! 3000+1500 cut leader node-2
//! ```
//!
//! The leader is determined when a fault begins. So the same schedule does not give the same run
//! twice, but the same kind of run.

mod generate;
mod text;

use std::fmt;

pub use self::generate::Available;

/// The node that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The leader at the beginning of the fault.
    Leader,
    /// The n-th follower at that time, starting at 1.
    Follower(u64),
    /// The node with this id.
    Node(u64),
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGSTOP, then SIGCONT.
    Pause(Target),
    /// SIGKILL, then a start.
    Kill(Target),
    /// SIGTERM, then a start.
    Stop(Target),
    /// SIGKILL of all nodes, then their starts.
    KillAll,
    /// All links of a node lose their bytes.
    Isolate(Target),
    /// The links to a node lose their bytes.
    Deafen(Target),
    /// The links from a node lose their bytes.
    Mute(Target),
    /// The links between two nodes lose their bytes, in both directions.
    Cut(Target, Target),
    /// The link from one node to another loses its bytes.
    CutOneWay(Target, Target),
    /// The links to and from a node hold their bytes. At the end the answers are released, one node
    /// after the other, and then all other bytes.
    Hold(Target),
    /// Same as `Hold`, but only for the links to the node.
    HoldInbound(Target),
    /// The leader is deposed while the answers of its followers are in transit. The flag selects
    /// whether the leader is paused meanwhile. See [`late_answers`](crate::late_answers).
    LateAnswers(bool),
    /// The connections of a node are reset, including new ones.
    Refuse(Target),
    /// All links delay bytes by this number of milliseconds.
    DelayAll(u64),
    /// The links of a node delay bytes by this number of milliseconds.
    Delay(Target, u64),
    /// The links of a node carry this number of bytes per second.
    Throttle(Target, u64),
    /// Writes to the disk of a node hang.
    HangDisk(Target),
    /// The clock of a node is off by this number of seconds.
    Clock(Target, i64),
    /// A command of the state machine traps, several times.
    Trap,
    /// A node skips an entry that the others apply, so that it diverges from them.
    Diverge(Target),
    /// A node takes a snapshot and purges its log.
    Snapshot(Target),
    /// Another component is activated.
    Upgrade,
}

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Time of its beginning, in milliseconds from the beginning of the run.
    pub at_ms: u64,
    /// Its duration, in milliseconds.
    pub for_ms: u64,
    /// The fault.
    pub fault: Fault,
}

/// The schedule of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The number of nodes.
    pub nodes: u64,
    /// The duration of clients and faults, in milliseconds.
    pub length_ms: u64,
    /// Whether nodes take snapshots often and keep little of the log.
    pub snapshots: bool,
    /// The events, sorted by time.
    pub events: Vec<Event>,
}

impl Fault {
    /// The fault's name, without the nodes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pause(_) => "pause",
            Self::Kill(_) => "kill",
            Self::Stop(_) => "stop",
            Self::KillAll => "kill-all",
            Self::Isolate(_) => "isolate",
            Self::Deafen(_) => "deafen",
            Self::Mute(_) => "mute",
            Self::Cut(..) => "cut",
            Self::CutOneWay(..) => "cut-one-way",
            Self::Hold(_) => "hold",
            Self::HoldInbound(_) => "hold-inbound",
            Self::LateAnswers(false) => "late-answers",
            Self::LateAnswers(true) => "late-answers-paused",
            Self::Refuse(_) => "refuse",
            Self::DelayAll(_) => "delay-all",
            Self::Delay(..) => "delay",
            Self::Throttle(..) => "throttle",
            Self::HangDisk(_) => "hang-disk",
            Self::Clock(..) => "clock",
            Self::Trap => "trap",
            Self::Diverge(_) => "diverge",
            Self::Snapshot(_) => "snapshot",
            Self::Upgrade => "upgrade",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("leader"),
            Self::Follower(number) => write!(f, "follower-{number}"),
            Self::Node(id) => write!(f, "node-{id}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Pause(target)
            | Self::Kill(target)
            | Self::Stop(target)
            | Self::Isolate(target)
            | Self::Deafen(target)
            | Self::Mute(target)
            | Self::Hold(target)
            | Self::HoldInbound(target)
            | Self::Refuse(target)
            | Self::HangDisk(target)
            | Self::Diverge(target)
            | Self::Snapshot(target) => write!(f, " {target}"),
            Self::Cut(one, other) | Self::CutOneWay(one, other) => write!(f, " {one} {other}"),
            Self::Delay(target, number) | Self::Throttle(target, number) => {
                write!(f, " {target} {number}")
            }
            Self::Clock(target, seconds) => write!(f, " {target} {seconds}"),
            Self::DelayAll(number) => write!(f, " {number}"),
            Self::KillAll | Self::LateAnswers(_) | Self::Trap | Self::Upgrade => Ok(()),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{} {}", self.at_ms, self.for_ms, self.fault)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshots = if self.snapshots { " snapshots" } else { "" };
        writeln!(f, "nodes {} length {}{snapshots}", self.nodes, self.length_ms)?;
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}
