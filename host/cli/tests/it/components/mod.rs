//! Upgrades with real processes: push, rehearse, activate, roll back, under load and losses, and
//! invalid components.
//!
//! The state machines count. Each version is a component of its own. They all continue the same
//! count, so finally no acknowledged call may be missing, whichever component applied it.

mod kept_code;
mod load;
mod losses;
mod machines;
mod refusals;
mod replays;
mod slow;
mod upgrades;
