//! Where a run takes place: a data folder, a network namespace, the programs; gone with the test
//! however it ends.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use stoker_schemas::{JobId, Phase};
use stoker_tests::{processes, setting, skipped};
use stoker_worker::net::Namespace;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    sync::watch,
};
use uuid::Uuid;

/// Longest wait for something that must happen. Emulated guests on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what sends no signal to us: another process, the kernel's tables.
const LOOK: Duration = Duration::from_millis(20);

/// The bridge that `stoker` makes unless told otherwise.
pub const BRIDGE: &str = "stbr0";

/// A user with no rights: `nobody` and `nogroup` of Debian, but nothing depends on the names.
const NOBODY: u32 = 65_534;

/// What a stage needs of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Qemu,
    Firecracker,
}

pub struct Stage {
    pub name: String,
    pub driver: Needs,
    dir: tempfile::TempDir,
    programs: PathBuf,
    images: PathBuf,
    firecracker: Option<PathBuf>,
    /// Settings of the worker beyond its flags.
    config: Option<PathBuf>,
    /// Who runs the programs; `None` for the user of the tests.
    user: Option<u32>,
}

/// Polls: what is waited for happens in other processes, which have no way to tell us.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("{what} did not happen within {PATIENCE:?}"))
}

impl Stage {
    /// `None`, with a line that says why, where it cannot be played.
    pub fn open(test: &str, driver: Needs, image: &str) -> Option<Self> {
        let programs = setting(test, "STOKER_TEST_BIN_DIR")?;
        let images = setting(test, "STOKER_TEST_IMAGES")?;
        if !images.join(image).join("image.json").exists() {
            skipped(test, &format!("image {image} is missing (scripts/dev image makes it)"));
            return None;
        }
        let user = Command::new("id").arg("-u").output().unwrap().stdout;
        if user.trim_ascii() != b"0" {
            skipped(test, "needs root");
            return None;
        }
        let mut tools = vec![("dnsmasq", "--version"), ("ip", "-V")];
        let mut firecracker = None;
        match driver {
            Needs::Qemu => tools.push(("qemu-system-x86_64", "--version")),
            Needs::Firecracker => {
                firecracker = Some(setting(test, "STOKER_TEST_FIRECRACKER")?);
                if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
                    skipped(test, &format!("/dev/kvm: {error}"));
                    return None;
                }
            }
        }
        for (tool, argument) in tools {
            if Command::new(tool).arg(argument).stdout(Stdio::null()).status().is_err() {
                skipped(test, &format!("needs {tool}"));
                return None;
            }
        }
        let name = format!("st-{}", &Uuid::now_v7().simple().to_string()[24..]);
        let dir = tempfile::Builder::new().prefix("st-").tempdir().unwrap();
        Some(Self { name, driver, dir, programs, images, firecracker, config: None, user: None })
    }

    /// From now on an unprivileged user runs the programs: with a folder of its own to work in, and
    /// copies, because the folders of the clone may be closed to it.
    pub fn for_nobody(mut self, image: &str) -> Self {
        let root = self.dir.path().canonicalize().unwrap();
        let (programs, images) = (root.join("bin"), root.join("images"));
        let (from, to) = (self.images.join(image), images.join(image));
        for dir in [&programs, &images, &to] {
            fs::create_dir(dir).unwrap();
        }
        let files = entries(&from).into_iter().map(|name| (from.join(&name), to.join(name)));
        for (file, copy) in files.chain([(self.program(), programs.join("stoker"))]) {
            fs::copy(file, copy).unwrap();
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(root.join("home")).unwrap();
        chown(root.join("home"), Some(NOBODY), Some(NOBODY)).unwrap();
        (self.programs, self.images, self.user) = (programs, images, Some(NOBODY));
        self
    }

    /// From now on there is another image, too: the same files under another name, its manifest changed.
    pub fn with_image_like(mut self, image: &str, name: &str, change: impl FnOnce(&mut Value)) -> Self {
        let images = self.dir.path().canonicalize().unwrap().join("images");
        let (from, to) = (self.images.join(image), images.join(name));
        fs::create_dir_all(&to).unwrap();
        let others = if self.images == images { Vec::new() } else { entries(&self.images) };
        let others = others.into_iter().map(|name| (self.images.join(&name), images.join(&name)));
        let files = entries(&from).into_iter().map(|name| (from.join(&name), to.join(&name)));
        for (original, link) in others.chain(files) {
            std::os::unix::fs::symlink(original, link).unwrap();
        }
        let text = fs::read(from.join("image.json")).unwrap();
        let mut manifest = serde_json::from_slice(&text).unwrap();
        change(&mut manifest);
        manifest["name"] = name.into();
        // Not through the link.
        fs::remove_file(to.join("image.json")).unwrap();
        fs::write(to.join("image.json"), manifest.to_string()).unwrap();
        self.images = images;
        self
    }

    /// From now on this shell script runs in QEMU's place. It gets QEMU's arguments.
    pub fn with_qemu(mut self, script: &str) -> Self {
        let root = self.dir.path().canonicalize().unwrap();
        let (program, config) = (root.join("qemu"), root.join("stoker.toml"));
        fs::write(&program, format!("#!/bin/bash\n{script}")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&config, format!("qemu = {:?}\n", program.display().to_string())).unwrap();
        self.config = Some(config);
        self
    }

    pub fn images(&self) -> &Path {
        &self.images
    }

    pub fn data(&self) -> PathBuf {
        let root = self.dir.path().canonicalize().unwrap();
        if self.user.is_some() { root.join("home").join("data") } else { root.join("data") }
    }

    /// The console of the one VM that has been here, kept after it.
    pub fn kept_console(&self) -> String {
        let consoles = self.data().join("consoles");
        let [name] = entries(&consoles).try_into().expect("one console");
        fs::read_to_string(consoles.join::<String>(name)).unwrap()
    }

    /// What an earlier run as root would have left.
    pub fn leave_data_of_root(&self) -> PathBuf {
        fs::create_dir_all(self.data().join("vms")).unwrap();
        self.data()
    }

    /// The run kept to its data folder's owner.
    pub fn assert_only_nobodys_files(&self) {
        let mut folders = vec![self.data()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                assert_eq!(entry.metadata().unwrap().uid(), NOBODY, "{}", entry.path().display());
                folders.extend(entry.path().is_dir().then(|| entry.path()));
            }
        }
    }

    /// What it wrote to stderr so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn program(&self) -> PathBuf {
        self.programs.join("stoker")
    }

    /// `stoker up` with this stage's settings and these arguments. Each VM boots: a template in the
    /// making would be one more that a test does not know of.
    pub async fn up(&self, arguments: &[&str]) -> Up {
        self.up_prewarmed(&[&["--prewarm", "false"], arguments].concat()).await
    }

    /// The same as users have it: a VM may go on from a template.
    pub async fn up_prewarmed(&self, arguments: &[&str]) -> Up {
        let mut command = tokio::process::Command::new(self.program());
        command.args(["up", "--listen", "127.0.0.1:0", "--host", "e2e", "--namespace", &self.name]);
        command.arg("--data").arg(self.data()).arg("--images").arg(&self.images);
        command.args(["--driver", if self.driver == Needs::Qemu { "qemu" } else { "firecracker" }]);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        if let Some(firecracker) = &self.firecracker {
            command.arg("--firecracker").arg(firecracker);
        }
        if let Some(user) = self.user {
            // As a service gets it: no home, none of the caller's groups (`uid` sees to those).
            command.uid(user).gid(user).env_remove("HOME").current_dir(self.dir.path().join("home"));
        }
        let log = fs::File::options().append(true).create(true).open(self.dir.path().join("log")).unwrap();
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (said, text) = watch::channel(String::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                said.send_modify(|text| {
                    text.push_str(&line);
                    text.push('\n');
                });
            }
        });
        Up { child, text, program: self.program() }
    }

    /// Process ids of the VMMs, each with its VM's folder: they work in it, or in a jail below it.
    pub fn vmms(&self) -> Vec<(u32, String)> {
        let vms = self.data().join("vms");
        let of = |vm: String| processes::working_in(&vms.join(&vm)).into_iter().map(move |pid| (pid, vm.clone()));
        let mut found: Vec<_> = entries(&vms).into_iter().flat_map(of).collect();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        found.extend(processes.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            // A dead one's folder shows as "… (deleted)"; it is still a process.
            let vm = cwd.strip_prefix(&vms).ok()?.to_str()?.to_owned();
            vm.ends_with(" (deleted)").then_some((pid, vm))
        }));
        found.sort();
        found
    }

    /// Everything that VMs had on this host is gone: see [`Self::left`].
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.left(), Vec::<String>::new());
    }

    /// What VMs have left on this host: processes, folders with sockets and disks, taps, reservations and leases.
    pub fn left(&self) -> Vec<String> {
        let vmms = self.vmms().into_iter().map(|(pid, vm)| format!("VMM {pid} of {vm}"));
        let folders = entries(&self.data().join("vms")).into_iter().map(|name| format!("folder {name}"));
        let taps = self.taps().into_iter().map(|name| format!("tap {name}"));
        // There is none for a user network.
        let files = if self.dhcp().exists() { &["leases", "reservations"][..] } else { &[] };
        // Not there would mean that this looks in the wrong place.
        let read = |file: &'static str| (file, fs::read_to_string(self.dhcp().join(file)).unwrap());
        let lines = files.iter().copied().map(read).filter(|(_, text)| !text.is_empty());
        let lines = lines.map(|(file, text)| format!("{file}: {text}"));
        vmms.chain(folders).chain(taps).chain(lines).collect()
    }

    /// After `--once`: neither bridge nor DHCP server nor namespace is left.
    pub fn assert_nothing_runs(&self) {
        assert!(!self.has_namespace(), "the namespace is left");
        let leases = self.dhcp().join("leases").display().to_string();
        let lines =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let left = lines.filter(|line| String::from_utf8_lossy(line).contains(&leases)).count();
        assert_eq!(left, 0, "its DHCP server still runs");
    }

    /// Asks the agent of a job from within the VMs' network.
    pub async fn ask(&self, job: &Value, path: &str) -> Value {
        let attempt = job["attempts"].as_array().unwrap().last().unwrap();
        let url = format!("http://{}{path}", attempt["proof"]["agent"].as_str().unwrap());
        let namespace = Namespace::open(&self.name).await.unwrap();
        let text = namespace.within(async move { reqwest::get(url).await.unwrap().text().await.unwrap() }).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// Lines of the firewall that name a VM's tap.
    pub fn rules_with_taps(&self) -> Vec<String> {
        let listed = Command::new("ip").args(["netns", "exec", &self.name, "nft", "list", "ruleset"]).output().unwrap();
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        text.lines().filter(|line| line.contains("elements")).map(str::to_owned).collect()
    }

    fn dhcp(&self) -> PathBuf {
        Path::new("/run/stoker").join(format!("{}-{BRIDGE}", self.name))
    }

    fn has_namespace(&self) -> bool {
        Path::new("/run/netns").join(&self.name).exists()
    }

    /// Names of the taps that are there.
    pub fn taps(&self) -> Vec<String> {
        let links = self.links().unwrap_or_default().into_iter();
        links.filter(|link| link != "lo" && link != BRIDGE).collect()
    }

    /// Runs `ip` in the stage's namespace.
    pub fn ip(&self, arguments: &[&str]) {
        let status = Command::new("ip").args(["-n", &self.name]).args(arguments).status().unwrap();
        assert!(status.success(), "ip {arguments:?}");
    }

    /// kill -9 of the one VMM there is, as soon as there is one.
    pub async fn kill_vmm(&self) {
        let (pid, _) = eventually("a VMM", async || self.vmms().pop()).await;
        kill(pid, "-KILL");
        eventually("it is gone", async || self.vmms().iter().all(|(other, _)| *other != pid).then_some(())).await;
    }

    /// `None` where there is no namespace (user network).
    fn links(&self) -> Option<Vec<String>> {
        if !self.has_namespace() {
            return None;
        }
        let output = Command::new("ip").args(["-n", &self.name, "-o", "link"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let name = |line: &str| line.split(": ").nth(1).map(|n| n.split('@').next().unwrap_or(n).to_owned());
        Some(text.lines().filter_map(name).collect())
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        for (pid, _) in self.vmms() {
            kill(pid, "-KILL");
        }
        if self.has_namespace() {
            let output = Command::new("ip").args(["netns", "pids", &self.name]).output();
            let pids = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
            for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                kill(pid, "-KILL");
            }
            let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
        }
        let _ = fs::remove_dir_all(self.dhcp());
    }
}

fn kill(pid: u32, signal: &str) {
    let _ = Command::new("kill").args([signal, &pid.to_string()]).stderr(Stdio::null()).status();
}

/// A running `stoker up`; killed with the test.
pub struct Up {
    child: Child,
    text: watch::Receiver<String>,
    program: PathBuf,
}

impl Up {
    /// Waits until it has printed something; everything it printed by then.
    pub async fn says(&mut self, wanted: &str) -> String {
        let mut text = self.text.clone();
        let said = tokio::time::timeout(PATIENCE, text.wait_for(|text| text.contains(wanted))).await;
        match said {
            Ok(Ok(text)) => text.clone(),
            Ok(Err(_)) => panic!("ended without {wanted:?}: {}", *self.text.borrow()),
            Err(_) => panic!("not said within {PATIENCE:?}: {wanted:?}, only: {}", *self.text.borrow()),
        }
    }

    /// Its HTTP address.
    pub async fn server(&mut self) -> String {
        let text = self.says("dashboard   http://").await;
        let rest = text.split("dashboard   ").nth(1).unwrap();
        rest.lines().next().unwrap().trim_end_matches('/').to_owned()
    }

    /// Waits for its end by itself: exit code and everything it printed.
    pub async fn ended(mut self) -> (i32, String) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("did not end").unwrap();
        // Its output ends with it; the last lines may still be on their way to us.
        let _ = tokio::time::timeout(PATIENCE, self.text.wait_for(|_| false)).await;
        (status.code().unwrap_or(-1), self.text.borrow().clone())
    }

    /// SIGTERM: ends in order, VMs keep running.
    pub async fn end(self) {
        kill(self.child.id().unwrap(), "-TERM");
        let (code, text) = self.ended().await;
        assert_eq!(code, 0, "{text}");
    }

    /// kill -9, in the middle of whatever it does.
    pub async fn crash(mut self) {
        kill(self.child.id().unwrap(), "-KILL");
        self.child.wait().await.unwrap();
    }

    /// Runs `stoker <arguments>` against this server: exit code, stdout, stderr.
    pub async fn stoker(&mut self, arguments: &[&str]) -> (i32, String, String) {
        let server = self.server().await;
        let mut command = tokio::process::Command::new(&self.program);
        command.args(arguments).args(["--server", &server]).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("hangs").unwrap();
        let Output { status, stdout, stderr } = output;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (status.code().unwrap_or(-1), text(stdout), text(stderr))
    }

    /// Enqueues a job, which must be taken.
    pub async fn enqueue(&mut self, arguments: &[&str]) -> JobId {
        let (code, stdout, stderr) = self.stoker(&[&["enqueue"], arguments].concat()).await;
        assert_eq!(code, 0, "{stderr}");
        stdout.trim().parse().unwrap()
    }

    /// The job as the API shows it, once it is as wanted.
    pub async fn job(&mut self, id: JobId, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let url = format!("{}/v1/jobs/{id}", self.server().await);
        let look = async || {
            let job: Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
            wanted(&job).then_some(job)
        };
        eventually(&format!("job {id} {what}"), look).await
    }

    /// The job, once it is in a phase.
    pub async fn reaches(&mut self, id: JobId, phase: Phase) -> Value {
        let name = serde_json::to_value(phase).unwrap();
        self.job(id, &format!("{phase}"), |job| job["phase"] == name).await
    }
}
