//! What KVM was seen to do with each kernel. The trial measures the processor; whether a kernel boots is
//! for the kernel to show, with its first byte on the console.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{Accel, AccelDecision, Note};
use crate::vm::{
    files::{self, FileFacts},
    process::VmmProcess,
};

/// Kernels remembered; a host has a few. More are forgotten together and looked at again.
const MAX_KNOWN: usize = 256;
/// Between looks at a console that is still empty.
const LOOK: Duration = Duration::from_millis(10);

/// What is known of a kernel with KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It wrote to its console.
    Runs,
    /// It wrote nothing with KVM, and wrote with TCG.
    NeedsTcg,
    /// It wrote nothing with either: its console says nothing about the accelerator.
    Mute,
}

/// How waiting for the first byte ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstByte {
    /// It came.
    Came,
    /// It did not come in time, or the VMM ended without.
    Missing,
}

/// Waits until a VM's console has its first byte; without a time, as long as its VMM lives.
pub async fn first_byte(dir: &Path, process: &VmmProcess, within: Option<Duration>) -> FirstByte {
    let console = dir.join(files::CONSOLE);
    let deadline = within.map(|within| Instant::now() + within);
    loop {
        // Before the look: an ended VMM has written all it ever will.
        let over = process.ended().is_some() || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if std::fs::metadata(&console).is_ok_and(|meta| meta.len() > 0) {
            return FirstByte::Came;
        }
        if over {
            return FirstByte::Missing;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The accelerator of a host, kernel by kernel.
#[derive(Debug, Clone)]
pub struct Kernels {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    decision: AccelDecision,
    known: Mutex<HashMap<FileFacts, Verdict>>,
    note: Option<Note>,
    changes: watch::Sender<Option<String>>,
}

impl Kernels {
    /// With this decision for the host, and what an earlier worker found of kernels.
    pub fn new(decision: AccelDecision, note: Option<Note>) -> Self {
        let silent = note.as_ref().map(Note::kernels_for_tcg).unwrap_or_default();
        let known = silent.into_iter().map(|kernel| (kernel, Verdict::NeedsTcg)).collect();
        let (changes, _) = watch::channel(None);
        Self { shared: Arc::new(Shared { decision, known: Mutex::new(known), note, changes }) }
    }

    /// What a VM of this kernel is booted with.
    pub fn accel(&self, kernel: &Path) -> Accel {
        match self.verdict(kernel) {
            Some(Verdict::NeedsTcg) => Accel::Tcg,
            _ => self.shared.decision.accel,
        }
    }

    /// Within which time this kernel must write to its console to show that KVM runs it; `None` when that is
    /// known, or cannot be seen.
    pub fn must_speak_within(&self, kernel: &Path, kernel_args: &str) -> Option<Duration> {
        // Without a measurement, the operator chose KVM.
        let speed = self.shared.decision.speed.filter(|_| self.shared.decision.accel == Accel::Kvm)?;
        let silent = !writes_to_serial_port(kernel_args) || self.verdict(kernel).is_some();
        (!silent).then(|| speed.first_byte_within())
    }

    /// KVM runs this kernel.
    pub fn runs(&self, kernel: &Path) {
        self.learn(kernel, Verdict::Runs);
    }

    /// It wrote nothing with KVM within `waited`, and was started again with TCG as `process`: what it does there
    /// decides, in the background.
    pub fn decide_by_tcg(&self, kernel: &Path, dir: &Path, process: VmmProcess, waited: Duration) {
        let (this, kernel, dir) = (self.clone(), kernel.to_owned(), dir.to_owned());
        let began = Instant::now();
        tokio::spawn(async move {
            let first = first_byte(&dir, &process, None).await;
            this.decide(&kernel, first, began.elapsed(), waited);
        });
    }

    fn decide(&self, kernel: &Path, with_tcg: FirstByte, lived: Duration, waited: Duration) {
        match with_tcg {
            FirstByte::Came => self.needs_tcg(kernel, waited),
            // A VM that was removed early (cancelled, a short deadline) had no time to speak: the next one decides.
            FirstByte::Missing if lived < waited => {}
            FirstByte::Missing => drop(self.learn(kernel, Verdict::Mute)),
        }
    }

    /// For `describe`: the decision, and the kernels that it does not hold for.
    pub fn describe(&self) -> String {
        let known = self.known();
        let mut names: Vec<_> = known.iter().filter(|(_, v)| **v == Verdict::NeedsTcg).map(|(k, _)| name(k)).collect();
        names.sort();
        match (self.shared.decision.accel, names.is_empty()) {
            (Accel::Kvm, false) => {
                format!("{}; TCG for {}, silent with KVM", self.shared.decision, names.join(", "))
            }
            _ => self.shared.decision.to_string(),
        }
    }

    /// Why `describe` last changed; `None` at first.
    pub fn changes(&self) -> watch::Receiver<Option<String>> {
        self.shared.changes.subscribe()
    }

    /// The measured speed, where KVM is used.
    pub fn label(&self, accel: Accel) -> String {
        match self.shared.decision.speed.filter(|_| accel == Accel::Kvm) {
            Some(speed) => format!("{}, {speed}", accel.as_str()),
            None => accel.as_str().to_owned(),
        }
    }

    fn needs_tcg(&self, kernel: &Path, waited: Duration) {
        if !self.learn(kernel, Verdict::NeedsTcg) {
            return;
        }
        let seconds = waited.as_secs_f32();
        let why = format!(
            "kernel {} does not boot with KVM (no byte on its console after {seconds:.1} s) and boots with TCG: this host \
             boots it with TCG until it is restarted",
            kernel.display()
        );
        tracing::warn!(kernel = %kernel.display(), "{why}");
        if let Some(note) = &self.shared.note {
            let silent =
                self.known().iter().filter(|(_, v)| **v == Verdict::NeedsTcg).map(|(k, _)| k.clone()).collect();
            note.needs_tcg(silent);
        }
        self.shared.changes.send_replace(Some(why));
    }

    /// Whether that was new.
    fn learn(&self, kernel: &Path, verdict: Verdict) -> bool {
        // A kernel that is gone has nothing to be remembered by.
        let Ok(facts) = FileFacts::of(kernel) else { return false };
        let mut known = self.known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(facts, verdict) != Some(verdict)
    }

    fn verdict(&self, kernel: &Path) -> Option<Verdict> {
        self.known().get(&FileFacts::of(kernel).ok()?).copied()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<FileFacts, Verdict>> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kernel, with the folder it is in: that is its image.
fn name(kernel: &FileFacts) -> String {
    let parts: Vec<_> = kernel.path.iter().rev().take(2).map(|part| part.to_string_lossy().into_owned()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

/// Whether a kernel with these arguments writes to the first serial port while it starts. A quiet one may
/// boot without a word.
fn writes_to_serial_port(kernel_args: &str) -> bool {
    let mut args = kernel_args.split_ascii_whitespace();
    let shows = |arg: &str| {
        let port = arg.strip_prefix("console=").or_else(|| arg.strip_prefix("earlyprintk="));
        port.is_some_and(|port| port.split(',').any(|part| part == "ttyS0" || part == "uart8250"))
    };
    args.clone().any(shows) && !args.any(|arg| arg == "quiet" || arg.starts_with("loglevel="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::qemu::accel::Speed;

    const ARGS: &str = "console=ttyS0 panic=-1";

    fn host(accel: Accel) -> AccelDecision {
        let speed = Some(Speed { mips: 2_000, exit_us: Some(4) });
        AccelDecision { accel, reason: "a trial guest ran at 2000 MIPS".to_owned(), speed, lasting: true }
    }

    fn kernel(dir: &Path) -> std::path::PathBuf {
        let image = dir.join("linux");
        std::fs::create_dir_all(&image).unwrap();
        let kernel = image.join("vmlinux");
        std::fs::write(&kernel, "kernel").unwrap();
        kernel
    }

    #[test]
    fn only_a_kernel_that_would_be_heard_is_waited_for_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path());
        let kernels = Kernels::new(host(Accel::Kvm), None);
        assert_eq!(kernels.must_speak_within(&kernel, ARGS), Some(Duration::from_secs(5)));
        for quiet in ["", "console=hvc0", "console=ttyS0 quiet", "console=ttyS0 loglevel=3", "xconsole=ttyS0"] {
            assert_eq!(kernels.must_speak_within(&kernel, quiet), None, "{quiet}");
        }
        assert!(kernels.must_speak_within(&kernel, "console=ttyS0,115200n8").is_some());
        kernels.runs(&kernel);
        assert_eq!(kernels.must_speak_within(&kernel, ARGS), None);
        assert_eq!(Kernels::new(host(Accel::Tcg), None).must_speak_within(&kernel, ARGS), None);
        let set = AccelDecision { speed: None, ..host(Accel::Kvm) };
        assert_eq!(Kernels::new(set, None).must_speak_within(&kernel, ARGS), None, "the operator chose KVM");
    }

    #[test]
    fn a_kernel_that_needs_tcg_is_remembered_over_restarts_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path());
        let note = || Note::open(dir.path().join("accel.json"), Path::new("qemu"));
        let kernels = Kernels::new(host(Accel::Kvm), Some(note()));
        let changes = kernels.changes();
        kernels.needs_tcg(&kernel, Duration::from_secs(5));
        kernels.needs_tcg(&kernel, Duration::from_secs(5));
        assert_eq!(kernels.accel(&kernel), Accel::Tcg);
        let said = changes.borrow().clone().unwrap();
        assert!(said.contains("linux/vmlinux does not boot with KVM (no byte on its console after 5.0 s)"), "{said}");
        let described = "KVM (a trial guest ran at 2000 MIPS); TCG for linux/vmlinux, silent with KVM";
        assert_eq!(kernels.describe(), described);
        let again = Kernels::new(host(Accel::Kvm), Some(note()));
        assert_eq!((again.accel(&kernel), again.describe().as_str()), (Accel::Tcg, described));
        assert_eq!(again.must_speak_within(&kernel, ARGS), None);
        std::fs::write(&kernel, "a newer kernel").unwrap();
        assert_eq!(again.accel(&kernel), Accel::Kvm, "another kernel gets its own chance");
    }

    #[test]
    fn a_kernel_that_never_speaks_says_nothing_of_kvm() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path());
        let kernels = Kernels::new(host(Accel::Kvm), None);
        let waited = Duration::from_secs(5);
        kernels.decide(&kernel, FirstByte::Missing, Duration::from_secs(2), waited);
        assert!(kernels.must_speak_within(&kernel, ARGS).is_some(), "a VM that was removed early decides nothing");
        kernels.decide(&kernel, FirstByte::Missing, Duration::from_secs(60), waited);
        assert_eq!(kernels.accel(&kernel), Accel::Kvm);
        assert_eq!(kernels.must_speak_within(&kernel, ARGS), None);
    }
}
