//! Firecracker's API as Stoker relies on it: every request it makes, taken and refused, against the
//! real program. What changes here with a new release is to be seen before a host gets it.

use std::{path::Path, process::Command, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use stoker_tests::{conformance::vm::attempt_dir, setting, skipped, within};

use crate::real::{Image, image};

/// An idle Firecracker in a network namespace of its own, and a client.
struct Idle {
    child: std::process::Child,
    client: reqwest::Client,
    dir: tempfile::TempDir,
    image: Image,
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn idle(test: &str) -> Option<Idle> {
    let binary = setting(test, "STOKER_TEST_FIRECRACKER")?;
    let image = image(test, "probe")?;
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        skipped(test, &format!("/dev/kvm: {error}"));
        return None;
    }
    if !Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|status| status.success()) {
        skipped(test, "no permission to make a network namespace (run as root)");
        return None;
    }
    let dir = attempt_dir();
    let (child, client) = start(&binary, dir.path(), "api.sock").await;
    Some(Idle { child, client, dir, image })
}

async fn start(binary: &Path, dir: &Path, socket: &str) -> (std::process::Child, reqwest::Client) {
    let console = std::fs::File::options().create(true).append(true).open(dir.join("console.log")).unwrap();
    let mut command = Command::new("unshare");
    command.arg("--net").arg("--").arg(binary).args(["--api-sock", socket]).current_dir(dir).stdout(console);
    let child = command.spawn().unwrap();
    let path = dir.join(socket);
    let listens = async {
        while std::os::unix::net::UnixStream::connect(&path).is_err() {
            // A VMM does not tell when its socket is there.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within("the API's socket", listens).await;
    (child, reqwest::Client::builder().unix_socket(path).no_proxy().build().unwrap())
}

impl Idle {
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, String) {
        ask(&self.client, method, path, body).await
    }

    async fn put(&self, path: &str, body: Value) -> (u16, String) {
        self.ask(Method::PUT, path, Some(body)).await
    }

    async fn taken(&self, path: &str, body: Value) {
        assert_eq!(self.put(path, body).await, (204, String::new()), "PUT {path}");
    }

    /// Refused with a 400 whose message holds these words.
    async fn refused(&self, path: &str, body: Value, words: &str) {
        let (status, text) = self.put(path, body).await;
        assert_eq!(status, 400, "PUT {path}: {text}");
        let message: Value = serde_json::from_str(&text).unwrap();
        let message = message["fault_message"].as_str().unwrap();
        assert!(message.contains(words), "PUT {path}: {message}");
    }

    fn boot_source(&self) -> Value {
        let kernel = self.image.folder.join(&self.image.manifest.kernel);
        json!({"kernel_image_path": kernel, "boot_args": "console=ttyS0 probe.fault=no-dhcp"})
    }

    /// Waits for a text on the console.
    async fn says(&self, text: &str) -> String {
        let said = async {
            loop {
                let all = std::fs::read_to_string(self.dir.path().join("console.log")).unwrap_or_default();
                if all.contains(text) {
                    return all;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        within(text, said).await
    }
}

async fn ask(client: &reqwest::Client, method: Method, path: &str, body: Option<Value>) -> (u16, String) {
    let request = client.request(method, format!("http://localhost{path}"));
    let request = body.iter().fold(request, |request, body| request.json(body));
    let answer = within(path, request.send()).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn every_request_of_a_boot_is_taken_and_the_guest_runs() {
    let Some(idle) = idle("contract::every_request_of_a_boot_is_taken_and_the_guest_runs").await else { return };
    let (status, version) = idle.ask(Method::GET, "/version", None).await;
    assert_eq!(status, 200);
    let version: Value = serde_json::from_str(&version).unwrap();
    assert!(version["firecracker_version"].as_str().unwrap().starts_with("1."), "{version}");
    for file in ["log", "metrics", "disk"] {
        std::fs::File::create(idle.dir.path().join(file)).unwrap().set_len(1 << 20).unwrap();
    }
    let bucket = json!({"bandwidth": {"size": 1 << 20, "refill_time": 1000}});
    idle.taken("/logger", json!({"log_path": "log", "level": "Warn"})).await;
    idle.taken("/metrics", json!({"metrics_path": "metrics"})).await;
    idle.taken("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 32})).await;
    idle.taken("/boot-source", idle.boot_source()).await;
    let drive = json!({"drive_id": "root", "is_root_device": true, "path_on_host": "disk", "is_read_only": false, "rate_limiter": bucket});
    idle.taken("/drives/root", drive).await;
    let nic = json!({"iface_id": "eth0", "host_dev_name": "sttest0", "guest_mac": "02:00:00:00:00:01",
        "rx_rate_limiter": bucket, "tx_rate_limiter": bucket});
    idle.taken("/network-interfaces/eth0", nic).await;
    idle.taken("/vsock", json!({"guest_cid": 3, "uds_path": "vsock.sock"})).await;
    idle.taken("/entropy", json!({})).await;
    idle.taken("/mmds/config", json!({"network_interfaces": ["eth0"], "version": "V2"})).await;
    idle.taken("/mmds", json!({"latest": {"meta-data": {"hello": "there"}}})).await;
    let (_, before) = idle.ask(Method::GET, "/", None).await;
    assert!(before.contains("\"Not started\""), "{before}");
    idle.taken("/actions", json!({"action_type": "InstanceStart"})).await;
    idle.says("Started VM Browser OAuth Agent").await;
    let (_, after) = idle.ask(Method::GET, "/", None).await;
    assert!(after.contains("\"Running\""), "{after}");
    // Pause and go on; nothing is configured any more.
    for state in ["Paused", "Resumed"] {
        let answer = idle.ask(Method::PATCH, "/vm", Some(json!({"state": state}))).await;
        assert_eq!(answer, (204, String::new()), "{state}");
    }
    idle.refused("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 32}), "not supported after starting").await;
    idle.taken("/actions", json!({"action_type": "FlushMetrics"})).await;
    let metrics = std::fs::read_to_string(idle.dir.path().join("metrics")).unwrap();
    assert!(metrics.contains("\"utc_timestamp_ms\""), "no metrics were written");
    idle.taken("/actions", json!({"action_type": "SendCtrlAltDel"})).await;
    idle.says("Received Ctrl-Alt-Del: stopping").await;
}

#[tokio::test]
async fn refusals_are_400_with_a_message_and_two_shapes() {
    let Some(idle) = idle("contract::refusals_are_400_with_a_message_and_two_shapes").await else { return };
    for vcpus in [0, 33] {
        idle.refused("/machine-config", json!({"vcpu_count": vcpus, "mem_size_mib": 32}), "number of vCPUs").await;
    }
    let missing = json!({"kernel_image_path": "/no/such/kernel", "boot_args": ""});
    idle.refused("/boot-source", missing, "The kernel file cannot be opened").await;
    idle.refused("/actions", json!({"action_type": "InstanceStart"}), "without kernel configuration").await;
    let drive = |id: &str| json!({"drive_id": id, "is_root_device": true, "path_on_host": "/no/such/disk", "is_read_only": true});
    idle.refused("/drives/root", drive("root"), "No such file").await;
    idle.refused("/drives/other", drive("root"), "does not match the id").await;
    idle.refused("/machine-config", json!({"unheard_of": 1}), "unknown field").await;
    let nic = |name: &str, tap: &str| json!({"iface_id": name, "host_dev_name": tap, "guest_mac": "02:00:00:00:00:01"});
    // As root it makes a missing tap, off every bridge, and reports success: why Stoker looks itself.
    idle.taken("/network-interfaces/eth0", nic("eth0", "sttest0")).await;
    idle.refused("/network-interfaces/eth1", nic("eth1", "sttest1"), "MAC address is already in use").await;
    // The other shape: its message holds a raw newline, so it is no JSON.
    let (status, text) = idle.ask(Method::DELETE, "/machine-config", None).await;
    assert_eq!(status, 400, "{text}");
    assert!(text.contains("\"error\""), "{text}");
    let large = json!({"kernel_image_path": "x".repeat(60_000)});
    let (status, text) = idle.put("/boot-source", large).await;
    assert!(status == 400 && text.contains("larger than the limit of 51200"), "{status} {text}");
}

#[tokio::test]
async fn a_snapshot_is_taken_and_a_fresh_process_goes_on_from_it() {
    let Some(idle) = idle("contract::a_snapshot_is_taken_and_a_fresh_process_goes_on_from_it").await else { return };
    idle.taken("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 32})).await;
    idle.taken("/boot-source", idle.boot_source()).await;
    let nic = json!({"iface_id": "eth0", "host_dev_name": "sttest0", "guest_mac": "02:00:00:00:00:01"});
    idle.taken("/network-interfaces/eth0", nic).await;
    idle.taken("/actions", json!({"action_type": "InstanceStart"})).await;
    idle.says("Started VM Browser OAuth Agent").await;
    let files = json!({"snapshot_type": "Full", "snapshot_path": "state", "mem_file_path": "memory"});
    idle.refused("/snapshot/create", files.clone(), "").await;
    let paused = idle.ask(Method::PATCH, "/vm", Some(json!({"state": "Paused"}))).await;
    assert_eq!(paused.0, 204, "{}", paused.1);
    idle.taken("/snapshot/create", files).await;
    let binary = setting("contract::a_snapshot", "STOKER_TEST_FIRECRACKER").unwrap();
    let (mut child, client) = start(&binary, idle.dir.path(), "second.sock").await;
    let load = json!({"snapshot_path": "state", "mem_backend": {"backend_type": "File", "backend_path": "memory"},
        "resume_vm": true});
    let loaded = ask(&client, Method::PUT, "/snapshot/load", Some(load)).await;
    let (_, state) = ask(&client, Method::GET, "/", None).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(loaded, (204, String::new()));
    assert!(state.contains("\"Running\""), "{state}");
}

#[tokio::test]
async fn a_socket_left_behind_and_wrong_arguments_end_it_with_their_codes() {
    let test = "contract::a_socket_left_behind_and_wrong_arguments_end_it_with_their_codes";
    let Some(idle) = idle(test).await else { return };
    let binary = setting(test, "STOKER_TEST_FIRECRACKER").unwrap();
    let code = |arguments: &[&str]| {
        let output = Command::new(&binary).args(arguments).current_dir(idle.dir.path()).output().unwrap();
        output.status.code()
    };
    assert_eq!(code(&["--api-sock", "api.sock"]), Some(1), "the socket of a VMM that runs");
    assert_eq!(code(&["--no-such-argument"]), Some(153));
}
