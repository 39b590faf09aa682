//! What a host's VMMs count, in a file: a worker has no port of its own, and Prometheus' node exporter
//! reads such files (its textfile collector).

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::ports::vm::{Counter, Hypervisor};

/// As often as Prometheus asks by default.
const WRITE_EVERY: Duration = Duration::from_secs(15);

/// Writes it until dropped; nothing where nothing is counted.
pub async fn keep(file: PathBuf, hypervisor: Arc<dyn Hypervisor>) {
    let mut tick = interval(WRITE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        write(&file, &*hypervisor);
    }
}

/// Writes it once.
pub fn write(file: &Path, hypervisor: &dyn Hypervisor) {
    let counters = hypervisor.counters();
    if counters.is_empty() {
        return;
    }
    if let Err(error) = replace(file, &render(&counters)) {
        tracing::warn!(file = %file.display(), %error, "counters could not be written");
    }
}

/// In one step: who reads it meanwhile reads a whole one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("prom.new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, file)
}

fn render(counters: &[Counter]) -> String {
    let mut text = String::new();
    for Counter { name, help, value } in counters {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_reads_it() {
        let name = "stoker_vmm_net_received_bytes_total";
        let counter = Counter { name, help: "Bytes that guests received.", value: 7 };
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
