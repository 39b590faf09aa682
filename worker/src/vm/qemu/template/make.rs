//! Makes a template: boots a guest that is nobody, waits until it says that it waits, saves it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use stoker_schemas::{VmId, limits::clip};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener,
        unix::pipe::{OpenOptions, Receiver},
    },
};

use super::super::{
    command::Memory,
    launch::Launcher,
    qmp::{Qmp, QmpError},
};
use super::{
    resume::{fifo, leave_out_memory},
    store::{Key, MAX_STATE_BYTES, MEMORY, NOTE, STATE, Store},
};
use crate::{
    ports::vm::{VmError, VmPlan},
    vm::{
        files::{self, ShortDir},
        process::VmmProcess,
    },
};

/// What the guest says when all that is left is to become somebody.
const READY: &[u8] = b"template ready";
/// From its start to that; a boot in software translation takes 3-10 s.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// For saving it, and again for QEMU's end.
const SAVE_DEADLINE: Duration = Duration::from_secs(30);
/// Between looks at whether QEMU has finished saving; what it sent is here by then.
const LOOK: Duration = Duration::from_millis(5);
/// The socket that the state comes through.
const STATE_SOCKET: &str = "state.sock";
/// What is kept of the console while waiting, bytes.
const HEARD_BYTES: usize = 4 * 1024;
/// What of it an error repeats, bytes.
const LAST_WORDS_BYTES: usize = 400;

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file could not be used.
    #[error("{what}: {cause}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The system's words.
        cause: io::Error,
    },
    /// QEMU did not start.
    #[error(transparent)]
    Vmm(#[from] VmError),
    /// QEMU did not do what it was asked to.
    #[error("QEMU could not save the guest: {0}")]
    Qmp(#[from] QmpError),
    /// QEMU gave up.
    #[error("QEMU could not save the guest: {0}")]
    Save(String),
    /// The guest is not made for it, or did not boot.
    #[error(
        "the guest did not say \"template ready\" ({why}); if its agent cannot, leave \"prewarmed\" out of image.json; \
         its last words: {last_words}"
    )]
    Guest {
        /// What happened instead.
        why: &'static str,
        /// The end of its console.
        last_words: String,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> TemplateError {
    move |cause| TemplateError::File { what, cause }
}

/// A template in the making; its folder goes with it unless it is published.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    state_blake3: String,
}

impl Draft {
    fn create(dir: PathBuf) -> Result<Self, TemplateError> {
        fs::create_dir(&dir).map_err(failed("a folder for the template"))?;
        Ok(Self { dir, state_blake3: String::new() })
    }

    /// Moves it to the others.
    pub fn publish(self, store: &Store, key: &Key) -> Result<(), TemplateError> {
        let keep = [MEMORY, STATE, NOTE];
        let tidy = || -> io::Result<()> {
            for entry in fs::read_dir(&self.dir)?.flatten() {
                if !keep.iter().any(|name| entry.file_name() == *name) {
                    fs::remove_file(entry.path())?;
                }
            }
            store.publish(&self.dir, key, self.state_blake3.clone())
        };
        tidy().map_err(failed("moving the template to the others"))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Published, it is not here any more; else the reaper has it, too.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Boots and saves one for this plan, in a folder below `drafts`.
pub async fn make(launcher: &Launcher, plan: &VmPlan, drafts: &Path) -> Result<Draft, TemplateError> {
    let vm = VmId(uuid::Uuid::now_v7());
    let mut draft = Draft::create(drafts.join(vm.to_string()))?;
    let args = plan.template_args.clone().unwrap_or_default();
    let plan = VmPlan { vm, kernel_args: args, dir: draft.dir.clone(), ..plan.clone() };
    let console = lay_serial(&plan.dir).map_err(failed("the guest's serial line"))?;
    let memory = plan.dir.join(MEMORY);
    let starting = launcher.start(&plan, Memory::Template(&memory), std::process::Stdio::null()).await?;
    let Some(process) = starting.process().cloned() else { return Err(TemplateError::Save("it is gone".to_owned())) };
    let saved = async {
        let mut qmp = launcher.connect(&plan.dir, &process).await?;
        until_ready(console, &process).await?;
        let saving = save(&mut qmp, &plan.dir);
        tokio::time::timeout(SAVE_DEADLINE, saving).await.map_err(|_| QmpError::Timeout(SAVE_DEADLINE))?
    };
    let saved = saved.await;
    // Its memory file is complete once the process that maps it is gone.
    starting.abandon().await;
    draft.state_blake3 = saved?;
    Ok(draft)
}

/// Both ends; ours is open before QEMU writes, and for writing, too, so that it never ends.
fn lay_serial(dir: &Path) -> io::Result<Receiver> {
    let out = dir.join(files::SERIAL_OUT);
    fifo(&dir.join(files::SERIAL_IN))?;
    fifo(&out)?;
    OpenOptions::new().read_write(true).open_receiver(out)
}

async fn until_ready(mut console: Receiver, process: &VmmProcess) -> Result<(), TemplateError> {
    let mut heard = Vec::new();
    let listening = async {
        let mut piece = [0; 1024];
        loop {
            let read = console.read(&mut piece).await.map_err(failed("the guest's serial line"))?;
            heard.extend_from_slice(piece.get(..read).unwrap_or_default());
            if heard.windows(READY.len()).any(|window| window == READY) {
                return Ok(());
            }
            heard.drain(..heard.len().saturating_sub(HEARD_BYTES));
        }
    };
    let why = tokio::select! {
        said = listening => return said,
        _ = process.wait() => "it ended",
        () = tokio::time::sleep(BOOT_DEADLINE) => "in time",
    };
    let text = String::from_utf8_lossy(&heard);
    let from = text.char_indices().rev().nth(LAST_WORDS_BYTES).map_or(0, |(at, _)| at);
    let last_words = clip(text.get(from..).unwrap_or_default().trim(), LAST_WORDS_BYTES);
    Err(TemplateError::Guest { why, last_words })
}

/// Has QEMU write the guest's state; returns its hash.
async fn save(qmp: &mut Qmp, dir: &Path) -> Result<String, TemplateError> {
    let short = ShortDir::open(dir).map_err(failed("the template's folder"))?;
    let listener = UnixListener::bind(short.file(STATE_SOCKET)).map_err(failed("a socket for the state"))?;
    leave_out_memory(qmp).await?;
    qmp.execute_with("migrate", json!({"uri": format!("unix:{STATE_SOCKET}")})).await?;
    let (stream, _) = listener.accept().await.map_err(failed("a socket for the state"))?;
    let mut state = Vec::new();
    stream.take(MAX_STATE_BYTES + 1).read_to_end(&mut state).await.map_err(failed("receiving the state"))?;
    if state.len() as u64 > MAX_STATE_BYTES {
        return Err(TemplateError::Save(format!("its state has more than {MAX_STATE_BYTES} bytes")));
    }
    let mut file = tokio::fs::File::create(dir.join(STATE)).await.map_err(failed("writing the state"))?;
    file.write_all(&state).await.map_err(failed("writing the state"))?;
    file.flush().await.map_err(failed("writing the state"))?;
    completed(qmp).await?;
    Ok(blake3::hash(&state).to_hex().to_string())
}

async fn completed(qmp: &mut Qmp) -> Result<(), TemplateError> {
    loop {
        let answer = qmp.execute("query-migrate").await?;
        match answer.get("status").and_then(Value::as_str) {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                return Err(TemplateError::Save(clip(&answer.to_string(), LAST_WORDS_BYTES)));
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}
