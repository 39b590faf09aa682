//! Numbers as Prometheus reads them: its text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Hand-written because it is little: names are ours, values are counted elsewhere, and a registry would be a second
//! place that has to be kept in step with the rows and the log.

mod attempts;
mod histogram;

use std::fmt::Write as _;

pub use attempts::AttemptTotals;
pub use histogram::{BOUNDS_US, Histogram, SharedHistogram};

/// One metric with all its series.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    series: Vec<(Labels, Value)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(u64),
    Histogram(Histogram),
}

/// Labels of a series: name and value, unescaped.
pub type Labels = Vec<(&'static str, String)>;

/// One label.
pub fn label(name: &'static str, value: impl ToString) -> Labels {
    vec![(name, value.to_string())]
}

impl Metric {
    /// What only grows, until its process (or its rows) begin again. The name ends in `_total`.
    pub fn counter(name: &'static str, help: &'static str, series: impl IntoIterator<Item = (Labels, u64)>) -> Self {
        Self::numbers(name, help, Kind::Counter, series)
    }

    /// What goes up and down.
    pub fn gauge(name: &'static str, help: &'static str, series: impl IntoIterator<Item = (Labels, u64)>) -> Self {
        Self::numbers(name, help, Kind::Gauge, series)
    }

    /// A counter without labels.
    pub fn total(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::counter(name, help, [(Labels::new(), value)])
    }

    /// A gauge without labels.
    pub fn level(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::gauge(name, help, [(Labels::new(), value)])
    }

    /// Durations by size. The name ends in `_seconds`.
    pub fn histogram(
        name: &'static str,
        help: &'static str,
        series: impl IntoIterator<Item = (Labels, Histogram)>,
    ) -> Self {
        let series = series.into_iter().map(|(labels, value)| (labels, Value::Histogram(value))).collect();
        Self { name, help, kind: Kind::Histogram, series }
    }

    fn numbers(
        name: &'static str,
        help: &'static str,
        kind: Kind,
        series: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        let series = series.into_iter().map(|(labels, value)| (labels, Value::Number(value))).collect();
        Self { name, help, kind, series }
    }

    fn render(&self, text: &mut String) {
        let Self { name, help, kind, series } = self;
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in series {
            match value {
                Value::Number(value) => line(text, name, "", labels, None, value),
                Value::Histogram(histogram) => {
                    for (bound, count) in histogram.cumulative() {
                        line(text, name, "_bucket", labels, Some(&bound), &count);
                    }
                    line(text, name, "_sum", labels, None, &histogram.sum_s());
                    line(text, name, "_count", labels, None, &histogram.count());
                }
            }
        }
    }
}

fn line(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &Labels,
    bound: Option<&str>,
    value: &dyn std::fmt::Display,
) {
    let bound = bound.map(|bound| format!("le=\"{bound}\""));
    let labels = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).chain(bound);
    let labels = labels.collect::<Vec<_>>().join(",");
    let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
    let _ = writeln!(text, "{name}{suffix}{labels} {value}");
}

/// A label's value as it stands between quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// All of them. What has no series is left out: a name alone says nothing.
pub fn render(metrics: &[Metric]) -> String {
    let mut text = String::new();
    metrics.iter().filter(|metric| !metric.series.is_empty()).for_each(|metric| metric.render(&mut text));
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_kind_is_written_as_prometheus_reads_it() {
        let mut boots = Histogram::default();
        boots.add(Duration::from_millis(1_500));
        let metrics = [
            Metric::total("stoker_received_bytes_total", "Bytes that guests received.", 7),
            Metric::gauge("stoker_hosts", "Hosts by\nstatus \\ kind.", [(label("status", "up"), 3)]),
            Metric::histogram("stoker_boot_duration_seconds", "Boots.", [(label("stage", "x"), boots)]),
            Metric::gauge("stoker_nothing", "Without series.", []),
        ];
        let text = render(&metrics);
        let first = "# HELP stoker_received_bytes_total Bytes that guests received.\n\
                     # TYPE stoker_received_bytes_total counter\nstoker_received_bytes_total 7\n\
                     # HELP stoker_hosts Hosts by\\nstatus \\\\ kind.\n# TYPE stoker_hosts gauge\n\
                     stoker_hosts{status=\"up\"} 3\n";
        assert!(text.starts_with(first), "{text}");
        for line in [
            "stoker_boot_duration_seconds_bucket{stage=\"x\",le=\"1\"} 0\n",
            "stoker_boot_duration_seconds_bucket{stage=\"x\",le=\"2.5\"} 1\n",
            "stoker_boot_duration_seconds_bucket{stage=\"x\",le=\"+Inf\"} 1\n",
            "stoker_boot_duration_seconds_sum{stage=\"x\"} 1.5\nstoker_boot_duration_seconds_count{stage=\"x\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("stoker_nothing"), "{text}");
    }

    #[test]
    fn a_labels_value_is_escaped() {
        let series = [(label("host", "a\"b\\c\nd"), 1)];
        let text = render(&[Metric::gauge("stoker_hosts", "Hosts.", series)]);
        assert!(text.ends_with("stoker_hosts{host=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
    }
}
