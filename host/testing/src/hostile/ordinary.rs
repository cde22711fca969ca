//! Ordinary clients, and the durations of their calls.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use conclave_client::{
    Client, Code, Error,
    proto::kv::{PutRequest, put_request},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::cluster::Cluster;

/// Pause between two calls of one client.
const PAUSE: Duration = Duration::from_millis(20);
/// Maximum duration of a successful probe.
const PROBE_TIME_MAX: Duration = Duration::from_secs(1);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of failed probes in a row. By default, orchestrators end a process after some
/// failures in a row.
const PROBES_FAILED_MAX: u32 = 2;
const FAILURES_MAX: usize = 20;

/// The durations and failures of the clients' calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    times: Vec<Duration>,
    /// Number of calls that a documented limit rejected, by error message.
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) failures: Vec<String>,
    probes: u64,
}

impl Measured {
    pub(super) fn calls(&self) -> usize {
        self.times.len()
    }

    fn percentile(&self, share: f64) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = (times.len() as f64 * share) as usize;
        times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    pub(super) fn p99(&self) -> Duration {
        self.percentile(0.99)
    }

    fn fail(&mut self, failure: String) {
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(failure);
        }
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls, p50 {:.1?}, p99 {:.1?}, longest {:.1?}; {} probes",
            self.calls(),
            self.percentile(0.5),
            self.p99(),
            self.percentile(1.0),
            self.probes
        )?;
        for (message, count) in &self.refused {
            write!(f, "\n  refused {count} times: {message}")?;
        }
        Ok(())
    }
}

/// Running clients.
pub(super) struct Ordinary {
    measured: Arc<Mutex<Measured>>,
    stopping: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Ordinary {
    pub(super) fn start(cluster: &Cluster, clients: u64) -> Result<Self> {
        let (measured, stopping) =
            (Arc::<Mutex<Measured>>::default(), Arc::<AtomicBool>::default());
        let mut tasks = Vec::new();
        for number in 0..clients {
            let client = cluster.client()?;
            tasks.push(tokio::spawn(calls(client, number, measured.clone(), stopping.clone())));
        }
        for node in &cluster.nodes {
            let admin = node.admin.clone();
            tasks.push(tokio::spawn(probes(admin, measured.clone(), stopping.clone())));
        }
        Ok(Self { measured, stopping, tasks })
    }

    pub(super) async fn stop(self) -> Result<Measured> {
        self.stopping.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("a client panicked")?;
        }
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(measured.clone())
    }
}

async fn calls(
    client: Client,
    number: u64,
    measured: Arc<Mutex<Measured>>,
    stopping: Arc<AtomicBool>,
) {
    let kv = client.kv().retry_unknown(true);
    for round in 0_u64.. {
        if stopping.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("ordinary/{number}/{}", round / 2 % 100);
        let began = Instant::now();
        let result = match round % 2 {
            0 => {
                let content = Some(put_request::Content::Text(format!("{round:0256}")));
                let put = PutRequest { key, content, ..PutRequest::default() };
                kv.put(&put).await.map(drop)
            }
            _ => kv.get(&key).await.map(drop),
        };
        let time = began.elapsed();
        {
            let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
            measured.times.push(time);
            if let Err(error) = result {
                note(&mut measured, &error);
            }
        }
        sleep(PAUSE).await;
    }
}

/// Rejections by a limit are counted by message. Every other error is a failure.
fn note(measured: &mut Measured, error: &Error) {
    let message = error.to_string();
    match error.code() {
        Code::ResourceExhausted => *measured.refused.entry(message).or_default() += 1,
        code => measured.fail(format!("a call failed with {code:?}: {message}")),
    }
}

/// Requests `/livez` periodically, as an orchestrator does.
async fn probes(admin: String, measured: Arc<Mutex<Measured>>, stopping: Arc<AtomicBool>) {
    let mut failed = 0;
    while !stopping.load(Ordering::Relaxed) {
        let answer = timeout(PROBE_TIME_MAX, probe(&admin)).await;
        let lives = matches!(&answer, Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200"));
        failed = if lives { 0 } else { failed + 1 };
        {
            let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
            measured.probes += 1;
            if failed >= PROBES_FAILED_MAX {
                measured.fail(format!("{admin}/livez failed {failed} times in a row: {answer:?}"));
            }
        }
        sleep(PROBE_INTERVAL).await;
    }
}

async fn probe(admin: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
