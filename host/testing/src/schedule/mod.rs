//! Which faults happen when: from a seed, as text, and back.
//!
//! A schedule is a list of lines, `BEGIN+LENGTH FAULT`, in milliseconds:
//!
//! ```text
//! nodes 3 length 20000 snapshots
//! 1200+900 pause leader
//! 3000+1500 cut leader node-2
//! ```
//!
//! Which node leads is found out when a fault begins, so the same schedule does not give the same run twice; it
//! gives the same kind of run.

mod generate;
mod text;

use std::fmt;

pub use self::generate::Available;

/// The node that a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The node that leads when the fault begins.
    Leader,
    /// The n-th node that does not lead then, from 1.
    Follower(u64),
    /// A certain node.
    Node(u64),
}

/// The fault.
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
    /// The links to and from a node hold their bytes. In the end the answers are released, those of one node after
    /// those of the other, and then everything.
    Hold(Target),
    /// The same of the links to a node only.
    HoldInbound(Target),
    /// The leader is deposed while the answers of its followers are on their way. The flag: whether it is paused
    /// meanwhile. See [`late_answers`](crate::late_answers).
    LateAnswers(bool),
    /// The connections of a node are reset, and new ones too.
    Refuse(Target),
    /// All links take so many milliseconds.
    DelayAll(u64),
    /// The links of a node take so many milliseconds.
    Delay(Target, u64),
    /// The links of a node carry so many bytes per second.
    Throttle(Target, u64),
    /// The disk of a node takes no writes.
    HangDisk(Target),
    /// The clock of a node is off by so many seconds.
    Clock(Target, i64),
    /// A command of the state machine traps, several times.
    Trap,
    /// A node has other limits than the others, so that one put has an effect there and traps on the others.
    Diverge(Target),
    /// A node takes a snapshot and purges its log.
    Snapshot(Target),
    /// Another component is activated.
    Upgrade,
}

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it begins, in milliseconds from the beginning of the run.
    pub at_ms: u64,
    /// How long it lasts, in milliseconds.
    pub for_ms: u64,
    /// The fault.
    pub fault: Fault,
}

/// The schedule of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The number of nodes.
    pub nodes: u64,
    /// How long clients and faults run, in milliseconds.
    pub length_ms: u64,
    /// Whether nodes take snapshots often and keep little of the log.
    pub snapshots: bool,
    /// The steps, by time.
    pub events: Vec<Event>,
}

impl Fault {
    /// Its name, without the nodes.
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
