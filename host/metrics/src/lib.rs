//! The registry of a node's metrics. Every layer registers typed metrics and updates them where it counts.
//!
//! A layer has a struct of metrics, which the node creates and passes to the layer. Values that exist only as state,
//! for example the applied index, are gauges that the layer sets at each scrape ([`Registry::on_scrape`]).
//!
//! Contract: a metric is registered once, with its name, help and labels. Only a bug in the program can break these
//! rules, so they are asserted:
//! * A name begins with `conclave_` or `process_`, consists of lower-case words, and is unique in the registry.
//! * A name contains its base unit, `seconds` or `bytes`, if the metric has one. The name of a counter ends in
//!   `_total`, and no other name does.
//! * The help text is a sentence.
//!
//! Caveats: the values of labels must come from a small closed set, because each combination is kept in memory and in
//! the database of the operator. The registry cannot check that.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus::{HistogramOpts, Opts, TextEncoder, core::Collector};

/// A number that only increases. Clones share it.
pub type Counter = prometheus::IntCounter;
/// A counter of fractions, for example of seconds.
pub type FloatCounter = prometheus::Counter;
/// An integer that can increase and decrease.
pub type Gauge = prometheus::IntGauge;
/// A gauge of fractions, for example of seconds.
pub type FloatGauge = prometheus::Gauge;
/// A distribution of observed values.
pub type Histogram = prometheus::Histogram;

/// The kinds of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`Counter`].
    Counter,
    /// See [`Gauge`].
    Gauge,
    /// See [`Histogram`].
    Histogram,
}

impl Kind {
    /// Returns the name of the kind on the page.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The description of a registered metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The name.
    pub name: &'static str,
    /// The kind.
    pub kind: Kind,
    /// The names of the labels.
    pub labels: Vec<&'static str>,
}

impl Descriptor {
    /// Returns the base unit, which is part of the name. `None` for numbers of things, indexes and flags.
    pub fn unit(&self) -> Option<&'static str> {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.split('_').any(|word| word == *unit))
    }
}

/// The metrics of one node. A clone is another handle to the same registry.
#[derive(Clone, Default)]
pub struct Registry(Arc<Inner>);

#[derive(Default)]
struct Inner {
    registry: prometheus::Registry,
    descriptors: Mutex<Vec<Descriptor>>,
    /// Held during a scrape, so that concurrent scrapes do not see a family while it is replaced.
    updates: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&lock(&self.0.descriptors).len()).finish()
    }
}

/// A gauge with labels whose samples are replaced together. Without labels it is a gauge that may have no value.
#[derive(Clone)]
pub struct GaugeFamily<const LABELS: usize>(prometheus::GaugeVec);

impl<const LABELS: usize> GaugeFamily<LABELS> {
    /// Replaces all samples. To be called before a scrape only, see [`Registry::on_scrape`].
    pub fn replace(&self, samples: impl IntoIterator<Item = ([String; LABELS], f64)>) {
        self.0.reset();
        for (labels, value) in samples {
            self.0.with_label_values(&labels).set(value);
        }
    }
}

impl GaugeFamily<0> {
    /// Sets the value. `None`: it is unknown, and the page does not have the metric.
    pub fn set(&self, value: Option<f64>) {
        self.replace(value.map(|value| ([], value)));
    }
}

/// A histogram with labels.
#[derive(Clone)]
pub struct HistogramFamily<const LABELS: usize>(prometheus::HistogramVec);

impl<const LABELS: usize> HistogramFamily<LABELS> {
    /// Returns the histogram for these values of the labels. The lookup costs more than an observation.
    pub fn with(&self, labels: [&str; LABELS]) -> Histogram {
        self.0.with_label_values(&labels)
    }
}

impl Registry {
    /// Registers a counter.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.register(Kind::Counter, (name, help), &[], Counter::with_opts)
    }

    /// Registers a counter of fractions.
    pub fn float_counter(&self, name: &'static str, help: &'static str) -> FloatCounter {
        self.register(Kind::Counter, (name, help), &[], FloatCounter::with_opts)
    }

    /// Registers a counter with one label, and returns the counter of each value, in the same order.
    pub fn counters<const VALUES: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: [&'static str; VALUES],
    ) -> [Counter; VALUES] {
        let family = self.register(Kind::Counter, (name, help), &[label], |opts| {
            prometheus::IntCounterVec::new(opts, &[label])
        });
        values.map(|value| family.with_label_values(&[value]))
    }

    /// Registers a gauge.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.register(Kind::Gauge, (name, help), &[], Gauge::with_opts)
    }

    /// Registers a gauge of fractions.
    pub fn float_gauge(&self, name: &'static str, help: &'static str) -> FloatGauge {
        self.register(Kind::Gauge, (name, help), &[], FloatGauge::with_opts)
    }

    /// Registers a gauge with labels.
    pub fn gauge_family<const LABELS: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; LABELS],
    ) -> GaugeFamily<LABELS> {
        let family = self.register(Kind::Gauge, (name, help), &labels, |opts| {
            prometheus::GaugeVec::new(opts, &labels)
        });
        GaugeFamily(family)
    }

    /// Registers a gauge that may have no value.
    pub fn optional_gauge(&self, name: &'static str, help: &'static str) -> GaugeFamily<0> {
        self.gauge_family(name, help, [])
    }

    /// Registers a histogram with labels. `bounds` are the upper bounds of its buckets, in ascending order.
    pub fn histogram_family<const LABELS: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; LABELS],
        bounds: &[f64],
    ) -> HistogramFamily<LABELS> {
        let family = self.register(Kind::Histogram, (name, help), &labels, |opts| {
            let opts = HistogramOpts::from(opts).buckets(bounds.to_vec());
            prometheus::HistogramVec::new(opts, &labels)
        });
        HistogramFamily(family)
    }

    fn register<M: Collector + Clone + 'static>(
        &self,
        kind: Kind,
        (name, help): (&'static str, &'static str),
        labels: &[&'static str],
        build: impl FnOnce(Opts) -> prometheus::Result<M>,
    ) -> M {
        assert_name(kind, name);
        assert!(help.ends_with('.'), "{name}: the help text is not a sentence: {help}");
        let registered = build(Opts::new(name, help)).and_then(|metric| {
            self.0.registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        });
        let metric = registered.unwrap_or_else(|error| unreachable!("the metric {name}: {error}"));
        lock(&self.0.descriptors).push(Descriptor { name, kind, labels: labels.to_vec() });
        metric
    }

    /// Calls `update` before each scrape, never concurrently. It sets the gauges of values that exist only as state.
    pub fn on_scrape(&self, update: impl Fn() + Send + 'static) {
        lock(&self.0.updates).push(Box::new(update));
    }

    /// Returns all metrics in Prometheus' text format, version 0.0.4.
    pub fn page(&self) -> String {
        let updates = lock(&self.0.updates);
        for update in &*updates {
            update();
        }
        // Fails only for a metric without samples, and such metrics are not gathered.
        let page = TextEncoder::new().encode_to_string(&self.0.registry.gather());
        page.unwrap_or_else(|error| unreachable!("the metrics cannot be encoded: {error}"))
    }

    /// Returns the descriptions of all metrics, by name. The page lacks those that have no sample yet.
    pub fn descriptors(&self) -> Vec<Descriptor> {
        let mut descriptors = lock(&self.0.descriptors).clone();
        descriptors.sort_by_key(|descriptor| descriptor.name);
        descriptors
    }
}

/// Asserts the conventions for names: <https://prometheus.io/docs/practices/naming/>.
fn assert_name(kind: Kind, name: &str) {
    let is_prefixed = name.starts_with("conclave_") || name.starts_with("process_");
    let is_plain = name.split('_').all(|word| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    });
    assert!(is_prefixed && is_plain, "{name} is not a name of a metric");
    let is_total = name.ends_with("_total");
    assert_eq!(
        is_total,
        kind == Kind::Counter,
        "{name}: a counter, and only a counter, ends in _total"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Goal: the page has one HELP and one TYPE line per metric, labels are escaped, and unknown values are missing.
    #[test]
    fn page_has_every_metric_once() {
        let registry = Registry::default();
        let [panics, limits] =
            registry.counters("conclave_traps_total", "Traps.", "trap", ["panic", "limit"]);
        let offset = registry.optional_gauge("conclave_offset_seconds", "Offset.");
        let info = registry.gauge_family("conclave_info", "Info.", ["name"]);
        registry.on_scrape(move || {
            let name = "a \"quote\"\n".to_owned();
            info.replace([([name], 1.0)]);
            limits.inc();
        });
        panics.inc_by(2);
        let page = "# HELP conclave_info Info.\n# TYPE conclave_info gauge\n\
                    conclave_info{name=\"a \\\"quote\\\"\\n\"} 1\n\
                    # HELP conclave_traps_total Traps.\n# TYPE conclave_traps_total counter\n\
                    conclave_traps_total{trap=\"limit\"} 1\nconclave_traps_total{trap=\"panic\"} 2\n";
        assert_eq!(registry.page(), page);
        offset.set(Some(-0.5));
        assert!(registry.page().contains("\nconclave_offset_seconds -0.5\n"));
        offset.set(None);
        assert!(!registry.page().contains("conclave_offset_seconds"));
    }

    #[test]
    fn samples_of_a_family_are_replaced() {
        let registry = Registry::default();
        let peers = registry.gauge_family("conclave_peer_connected", "Connected.", ["peer"]);
        peers.replace([(["1".to_owned()], 1.0), (["2".to_owned()], 0.0)]);
        peers.replace([(["2".to_owned()], 1.0)]);
        let page = registry.page();
        assert!(page.ends_with("gauge\nconclave_peer_connected{peer=\"2\"} 1\n"), "{page}");
    }

    #[test]
    fn descriptors_name_kind_unit_and_labels() {
        let registry = Registry::default();
        let labels = ["method", "code"];
        registry.histogram_family("conclave_request_seconds", "Duration.", labels, &[0.1, 1.0]);
        registry.float_counter("process_cpu_seconds_total", "Processor time.");
        registry.gauge("conclave_log_live_bytes", "Size.");
        let found = registry.descriptors();
        let of = |at: usize| (found[at].name, found[at].kind.name(), found[at].unit());
        assert_eq!(of(0), ("conclave_log_live_bytes", "gauge", Some("bytes")));
        assert_eq!(of(1), ("conclave_request_seconds", "histogram", Some("seconds")));
        assert_eq!(of(2), ("process_cpu_seconds_total", "counter", Some("seconds")));
        assert_eq!(found[1].labels, ["method", "code"]);
    }

    #[test]
    fn broken_conventions_are_bugs() {
        let refused = |register: fn(&Registry)| {
            let registry = Registry::default();
            registry.gauge("conclave_taken", "Taken.");
            catch_unwind(AssertUnwindSafe(|| register(&registry))).unwrap_err();
        };
        refused(|registry| drop(registry.gauge("conclave_taken", "Taken.")));
        refused(|registry| drop(registry.counter("conclave_calls", "Calls.")));
        refused(|registry| drop(registry.gauge("conclave_calls_total", "Calls.")));
        refused(|registry| drop(registry.gauge("other_calls", "Calls.")));
        refused(|registry| drop(registry.gauge("conclave_Calls", "Calls.")));
        refused(|registry| drop(registry.gauge("conclave_calls", "Calls")));
    }
}
