//! Clusters under faults: what the tests of consistency and availability are made of.
//!
//! - [`cluster`]: nodes as real processes, which can be killed, stopped, paused and started again;
//! - [`proxy`]: the network between them, in which each direction of each link can be cut, held or slowed down;
//! - [`disk`] and [`clock`]: a disk that hangs, and a clock that is off;
//! - [`workload`]: concurrent clients that read, write and watch;
//! - [`history`]: what they have asked for and what they were answered, and when;
//! - [`linearizability`]: whether one order of the operations explains all answers;
//! - [`invariants`]: what must hold besides: watches, indexes, replays;
//! - [`schedule`]: which faults happen when, from a seed or from a text;
//! - [`late_answers`]: answers that reach a leader after it was deposed;
//! - [`chaos`]: a run with all of these;
//! - [`soak`]: a long run without faults, whose resources must stay bounded;
//! - [`restart`]: how long a restart takes, and a node is without a standby after a trap;
//! - [`timeline`]: a history as a page for a browser.
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
