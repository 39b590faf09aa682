//! Given a raw job, then a spec or these errors.

use serde_json::json;

use super::{JobSpec, Network, RawSpec, StaticAddress};

fn errors(value: serde_json::Value) -> String {
    JobSpec::from_value(&value).expect_err("must be refused").to_string()
}

#[test]
fn the_image_alone_is_enough_and_defaults_are_said_out() {
    let spec = JobSpec::from_value(&json!({"image": "golden@7"})).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&spec).unwrap());
}

#[test]
fn what_is_written_reads_back_the_same() {
    let spec = JobSpec::from_value(&json!({
        "image": "golden", "vcpus": 2, "kernel_args": "quiet  loglevel=3", "priority": "high",
        "network": {"static": {"address": "10.0.0.2", "gateway": "10.0.0.1"}},
        "readiness": {"units": ["Network Configuration"], "http": {"body_contains": "ok"}},
        "retry": {"per_cause": {"agent_not_listening": 5}}, "ttl_s": 60,
        "labels": {"team": "web"}, "idempotency_key": "deploy-1"
    }))
    .unwrap();
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), spec);
    assert!(matches!(spec.network, Network::Static(_)));
}

#[test]
fn every_error_comes_at_once_and_names_its_field() {
    insta::assert_snapshot!(errors(json!({
        "image": "../etc/passwd", "vcpus": 33, "memory_mib": "lots", "memoryMiB": 1, "pool": "a.b",
        "kernel_args": "a\u{0}b", "labels": {"bad key": "x"}, "callback_url": "ftp://x",
        "readiness": {"http": {"port": 0, "path": "health"}, "deadlineMs": 5},
        "retry": {"max_attempts": 0, "base_ms": 10, "cap_ms": 5, "per_cause": {"gremlins": 2}}
    })));
}

#[test]
fn a_network_that_says_nothing_is_not_dhcp() {
    for network in [json!({}), json!({"static": null}), json!([])] {
        let text = errors(json!({"image": "golden", "network": network}));
        assert!(text.contains("network: expected \"dhcp\" or"), "{network}: {text}");
    }
}

#[test]
fn a_kernel_line_that_configures_the_network_is_refused_with_the_reason() {
    insta::assert_snapshot!(errors(json!({
        "image": "golden",
        "kernel_args": "quiet ip=192.168.100.2::192.168.100.1:255.255.255.0::eth0:on"
    })));
    for args in ["nfsaddrs=1.2.3.4", "\"ip=dhcp\"", "nfsroot=/x", "rd.route=1"] {
        let text = errors(json!({"image": "golden", "kernel_args": args}));
        assert!(text.contains("two owners"), "{args}: {text}");
    }
    JobSpec::from_value(&json!({"image": "golden", "kernel_args": "ipv6.disable=1 zip=1"})).unwrap();
}

#[test]
fn not_even_an_object_is_an_error_not_a_panic() {
    for value in [json!(null), json!([]), json!("x"), json!({}), json!({"image": null}), json!({"image": 5})] {
        let text = errors(value);
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn a_raw_form_is_held_to_the_same_rules() {
    let raw = |vcpus| RawSpec { image: Some("golden".to_owned()), vcpus, ..RawSpec::default() };
    assert_eq!(JobSpec::from_raw(raw(Some(2))).unwrap().vcpus, 2);
    let text = JobSpec::from_raw(raw(Some(33))).unwrap_err().to_string();
    assert!(text.contains("vcpus: 33 is out of range"), "{text}");
}

#[test]
fn a_warm_vm_fits_what_is_alike_and_asks_for_nothing_that_only_a_boot_can_give() {
    let spec = || JobSpec::from_value(&json!({"image": "golden", "vcpus": 2, "memory_mib": 512})).unwrap();
    let warm = spec();
    let fits = |change: fn(&mut JobSpec)| {
        let mut job = spec();
        change(&mut job);
        job.fits_warm(&warm)
    };
    assert!(fits(|_| {}));
    assert!(fits(|job| job.kernel_args = " ".to_owned()), "blanks are no arguments");
    assert!(fits(|job| job.readiness.path = "/ready".to_owned()), "how it is asked is the job's");
    assert!(!fits(|job| job.image = "silver".parse().unwrap()));
    assert!(!fits(|job| job.vcpus = 1));
    assert!(!fits(|job| job.memory_mib = 256));
    assert!(!fits(|job| job.disk_mib = 64));
    assert!(!fits(|job| job.kernel_args = "quiet".to_owned()));
    assert!(!fits(|job| job.readiness.port = 9090));
    assert!(!fits(|job| {
        let (address, gateway) = ([10, 0, 0, 2].into(), [10, 0, 0, 1].into());
        job.network = Network::Static(StaticAddress { address, prefix: 24, gateway });
    }));
}
