//! Leases after the VM: given back as the guest itself would (DHCPRELEASE), so that dnsmasq hands
//! the address to the next MAC; and struck from the file while dnsmasq does not run.

use std::{fs, io, net::Ipv4Addr, path::Path, time::Duration};

use stoker_schemas::id::Mac;
use tokio::{net::UdpSocket, sync::broadcast, time::timeout};

use super::{Settings, hub::Hub, reservations};
use crate::{
    net::{namespace::Namespace, system},
    ports::net::NetError,
};

const SERVER_PORT: u16 = 67;
/// How long dnsmasq may take to confirm before it is asked again.
const CONFIRM_WITHIN: Duration = Duration::from_millis(200);
/// How often it is asked.
const TRIES: usize = 3;
/// Looks for a lease before it is taken not to be there.
const LOOKS: u32 = 3;
/// Between them; a rewrite of the file takes a fraction of it.
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// A line of the lease file: `expiry mac address name client-id`.
#[derive(Debug, PartialEq, Eq)]
struct Lease {
    mac: Mac,
    address: Ipv4Addr,
    client_id: Option<Vec<u8>>,
}

fn parse(line: &str) -> Option<Lease> {
    let mut words = line.split_whitespace().skip(1);
    let (mac, address) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let client_id = words
        .nth(1)
        .filter(|id| *id != "*")
        .and_then(|id| id.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Option<Vec<_>>>());
    Some(Lease { mac, address, client_id })
}

fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

/// Gives back what this MAC holds, if anything; returns once dnsmasq says so.
pub(super) async fn release(namespace: &Namespace, settings: &Settings, hub: &Hub, mac: Mac) -> Result<(), NetError> {
    let what = || format!("give back the lease of {mac}");
    let Some(lease) = find(settings, mac).await.map_err(|e| system(what(), &e))? else { return Ok(()) };
    let packet = release_packet(&lease, settings.server);
    let mut releases = hub.releases();
    for _ in 0..TRIES {
        let (bridge, server, packet) = (settings.bridge.clone(), settings.server, packet.clone());
        let sent = namespace.within(async move { send(&bridge, server, &packet).await }).await;
        sent.map_err(|e| system(what(), &e))?;
        if timeout(CONFIRM_WITHIN, heard(&mut releases, mac)).await.is_ok() {
            return Ok(());
        }
    }
    Err(NetError::System { what: what(), cause: format!("dnsmasq did not confirm {TRIES} requests") })
}

/// The lease of this MAC. dnsmasq empties its file and writes it anew at every change, so a look in
/// between sees none: only what is missing several times is not there.
async fn find(settings: &Settings, mac: Mac) -> io::Result<Option<Lease>> {
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        let text = read(&settings.leases())?;
        if let Some(lease) = text.lines().filter_map(parse).find(|lease| lease.mac == mac) {
            return Ok(Some(lease));
        }
    }
    Ok(None)
}

async fn heard(releases: &mut broadcast::Receiver<Mac>, mac: Mac) {
    loop {
        match releases.recv().await {
            Ok(released) if released == mac => return,
            // Others', or too many at once: the next try tells.
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// Bound to the bridge: dnsmasq ignores what comes in elsewhere.
async fn send(bridge: &str, server: Ipv4Addr, packet: &[u8]) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.bind_device(Some(bridge.as_bytes()))?;
    socket.send_to(packet, (server, SERVER_PORT)).await?;
    Ok(())
}

/// A DHCPRELEASE (RFC 2131, 4.4.4).
fn release_packet(lease: &Lease, server: Ipv4Addr) -> Vec<u8> {
    const REQUEST_OF_ETHERNET: [u8; 4] = [1, 1, 6, 0];
    const HEADER_BYTES: usize = 236;
    const MAGIC: [u8; 4] = [99, 130, 83, 99];
    let mut packet = vec![0; HEADER_BYTES];
    packet[..4].copy_from_slice(&REQUEST_OF_ETHERNET);
    packet[4..8].copy_from_slice(&lease.mac.0[2..]); // transaction id: any
    packet[12..16].copy_from_slice(&lease.address.octets());
    packet[28..34].copy_from_slice(&lease.mac.0);
    packet.extend(MAGIC);
    packet.extend([53, 1, 7]); // message type: release
    packet.extend([54, 4]); // server identifier
    packet.extend(server.octets());
    // dnsmasq knows a client by its id where it sent one, not by its MAC.
    if let Some((id, length)) = lease.client_id.as_ref().and_then(|id| Some((id, u8::try_from(id.len()).ok()?))) {
        packet.extend([61, length]);
        packet.extend(id);
    }
    packet.push(255);
    packet
}

/// Strikes leases without a reservation. Only while dnsmasq does not run.
pub(super) fn prune(settings: &Settings) -> io::Result<()> {
    let known = reservations::read(&settings.reservations())?;
    let text = read(&settings.leases())?;
    let kept = |line: &&str| parse(line).is_some_and(|lease| known.get(&lease.mac) == Some(&lease.address));
    let lines: String = text.lines().filter(kept).flat_map(|line| [line, "\n"]).collect();
    let new = settings.leases().with_extension("new");
    fs::write(&new, lines)?;
    fs::rename(new, settings.leases())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_lines_with_and_without_an_id() {
        let lease = parse("1795523900 02:00:00:00:00:01 192.168.100.2 * *").unwrap();
        assert_eq!((lease.address, lease.client_id), (Ipv4Addr::new(192, 168, 100, 2), None));
        let lease = parse("1795523900 02:00:00:00:00:01 192.168.100.2 vm ff:02:0a").unwrap();
        assert_eq!(lease.client_id, Some(vec![0xff, 2, 10]));
        assert_eq!(parse("duid 00:01:00:01"), None);
    }

    #[test]
    fn a_release_names_client_server_and_id() {
        let lease = parse("0 02:00:00:00:00:01 192.168.100.2 vm ff:0a").unwrap();
        let packet = release_packet(&lease, Ipv4Addr::new(192, 168, 100, 1));
        assert_eq!(packet[12..16], [192, 168, 100, 2]);
        assert_eq!(packet[240..], [53, 1, 7, 54, 4, 192, 168, 100, 1, 61, 2, 0xff, 10, 255]);
    }
}
