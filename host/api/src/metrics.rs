//! The metrics of the layer, and the page that shows them.
//!
//! Labels come from closed sets: served methods and gRPC codes. A call is counted once, when it is answered
//! or abandoned, in the histogram of its method and code. The histogram's `_count` is the counter.

use std::{
    fmt::Write,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, Registry, TextEncoder,
};
use tokio::time::Instant;
use tonic::Code;

use super::{Metric, MetricKind, process};
use conclave_types::{
    error::Error,
    status::{NodeStatus, PeerLink, Role},
};

/// Upper bounds in seconds. A local read takes about 100 µs; the default deadline is 10 s.
const SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The layer's own metrics.
pub(super) struct Metrics {
    registry: Registry,
    requests: HistogramVec,
    /// Calls in progress: those of clients and those of operators.
    pub(super) in_flight: [Arc<AtomicUsize>; 2],
    pub(super) connections: IntGauge,
    pub(super) connections_refused: IntCounter,
    pub(super) unknown_methods: IntCounter,
}

impl Metrics {
    /// Registers the metrics. Fails only if two metrics have the same name.
    pub(super) fn new() -> Result<Self, Error> {
        Self::register().map_err(|error| {
            Error::fatal("the metrics could not be set up: report this bug").with_source(error)
        })
    }

    fn register() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let requests = HistogramVec::new(
            HistogramOpts::new(
                "conclave_request_seconds",
                "Duration of calls on the client port, in seconds.",
            )
            .buckets(SECONDS.to_vec()),
            &["method", "code"],
        )?;
        let connections =
            IntGauge::new("conclave_client_connections", "Open connections on the client port.")?;
        let connections_refused = IntCounter::new(
            "conclave_client_connections_refused_total",
            "Connections closed because there were too many, or because they did not speak HTTP/2.",
        )?;
        let unknown_methods =
            IntCounter::new("conclave_unknown_methods_total", "Calls of unknown methods.")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(connections_refused.clone()))?;
        registry.register(Box::new(unknown_methods.clone()))?;
        let in_flight = Default::default();
        Ok(Self {
            registry,
            requests,
            in_flight,
            connections,
            connections_refused,
            unknown_methods,
        })
    }

    /// Returns the metrics of a served method.
    pub(super) fn method(&self, name: &str) -> MethodMetrics {
        MethodMetrics {
            requests: self.requests.clone(),
            name: name.to_owned(),
            by_code: [const { OnceLock::new() }; CODES.len()],
        }
    }

    /// Returns the page in Prometheus' text format.
    pub(super) fn page(&self, node: &NodeStatus, ready: bool, below: Vec<Metric>) -> String {
        let mut page =
            TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default();
        let mut samples = vec![
            Metric::gauge(
                "conclave_requests_in_flight",
                "Calls in progress.",
                self.in_flight.iter().map(|calls| calls.load(Ordering::Relaxed)).sum::<usize>()
                    as f64,
            ),
            ready_metric(ready),
        ];
        samples.extend(node_metrics(node));
        samples.extend(link_metrics(node));
        samples.extend(below);
        samples.extend(process::metrics());
        write_samples(&mut page, samples);
        page
    }
}

/// Returns the page of a node that is starting.
pub(super) fn page_of_start() -> String {
    let mut page = String::new();
    let mut samples = process::metrics();
    samples.push(ready_metric(false));
    write_samples(&mut page, samples);
    page
}

fn ready_metric(ready: bool) -> Metric {
    let value = f64::from(u8::from(ready));
    Metric::gauge("conclave_ready", "1 if this node serves commands and queries, else 0.", value)
}

fn node_metrics(node: &NodeStatus) -> [Metric; 8] {
    let gauge = |name, help, value: u64| Metric::gauge(name, help, value as f64);
    [
        gauge("conclave_raft_term", "Current term.", node.term),
        gauge(
            "conclave_raft_leader",
            "Node id of the leader; 0 if it is unknown.",
            node.leader.unwrap_or(0),
        ),
        gauge(
            "conclave_raft_is_leader",
            "1 if this node is the leader, else 0.",
            u64::from(node.role == Role::Leader),
        ),
        gauge("conclave_raft_last_log_index", "Index of the last log entry.", node.last_log),
        gauge(
            "conclave_raft_committed_index",
            "Highest index known to be committed.",
            node.committed,
        ),
        gauge(
            "conclave_raft_applied_index",
            "Index of the last entry applied to the state machine.",
            node.applied,
        ),
        gauge(
            "conclave_raft_snapshot_index",
            "Last index included in the newest snapshot.",
            node.snapshot,
        ),
        gauge("conclave_raft_purged_index", "Last index purged from the log.", node.purged),
    ]
}

fn link_metrics(node: &NodeStatus) -> Vec<Metric> {
    let of_link = |link: &PeerLink| {
        let peer = link.node_id.to_string();
        [
            Metric::gauge(
                "conclave_peer_connected",
                "1 if this node is connected to the other member, else 0.",
                f64::from(u8::from(link.connected)),
            )
            .label("peer", &peer),
            Metric::gauge(
                "conclave_peer_round_trip_seconds",
                "Smoothed round-trip time to the other member in seconds; 0 if not measured yet.",
                link.round_trip.as_secs_f64(),
            )
            .label("peer", &peer),
        ]
    };
    node.links.iter().flat_map(of_link).collect()
}

fn write_samples(page: &mut String, mut samples: Vec<Metric>) {
    samples.sort_by_key(|sample| sample.name);
    let mut last = "";
    for Metric { name, help, kind, labels, value } in samples {
        if name != last {
            let kind = match kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
            };
            // Writing to a string cannot fail.
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            last = name;
        }
        page.push_str(name);
        for (position, (label, text)) in labels.iter().enumerate() {
            let open = if position == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(page, "{open}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            page.push('}');
        }
        let _ = writeln!(page, " {value}");
    }
}

/// The histograms of one method. Each is created when its code first occurs.
pub(super) struct MethodMetrics {
    requests: HistogramVec,
    name: String,
    by_code: [OnceLock<Histogram>; CODES.len()],
}

impl MethodMetrics {
    fn record(&self, code: Code, seconds: f64) {
        let code = code as usize;
        self.by_code[code]
            .get_or_init(|| self.requests.with_label_values(&[self.name.as_str(), CODES[code]]))
            .observe(seconds);
    }
}

/// A call, from its first byte to its response. It is counted when this value is dropped: as
/// cancelled by the caller, unless it was answered.
pub(super) struct Flight<'a> {
    method: &'a MethodMetrics,
    began: Instant,
    code: Code,
}

impl<'a> Flight<'a> {
    pub(super) fn begin(method: &'a MethodMetrics, began: Instant) -> Self {
        Self { method, began, code: Code::Cancelled }
    }

    pub(super) fn answered(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.method.record(self.code, self.began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name with several labels has one HELP line. Quotes in label values are escaped.
    #[test]
    fn samples_are_grouped_and_escaped() {
        let mut page = String::new();
        let trap = |kind: &str| Metric::counter("traps_total", "Traps.", 2).label("kind", kind);
        write_samples(
            &mut page,
            vec![trap("panic"), Metric::gauge("a", "First.", 0.5), trap("a \"quote\"\n")],
        );
        assert_eq!(
            page,
            "# HELP a First.\n# TYPE a gauge\na 0.5\n\
             # HELP traps_total Traps.\n# TYPE traps_total counter\n\
             traps_total{kind=\"panic\"} 2\ntraps_total{kind=\"a \\\"quote\\\"\\n\"} 2\n"
        );
    }
}
