//! The same VM without Stoker: the VMM's own command line, its API called plainly, and a loop that
//! asks for `/health` from the moment the VMM is started.
//!
//! The command line is Stoker's own, read from a running VMM, so that both boot the same machine.
//! Tap and reservation are made before the clock starts: what is compared with is the least that a
//! boot can cost here.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stoker_schemas::{Epoch, HostName, JobId, VmId};
use stoker_worker::net::Namespace;
use stoker_worker::ports::net::{AttachRequest, NetSignal, Network};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::{DEADLINE, Fallible};

/// Between two tries to reach the agent, or the VMM's socket.
const POLL_EVERY: Duration = Duration::from_millis(1);
/// Patience with one try: a SYN sent too early is answered never or a second later.
const TRY_WITHIN: Duration = Duration::from_millis(10);
/// Read of an answer at most.
const ANSWER_BYTES: usize = 4_096;
const AGENT_PORT: u16 = 8_080;

/// What to boot.
pub struct Recipe {
    /// Program and arguments of a VMM that Stoker started.
    command: Vec<String>,
    /// The VM they were for.
    of: VmId,
    /// Requests to Firecracker's API, in order; none for QEMU.
    api: Vec<Request>,
}

/// Method, path and body.
type Request = (&'static str, &'static str, Value);

/// Where.
pub struct Place {
    pub network: Arc<dyn Network>,
    pub namespace: Namespace,
    pub address: Ipv4Addr,
    /// A folder for one folder per boot.
    pub dir: PathBuf,
    pub host: HostName,
}

/// Milliseconds of one boot.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Tap and reservation; before the clock starts.
    pub attach: f64,
    /// From the start of the VMM to the DHCP server's ACK.
    pub dhcp_ack: f64,
    /// From the start of the VMM to its last answer about what to run.
    pub told: f64,
    /// From the start of the VMM to the first 200.
    pub healthy: f64,
}

impl Recipe {
    /// From the VMM of this VM, which runs.
    pub fn of_running(vm: VmId, vm_dir: &Path) -> Fallible<Self> {
        let record: Value = serde_json::from_slice(&std::fs::read(vm_dir.join("vm.json"))?)?;
        let pid = record["pid"].as_u64().ok_or("vm.json names no pid")?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let command = String::from_utf8(line)?.split_terminator('\0').map(str::to_owned).collect();
        Ok(Self { command, of: vm, api: Vec::new() })
    }

    /// With what Firecracker is told over its API.
    pub fn with_api(mut self, kernel: &Path, kernel_args: &str, memory_mib: u32) -> Self {
        let nic = json!({"iface_id": "eth0", "host_dev_name": self.of.tap(), "guest_mac": self.of.mac().to_string()});
        let boot_args = format!("{kernel_args} stoker.vm_id={}", self.of);
        self.api = vec![
            ("PUT", "/machine-config", json!({"vcpu_count": 1, "mem_size_mib": memory_mib})),
            ("PUT", "/boot-source", json!({"kernel_image_path": kernel, "boot_args": boot_args})),
            ("PUT", "/network-interfaces/eth0", nic),
            ("PUT", "/actions", json!({"action_type": "InstanceStart"})),
        ];
        self
    }

    /// The same VMM for this VM, going on from a snapshot of it.
    fn of_snapshot(&self, vm: VmId, files: &Path) -> Self {
        let load = json!({
            "snapshot_path": files.join("state"),
            "mem_backend": {"backend_type": "File", "backend_path": files.join("memory")},
            "resume_vm": true,
        });
        let command = self.command.iter().map(|word| self.renamed(word, vm)).collect();
        Self { command, of: vm, api: vec![("PUT", "/snapshot/load", load)] }
    }

    fn renamed(&self, text: &str, to: VmId) -> String {
        let names = [(self.of.to_string(), to.to_string()), (self.of.tap(), to.tap())];
        let macs = (self.of.mac().to_string(), to.mac().to_string());
        names.into_iter().chain([macs]).fold(text.to_owned(), |text, (from, to)| text.replace(&from, &to))
    }

    fn command(&self, vm: VmId, dir: &Path) -> Fallible<Command> {
        let (program, arguments) = self.command.split_first().ok_or("the VMM has no command line")?;
        let file = |name: &str| std::fs::File::options().create(true).append(true).open(dir.join(name));
        file("vmm.log")?;
        let mut command = Command::new(program);
        command.args(arguments.iter().map(|a| self.renamed(a, vm))).current_dir(dir);
        command.stdin(Stdio::null()).stdout(file("console.log")?).stderr(file("vmm.stderr")?);
        Ok(command)
    }

    /// The requests as bytes, made before the clock starts.
    fn requests(&self, vm: VmId) -> Vec<String> {
        self.api
            .iter()
            .map(|(method, path, body)| request(method, path, &self.renamed(&body.to_string(), vm)))
            .collect()
    }
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn fresh_vm(place: &Place) -> VmId {
    VmId::derive(JobId(uuid::Uuid::now_v7()), Epoch::first(1), &place.host)
}

/// Boots, waits for the first 200, and removes everything.
pub async fn boot(recipe: &Recipe, place: &Place) -> Fallible<Times> {
    boot_as(recipe, place, fresh_vm(place), &[]).await
}

/// Firecracker's guest, saved once it was healthy.
pub struct Snapshot {
    recipe: Recipe,
    vm: VmId,
}

impl Snapshot {
    /// Boots one and saves it below the place's folder.
    pub async fn take(recipe: &Recipe, place: &Place) -> Fallible<Self> {
        let (vm, files) = (fresh_vm(place), place.dir.join("snapshot"));
        std::fs::create_dir(&files)?;
        let paths = json!({
            "snapshot_type": "Full", "snapshot_path": files.join("state"), "mem_file_path": files.join("memory"),
        });
        let save = [
            request("PATCH", "/vm", &json!({"state": "Paused"}).to_string()),
            request("PUT", "/snapshot/create", &paths.to_string()),
        ];
        boot_as(recipe, place, vm, &save).await?;
        Ok(Self { recipe: recipe.of_snapshot(vm, &files), vm })
    }

    /// Goes on from it in a fresh process, waits for the first 200, and removes everything.
    pub async fn load(&self, place: &Place) -> Fallible<Times> {
        boot_as(&self.recipe, place, self.vm, &[]).await
    }
}

/// With these requests to its API once it is healthy.
async fn boot_as(recipe: &Recipe, place: &Place, vm: VmId, at_last: &[String]) -> Fallible<Times> {
    let dir = place.dir.join(vm.to_string());
    std::fs::create_dir(&dir)?;
    let before = Instant::now();
    let request = AttachRequest {
        vm,
        address: Some(place.address),
        agent_port: AGENT_PORT,
        dhcp: true,
        reach: Default::default(),
    };
    let attachment = place.network.attach(request).await?;
    let attach = millis(before);
    // Listened to until the end: that is what makes the network note its neighbour.
    let acked = tokio::spawn(ack(attachment.signals));
    let ran = run(recipe, place, vm, &dir, at_last).await;
    place.network.detach(vm, Some(place.address)).await?;
    std::fs::remove_dir_all(&dir)?;
    let (clock, told, healthy) = ran?;
    let dhcp_ack = acked.await?.map_or(f64::NAN, |at| at.saturating_duration_since(clock).as_secs_f64() * 1_000.0);
    Ok(Times { attach, dhcp_ack, told, healthy })
}

/// When the guest got its address; listens on until the network has nothing more to say.
async fn ack(mut signals: mpsc::Receiver<NetSignal>) -> Option<Instant> {
    let mut first = None;
    while let Some(signal) = signals.recv().await {
        if matches!(signal, NetSignal::Ack(_)) {
            first.get_or_insert_with(Instant::now);
        }
    }
    first
}

/// When the clock started; milliseconds until it was told everything, and until it was healthy.
async fn run(
    recipe: &Recipe,
    place: &Place,
    vm: VmId,
    dir: &Path,
    at_last: &[String],
) -> Fallible<(Instant, f64, f64)> {
    let mut command = recipe.command(vm, dir)?;
    let (requests, socket) = (recipe.requests(vm), dir.join("api.sock"));
    let agent = SocketAddr::from((place.address, AGENT_PORT));
    let clock = Instant::now();
    let mut child = place.namespace.run(move || command.spawn()).await?;
    let healthy = place.namespace.spawn(until_healthy(agent, clock));
    let told = tokio::task::spawn_blocking(move || call(&socket, &requests).map(|()| millis(clock))).await;
    let (told, outcome) = match told {
        Ok(Ok(told)) => (told, timeout(DEADLINE, healthy).await),
        failed => {
            healthy.abort();
            end(&mut child)?;
            failed??;
            return Err("the VMM was not told what to boot".into());
        }
    };
    let saved = call(&dir.join("api.sock"), at_last);
    end(&mut child)?;
    saved?;
    let healthy = outcome.map_err(|_| format!("by hand, {agent} did not answer within {DEADLINE:?}"))??;
    Ok((clock, told, healthy))
}

fn end(child: &mut Child) -> std::io::Result<()> {
    child.kill()?;
    child.wait().map(drop)
}

/// Firecracker's API, each request after the answer to the one before, on one connection.
fn call(socket: &Path, requests: &[String]) -> Fallible<()> {
    if requests.is_empty() {
        return Ok(());
    }
    let mut stream = connect(socket)?;
    let mut answer = [0; ANSWER_BYTES];
    for request in requests {
        stream.write_all(request.as_bytes())?;
        let read = stream.read(&mut answer)?;
        if !answer[..read].starts_with(b"HTTP/1.1 204") {
            return Err(String::from_utf8_lossy(&answer[..read]).into());
        }
    }
    Ok(())
}

fn connect(socket: &Path) -> Fallible<UnixStream> {
    let begun = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if begun.elapsed() > DEADLINE => return Err(error.into()),
            // A VMM does not tell when its socket is there.
            Err(_) => std::thread::sleep(POLL_EVERY),
        }
    }
}

/// Milliseconds until the agent answers 200.
async fn until_healthy(agent: SocketAddr, clock: Instant) -> f64 {
    loop {
        if let Ok(Ok(true)) = timeout(TRY_WITHIN, is_healthy(agent)).await {
            return millis(clock);
        }
        // Polling is what is compared: a boot by hand has nothing better.
        sleep(POLL_EVERY).await;
    }
}

async fn is_healthy(agent: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(agent).await?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {agent}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; ANSWER_BYTES];
    let read = stream.read(&mut answer).await?;
    Ok(answer[..read].starts_with(b"HTTP/1.1 200") || answer[..read].starts_with(b"HTTP/1.0 200"))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}
