//! What dnsmasq's log lines mean. Pure; the lines are dnsmasq's, the host name in them the guest's
//! (dnsmasq lets letters, digits, '-' and '.' through).

use std::net::Ipv4Addr;

use stoker_schemas::id::Mac;

use crate::ports::net::NetSignal;

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// It listens.
    Ready,
    /// It (re)reads its reservations: the one file it is told to read.
    Read,
    /// A guest and the server talk.
    Dhcp(Mac, Vec<NetSignal>),
    /// A lease was given back.
    Released(Mac),
    /// Anything else.
    Other,
}

/// Reads one line.
pub(crate) fn understand(line: &str) -> Said {
    // `dnsmasq-dhcp[123]: <message>`
    let Some((source, message)) = line.split_once("]: ") else { return Said::Other };
    if !source.starts_with("dnsmasq") {
        return Said::Other;
    }
    if message.starts_with("DHCP, sockets bound") {
        return Said::Ready;
    }
    if message.starts_with("read ") {
        return Said::Read;
    }
    dhcp(message).unwrap_or(Said::Other)
}

/// `DHCPACK(st0) [<address>] <mac> [<host name or reason>]`
fn dhcp(message: &str) -> Option<Said> {
    let mut words = message.split_whitespace().peekable();
    let verb = words.next()?.split_once('(')?.0;
    let address = words.peek().and_then(|w| w.parse::<Ipv4Addr>().ok());
    if address.is_some() {
        words.next();
    }
    let mac: Mac = words.next()?.parse().ok()?;
    let rest = words.collect::<Vec<_>>().join(" ");
    let signals = match (verb, address) {
        ("DHCPDISCOVER", _) if rest.is_empty() => vec![NetSignal::Discover],
        ("DHCPDISCOVER", _) => vec![NetSignal::Discover, NetSignal::Refused(rest)],
        ("DHCPOFFER", Some(address)) => vec![NetSignal::Offer(address)],
        ("DHCPREQUEST", Some(address)) => vec![NetSignal::Request(address)],
        ("DHCPACK", Some(address)) => vec![NetSignal::Ack(address)],
        ("DHCPNAK", Some(address)) => vec![NetSignal::Refused(format!("{address}: {rest}"))],
        ("DHCPDECLINE", Some(address)) => vec![NetSignal::Declined(address)],
        ("DHCPRELEASE", _) => return Some(Said::Released(mac)),
        _ => return None,
    };
    Some(Said::Dhcp(mac, signals))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 2);

    fn heard(message: &str) -> Said {
        understand(&format!("dnsmasq-dhcp[25065]: {message}"))
    }

    #[test]
    fn a_lease_is_four_signals() {
        let one = |signal| Said::Dhcp(MAC, vec![signal]);
        assert_eq!(heard("DHCPDISCOVER(st0) 02:00:00:00:00:01 "), one(NetSignal::Discover));
        assert_eq!(heard("DHCPDISCOVER(st0) 192.168.100.9 02:00:00:00:00:01 "), one(NetSignal::Discover));
        assert_eq!(heard("DHCPOFFER(st0) 192.168.100.2 02:00:00:00:00:01 "), one(NetSignal::Offer(ADDRESS)));
        assert_eq!(heard("DHCPREQUEST(st0) 192.168.100.2 02:00:00:00:00:01 "), one(NetSignal::Request(ADDRESS)));
        assert_eq!(heard("DHCPACK(st0) 192.168.100.2 02:00:00:00:00:01 golden-vm"), one(NetSignal::Ack(ADDRESS)));
    }

    #[test]
    fn refusals_carry_the_servers_words() {
        let refused = |words: &str| NetSignal::Refused(words.to_owned());
        assert_eq!(
            heard("DHCPDISCOVER(st0) 02:00:00:00:00:01 no address available"),
            Said::Dhcp(MAC, vec![NetSignal::Discover, refused("no address available")])
        );
        assert_eq!(
            heard("DHCPNAK(st0) 192.168.100.7 02:00:00:00:00:01 wrong address"),
            Said::Dhcp(MAC, vec![refused("192.168.100.7: wrong address")])
        );
    }

    #[test]
    fn the_servers_own_news_are_told_apart() {
        assert_eq!(heard("DHCP, sockets bound exclusively to interface st0"), Said::Ready);
        assert_eq!(heard("read /run/x/reservations"), Said::Read);
        assert_eq!(heard("DHCPRELEASE(st0) 192.168.100.2 02:00:00:00:00:01 "), Said::Released(MAC));
        for other in ["", "started, version 2.90", "DHCPACK(st0) nonsense", "DHCPACK", "DHCPACK(st0) 1.2.3.4"] {
            assert_eq!(heard(other), Said::Other, "{other:?}");
        }
    }
}
