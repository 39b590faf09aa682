//! What a host's worker and its VMMs count, in a file: a worker has no port of its own, and Prometheus' node exporter
//! reads such files (its textfile collector).

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::clock::Clock;
use crate::counts;
use crate::log::EventLog;
use crate::outbox::{Lag, Progress, Refusal};
use crate::ports::vm::{Counter, Hypervisor};

/// As often as Prometheus asks by default.
const WRITE_EVERY: Duration = Duration::from_secs(15);

/// What there is to count.
#[derive(Clone)]
pub struct Counted {
    /// Counts what its VMMs do.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// How far the outbox has come, and the log that it publishes; without one, nothing waits to be published.
    pub outbox: Option<(EventLog, watch::Receiver<Progress>)>,
    /// For ages.
    pub clock: Clock,
}

/// One metric, all its series.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    /// Labels (with their braces) and value.
    series: Vec<(String, u64)>,
}

/// Writes it until dropped.
pub async fn keep(file: PathBuf, counted: Counted) {
    let mut tick = interval(WRITE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        write(&file, &counted);
    }
}

/// Writes it once.
pub fn write(file: &Path, counted: &Counted) {
    if let Err(error) = replace(file, &render(&counted.metrics())) {
        tracing::warn!(file = %file.display(), %error, "counters could not be written");
    }
}

impl Counted {
    fn metrics(&self) -> Vec<Metric> {
        let counter = |name, help, value| Metric { name, help, kind: "counter", series: vec![(String::new(), value)] };
        let mut metrics: Vec<_> = self
            .hypervisor
            .counters()
            .into_iter()
            .map(|Counter { name, help, value }| counter(name, help, value))
            .collect();
        if let Some((log, progress)) = &self.outbox {
            metrics.extend(outbox(log, &progress.borrow().clone(), self.clock));
        }
        let dropped = "Deliveries dropped unsettled and given back: faults of the program.";
        metrics.push(counter("stoker_deliveries_dropped_total", dropped, counts::DELIVERIES_DROPPED.total()));
        metrics.push(Metric {
            name: "stoker_consumer_renewals_total",
            help: "Consumers renewed because deliveries were unaccounted for, or none came although messages waited.",
            kind: "counter",
            series: vec![
                (r#"{reason="unaccounted"}"#.to_owned(), counts::CHANNELS_UNACCOUNTED.total()),
                (r#"{reason="starved"}"#.to_owned(), counts::CHANNELS_STARVED.total()),
            ],
        });
        metrics
    }
}

fn outbox(log: &EventLog, progress: &Progress, clock: Clock) -> Vec<Metric> {
    let gauge = |name, help, series| Metric { name, help, kind: "gauge", series };
    let lag = Lag::measure(log, progress, clock).unwrap_or_default();
    let (unpublished, age) = (lag.events, lag.oldest.map_or(0, |age| age.as_secs()));
    let of_queue = |refusal: &Refusal| (format!("{{queue=\"{}\"}}", refusal.queue), refusal.messages);
    let refused = progress.refusals.iter().map(of_queue).collect();
    vec![
        gauge(
            "stoker_outbox_events",
            "Events in the log that are not published yet.",
            vec![(String::new(), unpublished)],
        ),
        gauge("stoker_outbox_oldest_event_age_seconds", "Age of the oldest of them.", vec![(String::new(), age)]),
        gauge("stoker_outbox_refused_messages", "Messages kept because their queue refuses them.", refused),
    ]
}

/// In one step: who reads it meanwhile reads a whole one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("prom.new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, file)
}

fn render(metrics: &[Metric]) -> String {
    let mut text = String::new();
    for Metric { name, help, kind, series } in metrics {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in series {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_reads_it() {
        let name = "stoker_vmm_net_received_bytes_total";
        let help = "Bytes that guests received.";
        let counter = Metric { name, help, kind: "counter", series: vec![(String::new(), 7)] };
        let wanted = format!("# HELP {name} Bytes that guests received.\n# TYPE {name} counter\n{name} 7\n");
        assert_eq!(render(&[counter]), wanted);
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metrics.prom");
        for text in ["one\n", "two\n"] {
            replace(&file, text).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
