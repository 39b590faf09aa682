//! The network rule: a guest's address has one owner. A static `ip=` on the kernel command line of
//! an image that runs DHCP gives eth0 two owners; the VM boots and nobody can reach it.

use super::{FieldError, StaticAddress};
use crate::limits::{MAX_KERNEL_ARGS_BYTES, clip};

/// Kernel parameters that configure the network (Documentation/admin-guide/nfs/nfsroot.rst,
/// dracut.cmdline(7), systemd-network-generator(8)).
const NETWORK_PARAMETERS: [&str; 9] =
    ["ip", "nfsaddrs", "nfsroot", "ifname", "vlan", "bond", "bridge", "rd.route", "nameserver"];
/// Parameters that Stoker itself sets; a job may not.
const RESERVED_PREFIX: &str = "stoker.vm_id=";

/// Everything wrong with a job's kernel arguments.
pub fn check(field: &str, args: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut wrong = |message: String, hint: &str| {
        errors.push(FieldError { field: field.to_owned(), message, hint: hint.to_owned() });
    };
    if args.len() > MAX_KERNEL_ARGS_BYTES {
        wrong(format!("{} bytes, at most {MAX_KERNEL_ARGS_BYTES}", args.len()), "shorten it: Linux cuts at 2048");
        return errors;
    }
    if let Some(c) = args.chars().find(|c| !(c.is_ascii_graphic() || *c == ' ')) {
        wrong(format!("contains {c:?}"), "printable ASCII and spaces only");
    }
    for arg in args.split_ascii_whitespace() {
        if let Some(parameter) = network_parameter(arg) {
            wrong(
                format!(
                    "{} configures the network on the kernel command line, but this image gets its address by DHCP: \
                     two owners of eth0, the VM would boot and be unreachable",
                    clip(arg, 80)
                ),
                &format!(
                    "remove {parameter}=; if the image really is static, set network to {{\"static\": …}} \
                     (the image must allow it)"
                ),
            );
        } else if arg.starts_with(RESERVED_PREFIX) {
            wrong("stoker.vm_id is set by the worker".to_owned(), "remove it");
        }
    }
    errors
}

/// The network parameter that an argument sets, if it does. The kernel treats '-' and '_' alike
/// and ignores quotes around an argument, so both are looked through.
pub fn network_parameter(arg: &str) -> Option<&'static str> {
    let (name, _) = arg.trim_matches('"').split_once('=')?;
    let name = name.replace('-', "_");
    NETWORK_PARAMETERS.into_iter().find(|p| *p == name)
}

/// The `ip=` argument of a static address (the one place that writes one).
pub fn static_argument(a: StaticAddress) -> String {
    let mask = u32::MAX.checked_shl(32 - u32::from(a.prefix)).unwrap_or(0);
    format!("ip={}::{}:{}::eth0:off", a.address, a.gateway, std::net::Ipv4Addr::from(mask))
}
