//! A machine on the VMs' network that is none of them.

use std::process::Command;

use crate::stage::{BRIDGE, Stage};

/// Its place on the bridge.
const PORT: &str = "stranger0";

/// A machine that is no VM.
pub struct Stranger<'a> {
    stage: &'a Stage,
    namespace: String,
}

impl<'a> Stranger<'a> {
    /// A machine on the VMs' bridge that nobody gave this address.
    pub fn arrives(stage: &'a Stage, address: &str) -> Self {
        let namespace = format!("{}-x", stage.name);
        let ip = |arguments: &[&str]| assert!(Command::new("ip").args(arguments).status().unwrap().success());
        ip(&["netns", "add", &namespace]);
        stage.ip(&["link", "add", PORT, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        stage.ip(&["link", "set", PORT, "master", BRIDGE, "up"]);
        ip(&["-n", &namespace, "address", "add", address, "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        Self { stage, namespace }
    }
}

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        // First its link: a namespace takes its links with it some time later.
        let _ = Command::new("ip").args(["-n", &self.stage.name, "link", "delete", PORT]).status();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
    }
}
