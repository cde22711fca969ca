//! The metrics of this layer.
//!
//! Labels come from closed sets: served methods and gRPC codes. A call is counted once, when it is answered
//! or abandoned, in the histogram of its method and code. The histogram's `_count` is the counter.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use conclave_metrics::{Counter, Gauge, Histogram, HistogramFamily, Registry};
use tokio::time::Instant;
use tonic::Code;

use conclave_types::GRPC_CODE_NAMES;

/// Upper bounds in seconds. A local read takes about 100 µs; the default deadline is 10 s.
const SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// The metrics of the client port.
pub(super) struct Metrics {
    requests: HistogramFamily<2>,
    /// Calls in progress: those of clients and those of operators.
    pub(super) in_flight: [Arc<AtomicUsize>; 2],
    pub(super) connections: Gauge,
    pub(super) connections_refused: Counter,
    pub(super) unknown_methods: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub(super) fn new(registry: &Registry) -> Self {
        let in_flight: [Arc<AtomicUsize>; 2] = Default::default();
        let gauge = registry.gauge("conclave_requests_in_flight", "Calls in progress.");
        registry.on_scrape({
            let in_flight = in_flight.clone();
            move || {
                let calls: usize =
                    in_flight.iter().map(|calls| calls.load(Ordering::Relaxed)).sum();
                gauge.set(calls as i64);
            }
        });
        Self {
            requests: registry.histogram_family(
                "conclave_request_seconds",
                "Duration of calls on the client port, in seconds.",
                ["method", "code"],
                &SECONDS,
            ),
            in_flight,
            connections: registry
                .gauge("conclave_client_connections", "Open connections on the client port."),
            connections_refused: registry.counter(
                "conclave_client_connections_refused_total",
                "Connections closed because there were too many, or because they did not speak HTTP/2.",
            ),
            unknown_methods: registry
                .counter("conclave_unknown_methods_total", "Calls of unknown methods."),
        }
    }

    /// Returns the metrics of a served method.
    pub(super) fn method(&self, name: &str) -> MethodMetrics {
        MethodMetrics {
            requests: self.requests.clone(),
            name: name.to_owned(),
            by_code: [const { OnceLock::new() }; GRPC_CODE_NAMES.len()],
        }
    }
}

/// The histograms of one method. Each is created when its code first occurs.
pub(super) struct MethodMetrics {
    requests: HistogramFamily<2>,
    name: String,
    by_code: [OnceLock<Histogram>; GRPC_CODE_NAMES.len()],
}

impl MethodMetrics {
    fn record(&self, code: Code, seconds: f64) {
        let code = code as usize;
        self.by_code[code]
            .get_or_init(|| self.requests.with([&self.name, GRPC_CODE_NAMES[code]]))
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

    /// Goal: each name in the table stands at its code's number. Method: tonic's names are the same words in CamelCase.
    #[test]
    fn names_of_codes_are_in_order() {
        for (number, name) in GRPC_CODE_NAMES.iter().enumerate() {
            let code = format!("{:?}", Code::from_i32(number as i32));
            assert_eq!(code.to_uppercase(), name.replace('_', ""));
        }
    }
}
