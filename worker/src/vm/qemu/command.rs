//! QEMU's command line for one VM. Every value is its own argument; where QEMU splits an argument
//! at commas, values from outside have theirs doubled, as it asks for.

use std::path::Path;

use serde_json::json;

use super::{Accel, DRIVER};
use crate::{
    ports::{
        net::Nic,
        vm::{Disk, DiskFormat, VmError, VmPlan},
    },
    vm::files,
};

/// Translation cache of TCG, MiB: the default takes up to 1 GiB per VM, and a guest that boots and
/// serves runs as fast with this.
const TCG_CACHE_MIB: u32 = 32;
/// Random bytes a guest may take each second; a kernel needs 32 to begin with.
const ENTROPY_BYTES: u32 = 64 * 1024;
/// System calls a device emulator has no use for; a guest that breaks out finds them closed.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// A network card's other end that leads nowhere.
const NOWHERE: &str = "hubport,id=net0,hubid=0";

/// What of the host goes into a command line.
#[derive(Debug, Clone, Copy)]
pub struct HostFacts {
    pub accel: Accel,
    /// The host's TSC, needed with TCG only.
    pub tsc_khz: Option<u32>,
    pub sandbox: bool,
}

/// What becomes of the guest's memory.
#[derive(Debug, Clone, Copy)]
pub enum Memory<'a> {
    /// Its own, and gone with it.
    Own,
    /// In this file, for copies to start from.
    Template(&'a Path),
    /// Copied from this file as it is written to; waits for the rest of the state.
    CopyOf(&'a Path),
}

pub fn arguments(plan: &VmPlan, host: HostFacts, memory: Memory<'_>) -> Result<Vec<String>, VmError> {
    let mut args = vec!["-name".to_owned(), format!("guest=stoker-{}", plan.vm)];
    let mut add = |pair: [&str; 2]| args.extend(pair.map(str::to_owned));
    match host.accel {
        Accel::Kvm => add(["-accel", "kvm"]),
        Accel::Tcg => add(["-accel", &format!("tcg,tb-size={TCG_CACHE_MIB}")]),
    }
    add(["-cpu", if host.accel == Accel::Kvm { "host" } else { "qemu64" }]);
    add(["-smp", &plan.vcpus.to_string()]);
    add(["-m", &plan.memory_mib.to_string()]);
    for pair in machine(plan, memory)? {
        add([pair.0, &pair.1]);
    }
    add(["-display", "none"]);
    add(["-serial", "chardev:console"]);
    add(["-qmp", &format!("unix:{},server=on,wait=off", files::QMP_SOCKET)]);
    add(["-kernel", utf8(&plan.kernel, "kernel")?]);
    if let Some(initrd) = &plan.initrd {
        add(["-initrd", utf8(initrd, "initrd")?]);
    }
    add(["-append", &kernel_args(&plan.kernel_args, host)]);
    let (netdev, mac) = netdev(&plan.nic)?;
    // A template has a card, and nothing at its other end.
    let netdev = if let Memory::Template(_) = memory { NOWHERE } else { &netdev };
    add(["-netdev", netdev]);
    add(["-device", &format!("virtio-net-device,netdev=net0,mac={mac}")]);
    add(["-object", "rng-random,id=rng,filename=/dev/urandom"]);
    add(["-device", &format!("virtio-rng-device,rng=rng,max-bytes={ENTROPY_BYTES},period=1000")]);
    if host.sandbox {
        add(["-sandbox", SANDBOX]);
    }
    for (index, blockdev) in plan.disk.as_ref().map_or(Ok(Vec::new()), blockdevs)?.into_iter().enumerate() {
        add(["-blockdev", &blockdev]);
        add(["-device", &format!("virtio-blk-device,drive=disk{index}")]);
    }
    args.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    Ok(args)
}

/// Machine, memory and serial line. A VM with a template's memory is spoken to over the line, so it
/// has one to read from; other guests have none.
fn machine(plan: &VmPlan, memory: Memory<'_>) -> Result<Vec<(&'static str, String)>, VmError> {
    const MACHINE: &str = "microvm,acpi=on";
    let (file, share) = match memory {
        Memory::Own => {
            let console = format!("file,id=console,path={},append=on", files::CONSOLE);
            return Ok(vec![("-M", MACHINE.to_owned()), ("-chardev", console)]);
        }
        Memory::Template(file) => (file, "on"),
        Memory::CopyOf(file) => (file, "off"),
    };
    let path = utf8(file, "the template's memory")?.replace(',', ",,");
    let size = plan.memory_mib;
    let console = format!("pipe,id=console,path={},logfile={},logappend=on", files::SERIAL, files::CONSOLE);
    let mut pairs = vec![
        ("-object", format!("memory-backend-file,id=memory,size={size}M,mem-path={path},share={share}")),
        ("-M", format!("{MACHINE},memory-backend=memory")),
        ("-chardev", console),
    ];
    if let Memory::CopyOf(_) = memory {
        pairs.push(("-incoming", "defer".to_owned()));
    }
    Ok(pairs)
}

fn unsupported(what: String) -> VmError {
    VmError::Unsupported { driver: DRIVER, what }
}

fn utf8<'a>(path: &'a Path, what: &str) -> Result<&'a str, VmError> {
    path.to_str().ok_or_else(|| unsupported(format!("path of {what} is not UTF-8: {}", path.display())))
}

/// Adds what Linux needs to keep time on TCG: with ACPI it would hang calibrating the TSC, and its
/// timer check fails now and then on a busy host. Arguments the image sets itself stay as they are.
fn kernel_args(given: &str, host: HostFacts) -> String {
    let mut line = given.trim().to_owned();
    if host.accel == Accel::Kvm {
        return line;
    }
    let key = |arg: &str| arg.split('=').next().unwrap_or_default().to_owned();
    let present: Vec<String> = given.split_ascii_whitespace().map(key).collect();
    let early = host.tsc_khz.map(|khz| format!("tsc_early_khz={khz}"));
    for arg in early.into_iter().chain(["tsc=reliable".to_owned(), "no_timer_check".to_owned()]) {
        if !present.contains(&key(&arg)) {
            line.push(' ');
            line.push_str(&arg);
        }
    }
    line
}

fn netdev(nic: &Nic) -> Result<(String, String), VmError> {
    match nic {
        Nic::Tap { name, mac } => {
            let name = name.replace(',', ",,");
            Ok((format!("tap,id=net0,ifname={name},script=no,downscript=no"), mac.to_string()))
        }
        Nic::User { mac, host_port, guest_port } => {
            Ok((format!("user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:{host_port}-:{guest_port}"), mac.to_string()))
        }
        Nic::Simulated { .. } => Err(unsupported("a simulated network card".to_owned())),
    }
}

/// Block devices as JSON, which needs no escaping of paths.
fn blockdevs(disk: &Disk) -> Result<Vec<String>, VmError> {
    let base = disk.read_only_base.as_deref().map(|base| (base, DiskFormat::Raw, true));
    let all = base.into_iter().chain([(disk.path.as_path(), disk.format, false)]);
    all.enumerate()
        .map(|(index, (path, format, read_only))| {
            let driver = match format {
                DiskFormat::Raw => "raw",
                DiskFormat::Qcow2 => "qcow2",
            };
            let file = json!({"driver": "file", "filename": utf8(path, "disk")?});
            Ok(json!({"driver": driver, "node-name": format!("disk{index}"), "read-only": read_only, "file": file})
                .to_string())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCG: HostFacts = HostFacts { accel: Accel::Tcg, tsc_khz: Some(2_600_000), sandbox: true };

    #[test]
    fn the_clock_arguments_are_added_once_and_only_for_tcg() {
        let line = kernel_args("console=ttyS0 tsc=unstable", TCG);
        assert_eq!(line, "console=ttyS0 tsc=unstable tsc_early_khz=2600000 no_timer_check");
        let kvm = HostFacts { accel: Accel::Kvm, ..TCG };
        assert_eq!(kernel_args("console=ttyS0", kvm), "console=ttyS0");
    }

    #[test]
    fn odd_paths_stay_one_value() {
        let disk = Disk { path: "/d/a,\"b".into(), format: DiskFormat::Qcow2, read_only_base: Some("/i/x".into()) };
        let devices = blockdevs(&disk).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&devices[1]).unwrap();
        assert_eq!(parsed["file"]["filename"], "/d/a,\"b");
        assert!(devices[0].contains("\"read-only\":true"));
    }

    #[test]
    fn a_user_network_lets_nothing_out() {
        let mac = stoker_schemas::id::Mac([2, 0, 0, 0, 0, 1]);
        let (text, _) = netdev(&Nic::User { mac, host_port: 4000, guest_port: 8080 }).unwrap();
        assert_eq!(text, "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:4000-:8080");
    }
}
