//! Stoker's guest agent.
//!
//! As the first process of the minimal guest it boots it: file systems, drivers, network,
//! `/health`. As an ordinary service of a larger guest (`stoker-agent --listen 8080`) it only
//! answers. It is linked statically, because in the minimal guest nothing else exists.

mod boot;
mod cmdline;
mod console;
mod entropy;
mod fault;
#[doc(hidden)]
pub mod fuzz;
mod http;
mod identity;
mod net;
mod power;
mod resume;
mod status;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use cmdline::Settings;
use smoltcp::wire::EthernetAddress;
use status::{Stage, Status};

const USAGE: &str = "usage: stoker-agent [--listen PORT] [--vm-id ID]\n\
    As process 1 it takes its settings from the kernel command line instead:\n\
    stoker.vm_id= stoker.port= stoker.fault=";

/// Boots the guest as its first process, or answers as a service of it. A program of a few lines calls this, so
/// that the parsers can be fuzzed from outside.
pub fn run() -> ExitCode {
    if std::process::id() == 1 { run_guest() } else { run_service(std::env::args().skip(1)) }
}

/// The first process never returns while the guest lives: its end is a kernel panic.
fn run_guest() -> ExitCode {
    console::say(concat!("version ", env!("CARGO_PKG_VERSION"), " is process 1"));
    boot::mount_kernel_file_systems();
    let settings = kernel_settings();
    let status = Arc::new(if settings.template { Status::without_id() } else { Status::new(&settings.vm_id) });
    status.reached(Stage::Init);
    if !settings.faults.unknown.is_empty() {
        console::say(format_args!("unknown stoker.fault {:?}: halting", settings.faults.unknown));
        return park_forever();
    }
    if settings.faults.panic {
        console::say("asked to fail: process 1 ends");
        return ExitCode::FAILURE;
    }
    if !settings.template {
        boot::set_hostname(&settings.vm_id);
        boot::set_machine_id(&settings.vm_id);
    }
    boot::load_modules();
    status.reached(Stage::Modules);
    for unit in &settings.faults.failed_units {
        console::failed(unit);
    }
    let listening = start_agent(&settings, &status);
    // Apart from the first process, which must hear signals while the network is still coming up.
    spawn("network", move || run_network(&settings, &status, listening));
    for input in power::inputs() {
        spawn("button", move || power::watch_button(&input));
    }
    match power::run_first_process() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(format_args!("cannot receive signals: {error}"));
            park_forever()
        }
    }
}

/// A guest that cannot be stopped gently is better than one that panics.
fn park_forever() -> ExitCode {
    loop {
        thread::park();
    }
}

/// As a service: no boot, no network, only the answers.
fn run_service(arguments: impl Iterator<Item = String>) -> ExitCode {
    let settings = match service_settings(arguments, kernel_settings()) {
        Ok(settings) => settings,
        Err(message) => {
            console::say(format_args!("{message}\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    let status = Arc::new(Status::new(&settings.vm_id));
    status.reached(Stage::Init);
    match http::listen(settings.port) {
        Ok(listener) => {
            status.reached(Stage::Listening);
            http::serve(&listener, &http::Routes::new(status, settings.faults));
            ExitCode::SUCCESS
        }
        Err(error) => {
            console::say(format_args!("cannot listen on port {}: {error}", settings.port));
            ExitCode::FAILURE
        }
    }
}

fn kernel_settings() -> Settings {
    Settings::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// Arguments win over the kernel command line.
fn service_settings(mut arguments: impl Iterator<Item = String>, mut settings: Settings) -> Result<Settings, String> {
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--listen" => {
                let port = value?;
                settings.port = port.parse().map_err(|_| format!("{port} is not a port"))?;
            }
            "--vm-id" => settings.vm_id = value?,
            _ => return Err(format!("unknown argument {argument}")),
        }
    }
    Ok(settings)
}

/// Listens before there is an address, so that the first packet to reach the guest is answered.
fn start_agent(settings: &Settings, status: &Arc<Status>) -> bool {
    if settings.faults.no_agent || settings.faults.fails_unit(console::AGENT_UNIT) {
        return false;
    }
    match http::listen(settings.port) {
        Ok(listener) => {
            status.reached(Stage::Listening);
            let routes = http::Routes::new(Arc::clone(status), settings.faults.clone());
            spawn("http", move || http::serve(&listener, &routes))
        }
        Err(error) => {
            console::say(format_args!("cannot listen on port {}: {error}", settings.port));
            console::failed(console::AGENT_UNIT);
            false
        }
    }
}

/// Runs the network and reports the units in the order in which systemd would.
fn run_network(settings: &Settings, status: &Status, listening: bool) {
    let mut unannounced = listening;
    let mut announce_agent = || {
        if std::mem::take(&mut unannounced) {
            console::started(console::AGENT_UNIT);
        }
    };
    if let Err(error) = keep_network(settings, status, &mut announce_agent) {
        console::say(error);
        console::failed(console::NETWORK_UNIT);
    }
    announce_agent();
}

/// Returns at once when the guest is asked to have no DHCP client, else only with an error.
fn keep_network(settings: &Settings, status: &Status, announce_agent: &mut impl FnMut()) -> Result<(), net::NetError> {
    net::up_loopback()?;
    let (name, own_mac) = net::wait_for_interface()?;
    let link = net::Link::find(&name)?;
    let mac = if settings.template { become_somebody(status, &link)? } else { own_mac };
    link.up()?;
    status.reached(Stage::Link);
    if settings.faults.no_dhcp || settings.faults.fails_unit(console::NETWORK_UNIT) {
        return Ok(());
    }
    let mut announced = false;
    net::run_dhcp(&link, &net::Client::new(mac, status.vm_id()), status, || {
        if !std::mem::replace(&mut announced, true) {
            console::started(console::NETWORK_UNIT);
            announce_agent();
        }
    })
}

/// Waits, as a template, to be continued as one VM of many; then its card has that VM's address.
fn become_somebody(status: &Status, link: &net::Link) -> Result<EthernetAddress, net::NetError> {
    let resume = resume::wait().map_err(net::NetError::during("wait to be told who this is"))?;
    resume.apply();
    link.set_mac(resume.mac)?;
    status.becomes(&resume.vm_id);
    Ok(resume.mac)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    match thread::Builder::new().name(name.to_owned()).spawn(work) {
        Ok(_) => true,
        Err(error) => {
            console::say(format_args!("cannot start the {name} thread: {error}"));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(arguments: &[&str]) -> Result<Settings, String> {
        service_settings(arguments.iter().map(|a| (*a).to_owned()), Settings::parse("stoker.vm_id=k"))
    }

    #[test]
    fn arguments_win_over_the_kernel_command_line() {
        assert_eq!(service(&[]).unwrap().vm_id, "k");
        let settings = service(&["--listen", "9000", "--vm-id", "a"]).unwrap();
        assert_eq!((settings.port, settings.vm_id.as_str()), (9000, "a"));
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_eq!(service(&["--listen"]).unwrap_err(), "--listen needs a value");
        assert_eq!(service(&["--listen", "x"]).unwrap_err(), "x is not a port");
        assert_eq!(service(&["--x", "y"]).unwrap_err(), "unknown argument --x");
    }
}
