//! Given a subnet, a pool; given names, taps and others.

use uuid::Uuid;

use super::*;

#[test]
fn taps_are_told_from_the_bridge_and_from_others() {
    let vm = VmId(Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef));
    assert!(is_tap(&vm.tap()));
    assert_eq!(mac_of_tap(&vm.tap()), Some(vm.mac()));
    for other in ["st0", "eth0", "st0123456789aB", "st0123456789a", "xt0123456789ab"] {
        assert!(!is_tap(other), "{other}");
    }
}

#[test]
fn the_pool_leaves_out_the_bridge_itself() {
    let config = BridgeConfig { first: Ipv4Addr::new(192, 168, 100, 0), ..BridgeConfig::new("d") };
    let pool: Vec<_> = config.pool().take(2).collect();
    assert_eq!(pool, [Ipv4Addr::new(192, 168, 100, 0), Ipv4Addr::new(192, 168, 100, 2)]);
    assert!(!config.contains(config.address));
}

#[test]
fn a_pool_outside_the_subnet_is_refused() {
    let config = BridgeConfig { last: Ipv4Addr::new(192, 168, 101, 9), ..BridgeConfig::new("d") };
    assert!(config.check().is_err());
    assert!(BridgeConfig { prefix: 31, ..BridgeConfig::new("d") }.check().is_err());
    assert!(BridgeConfig { bridge: "st0123456789ab".to_owned(), ..BridgeConfig::new("d") }.check().is_err());
    assert!(BridgeConfig::new("d").check().is_ok());
}

#[test]
fn any_subnet_has_its_pool() {
    let pool = |address: [u8; 4], prefix| {
        let config = BridgeConfig::with_subnet("d", "st0", address.into(), prefix);
        assert!(config.check().is_ok() == (8..=30).contains(&prefix), "/{prefix}");
        (config.first.octets(), config.last.octets())
    };
    assert_eq!(pool([192, 168, 100, 1], 24), ([192, 168, 100, 1], [192, 168, 100, 254]));
    assert_eq!(pool([10, 7, 3, 9], 30), ([10, 7, 3, 9], [10, 7, 3, 10]));
    assert_eq!(pool([10, 7, 3, 9], 8), ([10, 0, 0, 1], [10, 255, 255, 254]));
    for odd in [0, 31, 32, 200] {
        pool([10, 0, 0, 1], odd);
    }
}
