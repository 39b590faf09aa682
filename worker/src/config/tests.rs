//! Given file and flags, then settings or every error.

use super::*;

#[test]
fn nothing_given_is_a_working_default() {
    let config = Config::merge(RawConfig::default(), Flags::default()).unwrap();
    assert_eq!(config.pools, vec![PoolName::default()]);
    assert!(config.broker.is_none());
    assert!(matches!(config.network, NetworkMode::Bridge { namespace: Some(_), .. }));
}

#[test]
fn every_error_comes_at_once() {
    let file = RawConfig::parse(
        "host = 'A B'\npools = ['x.y']\nslots = 0\nbroker = 'http://x'\n[network]\nprefix = 31\nbridge = 'a/b'",
    );
    let errors = Config::merge(file, Flags::default()).unwrap_err();
    insta::assert_snapshot!(errors);
}

#[test]
fn flags_win_over_the_file() {
    let file = RawConfig::parse("host = 'from-file'\nslots = 3");
    let flags = Flags { host: Some("from-flag".to_owned()), ..Flags::default() };
    let config = Config::merge(file, flags).unwrap();
    assert_eq!((config.host.as_str(), config.capacity.slots), ("from-flag", 3));
}

#[test]
fn a_message_is_not_kept_longer_than_the_broker_allows() {
    let merged = |file: &str| Config::merge(RawConfig::parse(file), Flags::default());
    let config = merged("hold_ms = 300000\nsettle_after_ms = 900000").unwrap();
    assert!(config.hold + config.settle_after < Duration::from_secs(25 * 60));
    let error = merged("hold_ms = 300001\nsettle_after_ms = 3600000").unwrap_err().to_string();
    for part in ["hold_ms: 300001", "at most 300000", "settle_after_ms: 3600000", "at most 900000", "consumer_timeout"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_password_is_never_shown() {
    let flags = Flags { broker: Some("amqp://me:secret@rabbit:5672/%2f".to_owned()), ..Flags::default() };
    let config = Config::merge(RawConfig::default(), flags).unwrap();
    let shown = format!("{config:?} {}", config.broker.as_ref().unwrap());
    assert!(!shown.contains("secret"), "{shown}");
    assert!(shown.contains("amqp://rabbit:5672/%2f"));
}

#[test]
fn the_accelerator_is_a_setting_and_firecracker_has_no_choice() {
    let merged = |file: &str, flag: Option<AccelMode>| {
        Config::merge(RawConfig::parse(file), Flags { accel: flag, ..Flags::default() })
    };
    assert_eq!(merged("", None).unwrap().accel, AccelMode::Auto);
    assert_eq!(merged("accel = 'tcg'", None).unwrap().accel, AccelMode::Tcg);
    assert_eq!(merged("accel = 'tcg'", Some(AccelMode::Kvm)).unwrap().accel, AccelMode::Kvm);
    let error = merged("driver = 'firecracker'\naccel = 'tcg'", None).unwrap_err().to_string();
    assert!(error.contains("accel: Firecracker needs KVM"), "{error}");
    assert!(toml::from_str::<RawConfig>("accel = 'fast'").unwrap_err().to_string().contains("`auto`, `kvm`, `tcg`"));
}

#[test]
fn a_file_that_nests_too_deep_is_refused_with_its_name_on_any_thread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("worker.toml");
    std::fs::write(&path, stoker_schemas::fuzz::deep_toml()).unwrap();
    let error = RawConfig::read(&path).unwrap_err().to_string();
    assert!(error.contains("worker.toml: line 1: nests more than 16 levels deep"), "{error}");
}
