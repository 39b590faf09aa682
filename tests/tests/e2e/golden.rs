//! The golden image: a whole Debian with the services that operators look for; and the fault that
//! Stoker grew from, made on purpose, named, and mended.

use serde_json::{Value, json};
use stoker_schemas::Phase;

use crate::stage::{Needs, Stage};

/// What operators read on the console of a healthy VM.
const SERVICES: [&str; 5] = [
    "VM Browser OAuth Agent",
    "X Virtual Frame Buffer",
    "Openbox Window Manager",
    "Network Configuration",
    "Network Name Resolution",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_golden_image_is_ready_with_every_service() {
    let Some(stage) = Stage::open("the_golden_image_is_ready_with_every_service", Needs::Qemu, "golden") else {
        return;
    };
    let (code, report) = stage.up(&["--image", "golden", "--once"]).await.ended().await;
    assert_eq!(code, 0, "{report}");
    let console = stage.kept_console();
    for service in SERVICES {
        assert!(report.contains(&format!("| unit {service} | ✓")), "{service} was not asked for and seen: {report}");
        assert!(console.contains(&format!("[  OK  ] Started {service}")), "no line of {service}: {console}");
    }
    assert!(report.contains("| DHCP lease | ✓") && report.contains("(192.168.100."), "{report}");
    assert!(report.contains("| identity | ✓"), "{report}");
    stage.assert_nothing_left();
}

/// The operators' controller wrote `ip=` on the kernel line of a guest that runs DHCP. Stoker refuses that
/// unless the image claims to be static: here its manifest is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fault_that_stoker_grew_from_is_named_and_mended() {
    let test = "the_fault_that_stoker_grew_from_is_named_and_mended";
    let Some(stage) = Stage::open(test, Needs::Qemu, "golden") else { return };
    let stage = stage.with_image_like("golden", "golden-mislabelled", |manifest| {
        manifest["network"] = "static".into();
        manifest["allow_static"] = true.into();
    });
    let mut up = stage.up(&["--no-vm"]).await;
    let id = up
        .enqueue(&[
            "golden-mislabelled",
            "--memory-mib=512",
            "--vcpus=2",
            "--static-address=192.168.100.2",
            "--static-gateway=192.168.100.1",
            // Long after networkd has taken the interface, also on a busy machine.
            "--deadline-ms=60000",
            "--max-attempts=3",
        ])
        .await;
    let job = up.reaches(id, Phase::Dead).await;
    let diagnosis = &job["attempts"][0]["diagnosis"];
    assert_eq!(diagnosis["cause"], "conflicting_network", "{job:#}");
    assert_eq!(diagnosis["confidence"], "certain", "{job:#}");
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "no other attempt could help: {job:#}");
    let seen = diagnosis["evidence"].to_string();
    assert!(seen.contains("IP-Config") && seen.contains("192.168.100.2"), "{seen}");

    // As the remedy says.
    let spec = json!({
        "image": "golden-mislabelled", "memory_mib": 512, "vcpus": 2,
        "readiness": {"units": SERVICES},
    });
    let url = format!("{}/v1/jobs/{id}/retry", up.server().await);
    let request = json!({"reason": "network.static taken out", "spec": spec});
    let answer = reqwest::Client::new().post(url).json(&request).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    let job: Value = up.reaches(id, Phase::Ready).await;
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(2), "{job:#}");

    let (code, report, stderr) = up.stoker(&["report", &id.to_string()]).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(report.contains("conflicting network configuration"), "{report}");
    assert!(report.contains("attempt 1") && report.contains("attempt 2"), "before and after: {report}");
    let (code, _, stderr) = up.stoker(&["stop", &id.to_string()]).await;
    assert_eq!(code, 0, "{stderr}");
    up.job(id, "is cleared away", |job| job["attempts"][1]["gone"].is_object()).await;
    up.end().await;
    stage.assert_nothing_left();
}
