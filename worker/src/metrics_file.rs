//! What a host's worker and its VMMs count, in a file: a worker has no port of its own, and Prometheus' node exporter
//! reads such files (its textfile collector).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::clock::Clock;
use crate::counts;
use crate::log::EventLog;
use crate::metrics::{Metric, label, render};
use crate::outbox::{Lag, Progress};
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
    if let Err(error) = replace(file, &counted.text()) {
        tracing::warn!(file = %file.display(), %error, "counters could not be written");
    }
}

impl Counted {
    /// What stands in the file.
    pub fn text(&self) -> String {
        render(&self.metrics())
    }

    fn metrics(&self) -> Vec<Metric> {
        let counters = self.hypervisor.counters().into_iter();
        let mut metrics: Vec<_> =
            counters.map(|Counter { name, help, value }| Metric::total(name, help, value)).collect();
        if let Some((log, progress)) = &self.outbox {
            metrics.extend(outbox(log, &progress.borrow().clone(), self.clock));
        }
        metrics.extend(counts::metrics());
        metrics
    }
}

fn outbox(log: &EventLog, progress: &Progress, clock: Clock) -> Vec<Metric> {
    let lag = Lag::measure(log, progress, clock).unwrap_or_default();
    let (unpublished, age) = (lag.events, lag.oldest.map_or(0, |age| age.as_secs()));
    let refused = progress.refusals.iter().map(|refusal| (label("queue", &refusal.queue), refusal.messages));
    vec![
        Metric::level("stoker_outbox_events", "Events in the log that are not published yet.", unpublished),
        Metric::level("stoker_outbox_oldest_event_age_seconds", "Age of the oldest of them.", age),
        Metric::gauge("stoker_outbox_refused_messages", "Messages kept because their queue refuses them.", refused),
    ]
}

/// In one step: who reads it meanwhile reads a whole one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("prom.new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

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
