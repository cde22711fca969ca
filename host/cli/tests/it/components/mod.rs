//! The life of an upgrade, with real processes: push, rehearse, activate, roll back, under load and under
//! losses, and whatever else is handed in as a component.
//!
//! The machines count. Each version is a component of its own; what they count is the same, so that no
//! acknowledged call may be missing at the end, whichever component applied it.

mod kept_code;
mod load;
mod losses;
mod machines;
mod refusals;
mod replays;
mod slow;
mod upgrades;
