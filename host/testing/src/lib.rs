//! Test harness for clusters under faults: checks consistency and availability.
//!
//! - [`cluster`]: nodes as real processes, which can be killed, stopped, paused and restarted
//! - [`proxy`]: the network between the nodes; each direction of each link can be cut, held or delayed
//! - [`disk`] and [`clock`]: a disk that hangs, and a clock that is wrong
//! - [`workload`]: concurrent clients that read, write and watch
//! - [`history`]: the clients' requests and answers, with their times
//! - [`linearizability`]: checks whether one order of the operations explains all answers
//! - [`invariants`]: checks of watches, indexes and replays
//! - [`schedule`]: faults and their times, from a seed or a text
//! - [`late_answers`]: answers that reach a leader after it was deposed
//! - [`chaos`]: a run with all of the above
//! - [`soak`]: a long run without faults, in which the use of resources must stay bounded
//! - [`restart`]: measures restarts, and the time without a standby after a trap
//! - [`timeline`]: shows a history as a page for a browser
//!
//! For tests only. The program `chaos` runs many seeds: see `cargo xtask chaos --help`.

pub mod chaos;
pub mod clock;
pub mod cluster;
pub mod components;
pub mod counters;
pub mod disk;
pub mod history;
pub mod hostile;
pub mod invariants;
pub mod late_answers;
pub mod linearizability;
pub mod program;
pub mod proxy;
pub mod random;
pub mod restart;
pub mod schedule;
pub mod soak;
pub mod timeline;
pub mod wat;
pub mod workload;
