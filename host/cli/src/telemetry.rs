//! The node's log on standard error.
//!
//! A log that cannot be written never stops or slows a node. Lines go to a queue with a limit, and
//! a separate thread writes them. A line is dropped and counted if the queue is full because the
//! reader is slow or does not read. The same happens to a line whose write fails because the reader
//! is gone or the disk is full.
//!
//! `tracing-appender` is not used: it does not count failed writes, and at the end of the process
//! it prints to standard output, which blocks if both streams go to the same reader.

use std::{
    env,
    io::{self, IsTerminal, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use conclave::config::{LOG_VARIABLE, LogFormat};
use conclave_api::LOG_LINES_DROPPED;
use conclave_types::error::chain;

/// The default log filter. openraft logs each step of a working cluster at `info`, and each failed
/// heartbeat at `warn`.
const FILTER_DEFAULT: &str = "info,openraft=error,sled=warn,h2=warn,hyper=warn,tonic=warn";
/// Maximum size of the queue in bytes: some thousands of lines.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Maximum time to write the queue at the end of the process.
const FLUSH_TIME_MAX: Duration = Duration::from_millis(500);
/// Pause before a retry of a write to a descriptor that another program made non-blocking.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The log of this process. Dropping this waits a short time until the queue is written.
#[must_use]
#[derive(Debug)]
pub struct Log(Option<Queue>);

/// Starts logging. A second start, as in a test, changes nothing.
///
/// # Errors
/// The value of `CONCLAVE_LOG` is not a filter.
pub fn start(format: LogFormat) -> Result<Log, String> {
    let filter = match env::var(LOG_VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::builder().parse(&text).map_err(|error| {
            format!("{LOG_VARIABLE} = {text:?} is not a filter: {}", chain(&error))
        })?,
        _ => EnvFilter::new(FILTER_DEFAULT),
    };
    let Ok(queue) = Queue::start(io::stderr()) else { return Ok(Log(None)) };
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(queue.clone())
        // The subscriber would print its own errors, which panics when standard error cannot
        // be written.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal() && !no_color);
    let started = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    Ok(Log(started.is_ok().then_some(queue)))
}

/// Returns the number of lines that were not written, because the reader was too slow or the
/// write failed.
pub fn lines_dropped() -> u64 {
    LOG_LINES_DROPPED.load(Ordering::Relaxed)
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(queue) = &self.0 {
            queue.flush(FLUSH_TIME_MAX);
        }
    }
}

/// A queue of lines to write. Each line is in the queue as a whole or not at all.
#[derive(Clone, Debug, Default)]
struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    lines: Vec<u8>,
    /// Whether the thread is writing lines that it took from the queue.
    is_writing: bool,
}

impl Queue {
    fn start(mut out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Self::default();
        let of_thread = queue.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            let mut lines = Vec::new();
            loop {
                of_thread.take(&mut lines);
                let dropped = write_lines(&mut out, &lines);
                LOG_LINES_DROPPED.fetch_add(dropped, Ordering::Relaxed);
            }
        })?;
        Ok(queue)
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines and swaps them with the buffer of written ones.
    fn take(&self, written: &mut Vec<u8>) {
        written.clear();
        let mut pending = self.lock();
        pending.is_writing = false;
        self.0.changed.notify_all();
        while pending.lines.is_empty() {
            pending = self.0.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        pending.is_writing = true;
        mem::swap(&mut pending.lines, written);
    }

    fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let mut pending = self.lock();
        while pending.is_writing || !pending.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.changed.wait_timeout(pending, left);
            pending = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut pending = self.lock();
        if pending.lines.len() + line.len() <= QUEUE_BYTES_MAX {
            pending.lines.extend_from_slice(line);
            self.0.changed.notify_all();
        } else {
            LOG_LINES_DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Queue {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Writes lines and returns the number of lines that were not written completely.
fn write_lines(out: &mut impl Write, mut lines: &[u8]) -> u64 {
    while !lines.is_empty() {
        match out.write(lines) {
            Ok(0) => break,
            Ok(written) => lines = &lines[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
            Err(_) => break,
        }
    }
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::{atomic::AtomicU8, mpsc};

    use super::*;

    const CLOSED: u8 = 0;
    const OPEN: u8 = 1;
    const BROKEN: u8 = 2;

    /// A reader whose state the test sets: it does not read, reads, or is gone.
    struct Gate(Arc<AtomicU8>, mpsc::Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            loop {
                match self.0.load(Ordering::Relaxed) {
                    CLOSED => thread::sleep(Duration::from_millis(1)),
                    OPEN => {
                        self.1.send(bytes.to_vec()).unwrap();
                        return Ok(bytes.len());
                    }
                    _ => return Err(io::ErrorKind::BrokenPipe.into()),
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// One test for all cases, because the counter is global to the process.
    #[test]
    fn lines_that_are_not_read_or_not_written_are_counted() {
        let gate = Arc::new(AtomicU8::new(CLOSED));
        let (sent, written) = mpsc::channel();
        let mut queue = Queue::start(Gate(gate.clone(), sent)).unwrap();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..3 * QUEUE_BYTES_MAX / line.len() {
            queue.write_all(&line).unwrap();
        }
        // The queue is full, and up to as many bytes again are being written.
        let dropped = lines_dropped();
        assert!(dropped >= (QUEUE_BYTES_MAX / line.len()) as u64, "{dropped}");
        let began = Instant::now();
        Queue::flush(&queue, Duration::from_millis(50));
        assert!(began.elapsed() >= Duration::from_millis(50), "nothing was read");

        gate.store(OPEN, Ordering::Relaxed);
        Queue::flush(&queue, Duration::from_secs(60));
        let whole: Vec<u8> = written.try_iter().flatten().collect();
        assert!(!whole.is_empty() && whole.chunks(line.len()).all(|chunk| chunk == line));
        assert_eq!(lines_dropped(), dropped);

        gate.store(BROKEN, Ordering::Relaxed);
        queue.write_all(b"one\ntwo\n").unwrap();
        Queue::flush(&queue, Duration::from_secs(60));
        assert_eq!(lines_dropped(), dropped + 2);
    }
}
