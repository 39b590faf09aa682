//! What was found about KVM, written down for this boot of the host. Only a note: without it the next start
//! tries again.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::AccelDecision;
use crate::vm::files::FileFacts;

/// Changes when the trial does: what an earlier Stoker found is found again then.
const FORMAT: u32 = 2;
/// A note is a few hundred bytes; more is not one of ours.
const MAX_BYTES: u64 = 256 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    format: u32,
    host_boot: String,
    qemu: PathBuf,
    decision: Option<AccelDecision>,
    kernels_for_tcg: Vec<FileFacts>,
}

/// The note of a host.
#[derive(Debug, Clone)]
pub struct Note {
    file: PathBuf,
    content: Arc<Mutex<Content>>,
}

impl Note {
    /// Opens it; one of another boot of the host, another QEMU or another Stoker counts as empty.
    pub fn open(file: PathBuf, qemu: &Path) -> Self {
        let host_boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let empty =
            Content { format: FORMAT, host_boot, qemu: qemu.to_owned(), decision: None, kernels_for_tcg: Vec::new() };
        let fits = |found: &Content| {
            (found.format, &found.host_boot, &found.qemu) == (empty.format, &empty.host_boot, &empty.qemu)
        };
        let content = read(&file).filter(fits).unwrap_or(empty);
        Self { file, content: Arc::new(Mutex::new(content)) }
    }

    /// What an earlier trial of this boot of the host decided.
    pub fn decision(&self) -> Option<AccelDecision> {
        self.lock().decision.clone()
    }

    /// Kernels that KVM does not run.
    pub fn kernels_for_tcg(&self) -> Vec<FileFacts> {
        self.lock().kernels_for_tcg.clone()
    }

    /// Writes down what a trial decided, if it holds until the host is restarted.
    pub fn decided(&self, decision: &AccelDecision) {
        self.change(|content| content.decision = Some(decision.clone()).filter(|decision| decision.lasting));
    }

    /// Writes down which kernels KVM does not run.
    pub fn needs_tcg(&self, kernels: Vec<FileFacts>) {
        self.change(|content| content.kernels_for_tcg = kernels);
    }

    fn change(&self, change: impl FnOnce(&mut Content)) {
        let mut content = self.lock();
        change(&mut content);
        let draft = self.file.with_extension("json.new");
        let written = serde_json::to_vec(&*content).map_err(io::Error::other);
        let written = written.and_then(|text| std::fs::write(&draft, text));
        if let Err(error) = written.and_then(|()| std::fs::rename(&draft, &self.file)) {
            tracing::warn!(%error, file = %self.file.display(), "what was found about KVM could not be written down");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &Path) -> Option<Content> {
    if std::fs::metadata(file).ok()?.len() > MAX_BYTES {
        return None;
    }
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::qemu::accel::{Accel, Speed};

    #[test]
    fn what_holds_is_read_back_and_what_does_not_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("accel.json");
        let note = |qemu: &str| Note::open(file.clone(), Path::new(qemu));
        let decision = AccelDecision::judge(Ok(Speed { mips: 3, exit_us: None }));
        note("qemu").decided(&decision);
        assert_eq!(note("qemu").decision(), Some(decision.clone()));
        assert_eq!(note("another qemu").decision(), None);
        // As an earlier Stoker wrote it: a pair, whose decision had only heard a guest say something.
        std::fs::write(&file, r#"["boot id",{"accel":"kvm","reason":"a trial guest ran","tried":true}]"#).unwrap();
        assert_eq!(note("qemu").decision(), None);
        note("qemu").decided(&AccelDecision { accel: Accel::Tcg, lasting: false, ..decision });
        assert_eq!(note("qemu").decision(), None, "what was missing may be there at the next start");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"format\":2", "\"format\":1")).unwrap();
        assert_eq!(note("qemu").decision(), None);
    }
}
