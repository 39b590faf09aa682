//! Where it was measured: figures of different machines are not to be compared.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// The machine and its programs.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub memory_mib: u64,
    pub data_on: String,
    pub qemu: String,
    pub firecracker: String,
    pub rabbitmq: String,
    pub dnsmasq: String,
    /// Load averages of the last minute before and after: above the number of cores, others were at
    /// work too, and only ratios mean something.
    pub load_before: f64,
    pub load_after: f64,
}

impl Machine {
    pub fn look() -> Self {
        let firecracker = std::env::var_os("STOKER_TEST_FIRECRACKER").unwrap_or_else(|| "firecracker".into());
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease"),
            memory_mib: field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0) / 1_024,
            data_on: file_system(&std::env::temp_dir()),
            qemu: version(Command::new("qemu-system-x86_64").arg("--version")),
            firecracker: version(Command::new(firecracker).arg("--version")),
            rabbitmq: rabbitmq(),
            dnsmasq: version(Command::new("dnsmasq").arg("--version")),
            load_before: load(),
            load_after: 0.0,
        }
    }

    pub fn look_again(&mut self) {
        self.load_after = load();
    }

    /// For people.
    pub fn lines(&self) -> [String; 3] {
        let Self { cpu, cores, kernel, memory_mib, data_on, qemu, firecracker, rabbitmq, dnsmasq, .. } = self;
        [
            format!("{cpu}, {cores} cores, {memory_mib} MiB, Linux {kernel}, data on {data_on}"),
            format!("QEMU {qemu}; Firecracker {firecracker}; RabbitMQ {rabbitmq}; dnsmasq {dnsmasq}"),
            format!(
                "load {:.1} before, {:.1} after{}",
                self.load_before,
                self.load_after,
                if self.is_shared() { ": the machine was busy before we began, so trust ratios only" } else { "" }
            ),
        ]
    }

    fn is_shared(&self) -> bool {
        self.load_before > self.cores as f64 / 2.0
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn field(path: &str, name: &str) -> String {
    let text = read(path);
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, value)| value.trim()).to_owned()
}

fn load() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// The first number with a dot of what a program says about itself.
fn version(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return "not found".to_owned() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_version =
        |word: &&str| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    text.split_ascii_whitespace().find(is_version).unwrap_or("unknown").to_owned()
}

/// By the folder of its library: asking the program itself takes a second of Erlang, and root's
/// rights on Debian.
fn rabbitmq() -> String {
    let folders = std::fs::read_dir("/usr/lib/rabbitmq/lib").into_iter().flatten().flatten();
    let mut names = folders.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .find_map(|name| name.strip_prefix("rabbitmq_server-").map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// Type of the file system that holds a folder.
fn file_system(folder: &Path) -> String {
    let mounts = read("/proc/mounts");
    let entries = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let holding = entries.filter(|(place, _)| folder.starts_with(place)).max_by_key(|(place, _)| place.len());
    holding.map_or("unknown", |(_, kind)| kind).to_owned()
}
