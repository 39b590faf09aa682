//! The DHCP client's loop: get a lease, set it, keep it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::message::{Client, Lease, Reply};
use super::{Link, NetError};
use crate::console;
use crate::status::{Stage, Status, uptime};

const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::BROADCAST, 67);
const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::UNSPECIFIED, 68);
/// RFC 2131 starts at 4 s, for shared Ethernets of 1997. Here the server is the host itself,
/// and what gets lost is the first packets while the bridge port comes up.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// Longest pause between two tries; many guests may wait for one server.
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Tries for one offer before the search starts again.
const REQUEST_TRIES: u32 = 4;
/// Longest DHCP message over Ethernet.
const DATAGRAM_BYTES: usize = 1500;

/// Gets an address and keeps it for as long as the guest runs. Returns only when the
/// kernel refuses to go on.
pub fn run(link: &Link, client: &Client, status: &Status, mut on_lease: impl FnMut()) -> Result<(), NetError> {
    let socket = open(link.name()).map_err(NetError::during("open the DHCP socket"))?;
    let exchange = Exchange { socket, client };
    loop {
        let mut lease = exchange.acquire();
        apply(link, &lease)?;
        status.reached(Stage::Address);
        console::say(format_args!(
            "{} {}/{} via {} from DHCP after {:.3} s",
            link.name(),
            lease.address,
            lease.prefix,
            lease.gateway.map_or_else(|| "none".to_owned(), |gateway| gateway.to_string()),
            uptime().as_secs_f64(),
        ));
        on_lease();
        while let Some(renewed) = exchange.keep(&lease) {
            if renewed.address != lease.address {
                link.remove_address(lease.address, lease.prefix)?;
            }
            apply(link, &renewed)?;
            lease = renewed;
        }
        // An address without a lease may be somebody else's by now.
        console::say("the DHCP lease ended");
        link.remove_address(lease.address, lease.prefix)?;
    }
}

fn apply(link: &Link, lease: &Lease) -> Result<(), NetError> {
    link.set_address(lease.address, lease.prefix)?;
    match lease.gateway {
        Some(gateway) => link.set_gateway(gateway),
        None => Ok(()),
    }
}

/// Bound to the interface, because a guest without an address has no route to broadcast on.
fn open(interface: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from(CLIENT).into())?;
    Ok(socket.into())
}

/// The growing pauses between tries.
fn retries() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(FIRST_RETRY), |pause| Some((*pause * 2).min(LAST_RETRY)))
}

struct Exchange<'a> {
    socket: UdpSocket,
    client: &'a Client,
}

impl Exchange<'_> {
    /// Searches until a server grants a lease; a guest without an address has nothing else to do.
    fn acquire(&self) -> Lease {
        for pause in retries() {
            let xid = self.transaction();
            let Some(Reply::Offer(offer)) = self.ask(xid, &self.client.discover(xid), pause) else {
                continue;
            };
            for pause in retries().take(REQUEST_TRIES as usize) {
                match self.ask(xid, &self.client.request(xid, &offer), pause) {
                    Some(Reply::Ack(lease)) => return lease,
                    Some(Reply::Nak) => break,
                    _ => {}
                }
            }
        }
        unreachable!("the pauses never end")
    }

    /// Waits for half of the lease, then asks until it is prolonged. `None`: it is lost.
    fn keep(&self, lease: &Lease) -> Option<Lease> {
        let granted = Instant::now();
        std::thread::sleep(lease.renew_after());
        while granted.elapsed() < lease.duration {
            let xid = self.transaction();
            match self.ask(xid, &self.client.renew(xid, lease), LAST_RETRY) {
                Some(Reply::Ack(renewed)) => return Some(renewed),
                Some(Reply::Nak) => return None,
                _ => {}
            }
        }
        None
    }

    /// Sends once and waits for this transaction's answer. A send that fails (link still
    /// coming up) is like a lost packet: the wait is the pause before the next try.
    fn ask(&self, xid: u32, message: &[u8], wait: Duration) -> Option<Reply> {
        let started = Instant::now();
        let _ = self.socket.send_to(message, SERVER);
        let mut buffer = [0; DATAGRAM_BYTES];
        loop {
            let left = wait.saturating_sub(started.elapsed());
            if left.is_zero() || self.socket.set_read_timeout(Some(left)).is_err() {
                return None;
            }
            let Ok(count) = self.socket.recv(&mut buffer) else {
                continue;
            };
            let reply = self.client.parse(xid, buffer.get(..count).unwrap_or_default());
            if reply.is_some() {
                return reply;
            }
        }
    }

    /// Pairs an answer with its question among the guests of one bridge; it protects nothing.
    /// The kernel's random numbers may not be ready this early and would block.
    fn transaction(&self) -> u32 {
        let [.., c, d, e, f] = self.client.mac.0;
        u32::from_be_bytes([c, d, e, f]).rotate_left(11) ^ uptime().as_nanos() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_start_fast_and_settle_at_once_a_second() {
        let pauses: Vec<_> = retries().take(7).map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
    }
}
