//! Log lines of the state machine in the node's log: from its import `log`, and from its
//! output through WASI.
//!
//! A line is not part of the state, so its handling here may differ between nodes. Its cost may
//! not. The host's work costs the guest no fuel by itself, so the fuel is charged explicitly.

use std::time::{Duration, Instant};

use super::{bindings::conclave::fsm::log::Level, limits::Limits};

/// The fuel of a line. It corresponds to the host's time for a line, about a microsecond.
pub(super) const FUEL_PER_LINE: u64 = 1_000;
/// The fuel of one byte of a line, which the host may copy and check.
pub(super) const FUEL_PER_BYTE: u64 = 1;
/// The maximum length of a logged line in bytes. The rest is cut off.
pub(super) const LINE_BYTES_MAX: usize = 4096;

/// The log lines of one instance.
pub(super) struct GuestLog {
    role: &'static str,
    /// Set on the standby: it applies the entries that the primary has applied, so its lines would
    /// be duplicates.
    muted: bool,
    /// The lines that may be written now, refilled at a steady rate.
    budget: LineBudget,
    dropped: u64,
    /// The last error line, if `keeps_errors` is set. It is the panic message of a state
    /// machine that panics.
    pub(super) last_error: Option<String>,
    pub(super) keeps_errors: bool,
}

impl GuestLog {
    pub(super) fn new(role: &'static str, limits: &Limits) -> Self {
        Self {
            role,
            muted: false,
            budget: LineBudget::new(limits, Instant::now()),
            dropped: 0,
            last_error: None,
            keeps_errors: false,
        }
    }

    /// Keeps the last error line from now on.
    pub(super) fn keep_errors(&mut self) {
        self.keeps_errors = true;
    }

    /// Takes the error line that was kept since the previous call.
    pub(super) fn take_error(&mut self) -> Option<String> {
        self.last_error.take()
    }

    pub(super) fn mute(&mut self, muted: bool) {
        self.muted = muted;
    }

    /// Returns whether lines are suppressed.
    pub(super) fn muted(&self) -> bool {
        self.muted
    }

    /// Writes a line, unless the rate limit is reached.
    pub(super) fn line(&mut self, level: Level, line: &str) {
        if self.admit() {
            self.write(level, line);
        }
    }

    pub(super) fn set_role(&mut self, role: &'static str) {
        self.role = role;
    }

    /// Returns whether another line may be written now.
    pub(super) fn admit(&mut self) -> bool {
        if self.muted {
            return false;
        }
        if !self.budget.take(Instant::now()) {
            // Reported immediately, because the next line may be written much later.
            if self.dropped == 0 {
                tracing::warn!(target: "machine", instance = self.role, "the state machine writes more lines than its limit; some are dropped");
            }
            self.dropped += 1;
            return false;
        }
        true
    }

    pub(super) fn write(&mut self, level: Level, line: &str) {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            tracing::warn!(target: "machine", instance = self.role, dropped, "lines of the state machine were dropped before this one");
        }
        // Control characters are replaced, so that a line of the guest cannot become several.
        let line = super::cut(line, LINE_BYTES_MAX).replace(char::is_control, " ");
        let instance = self.role;
        match level {
            Level::Trace => tracing::trace!(target: "machine", instance, "{line}"),
            Level::Debug => tracing::debug!(target: "machine", instance, "{line}"),
            Level::Info => tracing::info!(target: "machine", instance, "{line}"),
            Level::Warn => tracing::warn!(target: "machine", instance, "{line}"),
            Level::Error => tracing::error!(target: "machine", instance, "{line}"),
        }
    }
}

/// A token bucket: a burst of lines, then a steady rate that does not fill a disk.
struct LineBudget {
    lines: u32,
    burst: u32,
    per_second: u32,
    refilled: Instant,
}

impl LineBudget {
    fn new(limits: &Limits, now: Instant) -> Self {
        let burst = limits.log_lines_burst;
        Self { lines: burst, burst, per_second: limits.log_lines_per_second, refilled: now }
    }

    /// Takes one line out of the budget, if one is left.
    fn take(&mut self, now: Instant) -> bool {
        if self.lines < self.burst && self.per_second > 0 {
            let a_line = Duration::from_secs(1) / self.per_second;
            let elapsed = now.duration_since(self.refilled);
            let earned = u32::try_from(elapsed.as_nanos() / a_line.as_nanos()).unwrap_or(u32::MAX);
            if earned >= self.burst - self.lines {
                (self.lines, self.refilled) = (self.burst, now);
            } else {
                self.lines += earned;
                self.refilled += a_line * earned;
            }
        } else {
            self.refilled = now;
        }
        let is_left = self.lines > 0;
        self.lines = self.lines.saturating_sub(1);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_in_a_burst_and_then_at_a_steady_rate() {
        let limits = Limits { log_lines_burst: 100, log_lines_per_second: 5, ..Limits::default() };
        let start = Instant::now();
        let mut budget = LineBudget::new(&limits, start);
        let mut at = |after: Duration| {
            let now = start + after;
            (0..1000).take_while(|_| budget.take(now)).count()
        };
        assert_eq!(at(Duration::ZERO), 100);
        assert_eq!(at(Duration::from_millis(199)), 0);
        assert_eq!(at(Duration::from_millis(201)), 1);
        assert_eq!(at(Duration::from_secs(10)), 49);
        // A flood of one hour, with an attempt every 10 ms.
        let flood: usize =
            (1..=360_000).map(|tick| at(Duration::from_millis(10_000 + 10 * tick))).sum();
        assert!((17_990..=18_000).contains(&flood), "{flood}");
        assert_eq!(at(Duration::from_secs(10_000)), 100, "the burst is refilled");
    }

    #[test]
    fn without_a_rate_the_burst_is_all() {
        let limits = Limits { log_lines_burst: 3, log_lines_per_second: 0, ..Limits::default() };
        let start = Instant::now();
        let mut budget = LineBudget::new(&limits, start);
        let written = (0..100).filter(|hour| budget.take(start + Duration::from_secs(3600 * hour)));
        assert_eq!(written.count(), 3);
    }
}
