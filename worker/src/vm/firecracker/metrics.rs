//! What Firecracker counts: read from a pipe of each VMM as it comes, added up over all VMs of the host.
//!
//! A pipe, not a file, because a file would grow for as long as the VM lives. Firecracker writes a line
//! of JSON every minute, when it is asked to, and at its end: differences to the line before. A pipe that
//! nobody reads (no worker) fills up and loses lines; the VM goes on.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use tokio::{
    net::unix::pipe::{self, Receiver},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{ports::vm::Counter, vm::files};

/// Longest line; those of 1.12 have some 8 KB.
const MAX_LINE_BYTES: usize = 256 * 1024;
/// Read at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Where a number stands, what it is called here, and what it is.
type Field = (&'static str, &'static str, &'static str);
const FIELDS: [Field; 8] = [
    ("/net/rx_bytes_count", "stoker_vmm_net_received_bytes_total", "Bytes that guests received."),
    ("/net/tx_bytes_count", "stoker_vmm_net_sent_bytes_total", "Bytes that guests sent."),
    (
        "/net/rx_rate_limiter_throttled",
        "stoker_vmm_net_receive_throttled_total",
        "Times that receiving had to wait for its rate.",
    ),
    ("/block/read_bytes", "stoker_vmm_disk_read_bytes_total", "Bytes that guests read from their disks."),
    ("/block/write_bytes", "stoker_vmm_disk_written_bytes_total", "Bytes that guests wrote to their disks."),
    ("/vcpu/failures", "stoker_vmm_vcpu_failures_total", "Failures of virtual CPUs."),
    ("/seccomp/num_faults", "stoker_vmm_seccomp_faults_total", "System calls that a VMM was not allowed."),
    ("/logger/missed_metrics_count", "stoker_vmm_missed_metrics_total", "Lines of counters that nobody read in time."),
];

/// Sums over all VMs since the worker began.
#[derive(Debug, Default)]
pub struct Totals(Mutex<BTreeMap<&'static str, u64>>);

impl Totals {
    /// One line of a VMM. What is not there counts as nothing: versions differ.
    fn add(&self, line: &[u8]) {
        let Ok(told) = serde_json::from_slice::<Value>(line) else { return };
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (pointer, name, _) in FIELDS {
            let more = told.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
            let sum = sums.entry(name).or_default();
            *sum = sum.saturating_add(more);
        }
    }

    pub fn counters(&self) -> Vec<Counter> {
        let sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = |(_, name, help): Field| Counter { name, help, value: sums.get(name).copied().unwrap_or(0) };
        FIELDS.into_iter().map(counter).collect()
    }
}

/// Makes the pipe for a VMM that lives in `home`, as whoever it runs as.
pub fn make_pipe(home: &Path, owner: Option<u32>) -> io::Result<()> {
    files::remove(home, files::METRICS)?;
    let path = home.join(files::METRICS);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    chown(&path, owner, owner)
}

/// Reads one VMM's pipe until it is finished or dropped.
pub struct Reader {
    finish: Mutex<Option<oneshot::Sender<()>>>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    abort: tokio::task::AbortHandle,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

impl Reader {
    /// `None` where there is no pipe: VMs of workers that made none.
    pub fn start(home: &Path, totals: Arc<Totals>) -> Option<Self> {
        let path: PathBuf = home.join(files::METRICS);
        // For writing, too: the pipe then has no end, however often the other side opens it.
        let pipe = pipe::OpenOptions::new().read_write(true).open_receiver(path).ok()?;
        let (finish, finished) = oneshot::channel();
        let task = tokio::spawn(follow(pipe, totals, finished));
        let abort = task.abort_handle();
        Some(Self { finish: Mutex::new(Some(finish)), task: tokio::sync::Mutex::new(Some(task)), abort })
    }

    /// Reads what is there; the VMM has ended. Idempotent.
    pub async fn finish(&self) {
        drop(self.finish.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(task) = self.task.lock().await.take() {
            let _ = task.await;
        }
    }
}

async fn follow(pipe: Receiver, totals: Arc<Totals>, mut finished: oneshot::Receiver<()>) {
    let mut lines = Lines::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let ends = tokio::select! {
            biased;
            ready = pipe.readable() => ready.is_err(),
            _ = &mut finished => true,
        };
        while let Ok(count @ 1..) = pipe.try_read(&mut piece) {
            lines.feed(&piece[..count], &totals);
        }
        if ends {
            break;
        }
    }
    // The runtime may not have heard yet of what was written last: the pipe itself is asked.
    while let Ok(count @ 1..) = rustix::io::read(&pipe, &mut piece[..]) {
        lines.feed(&piece[..count], &totals);
    }
}

/// Counters as they come, in whatever pieces.
#[derive(Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
    /// The line is too long: the rest of it is none.
    skips: bool,
}

impl Lines {
    pub(crate) fn feed(&mut self, bytes: &[u8], totals: &Totals) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(part);
            if self.begun.last() == Some(&b'\n') {
                if !std::mem::take(&mut self.skips) {
                    totals.add(&self.begun);
                }
                self.begun.clear();
            } else if self.begun.len() > MAX_LINE_BYTES {
                self.skips = true;
                self.begun.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(totals: &Totals, name: &str) -> u64 {
        totals.counters().into_iter().find(|counter| counter.name == name).unwrap().value
    }

    #[test]
    fn lines_are_added_up_however_they_come_and_whatever_is_among_them() {
        let (totals, mut lines) = (Totals::default(), Lines::default());
        let line = br#"{"net":{"rx_bytes_count":7,"tx_bytes_count":2},"vcpu":{"failures":"x"}}"#;
        for part in line.chunks(5) {
            lines.feed(part, &totals);
        }
        lines.feed(b"\nnonsense\n{\"net\":{\"rx_bytes_count\":1}}\n", &totals);
        lines.feed(&vec![b'x'; 2 * MAX_LINE_BYTES], &totals);
        lines.feed(b"{\"net\":{\"rx_bytes_count\":100}}\n{\"net\":{\"rx_bytes_count\":3}}\n", &totals);
        assert_eq!(sum(&totals, "stoker_vmm_net_received_bytes_total"), 11);
        assert_eq!(sum(&totals, "stoker_vmm_net_sent_bytes_total"), 2);
        assert_eq!(sum(&totals, "stoker_vmm_vcpu_failures_total"), 0);
    }

    #[tokio::test]
    async fn what_was_written_last_is_read_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        make_pipe(dir.path(), None).unwrap();
        let totals = Arc::new(Totals::default());
        let reader = Reader::start(dir.path(), Arc::clone(&totals)).unwrap();
        std::fs::write(dir.path().join(files::METRICS), "{\"block\":{\"read_bytes\":5}}\n").unwrap();
        reader.finish().await;
        reader.finish().await;
        assert_eq!(sum(&totals, "stoker_vmm_disk_read_bytes_total"), 5);
        assert!(Reader::start(Path::new("/nowhere"), totals).is_none());
    }
}
