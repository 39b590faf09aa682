//! DHCP messages of the client: what is sent, and what an answer means. No IO.

use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress};

/// Options that the client wants to hear: subnet mask, router, lease time (RFC 2132).
const WANTED_OPTIONS: &[u8] = &[1, 3, 51];
/// The host name option (RFC 2132).
const HOSTNAME_OPTION: u8 = 12;
/// BOOTP's fixed size, which some servers still expect at least.
const MIN_MESSAGE: usize = 300;
/// Longest host name that fits one DNS label.
const MAX_HOSTNAME: usize = 63;
/// For a server that names no lease time.
const DEFAULT_LEASE: Duration = Duration::from_hours(1);
/// A lease shorter than this would keep the client busy renewing.
const MIN_LEASE: Duration = Duration::from_secs(10);
/// Network mask for a server that sends none.
const DEFAULT_PREFIX: u8 = 24;

/// Reads a hardware address as the kernel shows it: `52:54:00:12:34:56`.
pub fn parse_mac(text: &str) -> Option<EthernetAddress> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(EthernetAddress(bytes))
}

/// What the server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// The default gateway, if any.
    pub gateway: Option<Ipv4Addr>,
    /// Who granted it.
    pub server: Option<Ipv4Addr>,
    /// For how long.
    pub duration: Duration,
}

impl Lease {
    /// When to ask for a prolongation, as RFC 2131 proposes (T1).
    pub fn renew_after(&self) -> Duration {
        self.duration / 2
    }
}

/// An answer that belongs to the running transaction.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// A server would give this.
    Offer(Lease),
    /// A server has given this.
    Ack(Lease),
    /// A server takes back what the client believed.
    Nak,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Client {
    /// The interface's hardware address.
    pub mac: EthernetAddress,
    /// Name that the server shows in its list of leases.
    pub hostname: Option<String>,
}

impl Client {
    /// A client named after its VM, as far as that makes a host name.
    pub fn new(mac: EthernetAddress, vm_id: &str) -> Self {
        let hostname: String =
            vm_id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(MAX_HOSTNAME).collect();
        let hostname = hostname.trim_matches('-').to_owned();
        Self { mac, hostname: (!hostname.is_empty()).then_some(hostname) }
    }

    /// "Is there a server?"
    pub fn discover(&self, xid: u32) -> Vec<u8> {
        self.encode(&self.message(xid, DhcpMessageType::Discover))
    }

    /// "I take this offer."
    pub fn request(&self, xid: u32, offer: &Lease) -> Vec<u8> {
        self.encode(&DhcpRepr {
            requested_ip: Some(offer.address),
            server_identifier: offer.server,
            ..self.message(xid, DhcpMessageType::Request)
        })
    }

    /// "May I keep my address?", to whichever server hears it.
    pub fn renew(&self, xid: u32, lease: &Lease) -> Vec<u8> {
        self.encode(&DhcpRepr { client_ip: lease.address, ..self.message(xid, DhcpMessageType::Request) })
    }

    fn message(&self, xid: u32, kind: DhcpMessageType) -> DhcpRepr<'static> {
        let none = Ipv4Addr::UNSPECIFIED;
        DhcpRepr {
            message_type: kind,
            transaction_id: xid,
            secs: 0,
            client_hardware_address: self.mac,
            client_ip: none,
            your_ip: none,
            server_ip: none,
            router: None,
            subnet_mask: None,
            relay_agent_ip: none,
            // Without an address the kernel hands no unicast to a UDP socket.
            broadcast: true,
            requested_ip: None,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: Some(WANTED_OPTIONS),
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    /// Only a value too long for its option cannot be encoded, and none here can be. An
    /// empty message would go unanswered, as a lost one does.
    fn encode(&self, message: &DhcpRepr<'_>) -> Vec<u8> {
        let name = self.hostname.as_deref().map(|name| DhcpOption { kind: HOSTNAME_OPTION, data: name.as_bytes() });
        let message = DhcpRepr { additional_options: name.as_slice(), ..message.clone() };
        let mut bytes = vec![0; message.buffer_len().max(MIN_MESSAGE)];
        match message.emit(&mut DhcpPacket::new_unchecked(bytes.as_mut_slice())) {
            Ok(()) => bytes,
            Err(_) => Vec::new(),
        }
    }

    /// Reads a datagram; `None` when it is not an answer to this client's transaction.
    pub fn parse(&self, xid: u32, bytes: &[u8]) -> Option<Reply> {
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        let message = DhcpRepr::parse(&packet).ok()?;
        if message.transaction_id != xid || message.client_hardware_address != self.mac {
            return None;
        }
        match message.message_type {
            DhcpMessageType::Offer => lease_of(&message).map(Reply::Offer),
            DhcpMessageType::Ack => lease_of(&message).map(Reply::Ack),
            DhcpMessageType::Nak => Some(Reply::Nak),
            _ => None,
        }
    }
}

/// What a server would say, for the fuzzer to begin with.
impl Client {
    pub(crate) fn answers(&self, xid: u32, lease: &Lease) -> Vec<Vec<u8>> {
        let kinds = [DhcpMessageType::Offer, DhcpMessageType::Ack, DhcpMessageType::Nak];
        let answer = |kind| {
            self.encode(&DhcpRepr {
                your_ip: lease.address,
                subnet_mask: Some(Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(lease.prefix)).unwrap_or(0))),
                router: lease.gateway,
                server_identifier: lease.server,
                lease_duration: u32::try_from(lease.duration.as_secs()).ok(),
                parameter_request_list: None,
                ..self.message(xid, kind)
            })
        };
        kinds.map(answer).to_vec()
    }
}

fn lease_of(message: &DhcpRepr<'_>) -> Option<Lease> {
    let address = message.your_ip;
    if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
        return None;
    }
    let duration =
        message.lease_duration.map_or(DEFAULT_LEASE, |seconds| Duration::from_secs(u64::from(seconds)).max(MIN_LEASE));
    Some(Lease {
        address,
        prefix: message.subnet_mask.map_or(Some(DEFAULT_PREFIX), prefix_of)?,
        gateway: message.router,
        server: message.server_identifier,
        duration,
    })
}

/// `None` for a mask with holes.
fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    (bits.leading_ones() + bits.trailing_zeros() == 32).then(|| u8::try_from(bits.leading_ones()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const XID: u32 = 0x1234_5678;
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 1);

    fn client() -> Client {
        Client::new(parse_mac("52:54:00:12:34:56").unwrap(), "vm-7")
    }

    fn answer(kind: DhcpMessageType, change: impl FnOnce(&mut DhcpRepr<'_>)) -> Vec<u8> {
        let mut message = DhcpRepr {
            your_ip: Ipv4Addr::new(192, 168, 100, 7),
            subnet_mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            router: Some(SERVER),
            server_identifier: Some(SERVER),
            lease_duration: Some(3600),
            ..client().message(XID, kind)
        };
        change(&mut message);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut DhcpPacket::new_unchecked(bytes.as_mut_slice())).unwrap();
        bytes
    }

    /// What a server would see of the client's message.
    fn sent<T>(bytes: &[u8], look: impl FnOnce(&DhcpRepr<'_>) -> T) -> T {
        let packet = DhcpPacket::new_checked(bytes).unwrap();
        look(&DhcpRepr::parse(&packet).unwrap())
    }

    #[test]
    fn mac_addresses() {
        assert_eq!(client().mac.to_string(), "52-54-00-12-34-56");
        for wrong in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:5g", "5254:00:12:34:56"] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn discover_asks_for_a_broadcast_answer_and_names_the_vm() {
        let bytes = client().discover(XID);
        assert!(bytes.len() >= MIN_MESSAGE);
        sent(&bytes, |message| {
            assert!(message.broadcast);
            assert_eq!(message.message_type, DhcpMessageType::Discover);
        });
        let packet = DhcpPacket::new_checked(bytes.as_slice()).unwrap();
        let name = packet.options().find(|option| option.kind == HOSTNAME_OPTION);
        assert_eq!(name.unwrap().data, b"vm-7");
    }

    #[test]
    fn request_names_the_offer_and_its_server_and_renew_the_current_address() {
        let bytes = answer(DhcpMessageType::Offer, |_| {});
        let Some(Reply::Offer(offer)) = client().parse(XID, &bytes) else { unreachable!("the answer is an offer") };
        sent(&client().request(XID, &offer), |message| {
            assert_eq!(message.client_ip, Ipv4Addr::UNSPECIFIED);
            assert_eq!(message.server_identifier, Some(SERVER));
            assert_eq!(message.requested_ip, Some(offer.address));
        });
        sent(&client().renew(XID, &offer), |message| {
            assert_eq!(message.client_ip, offer.address);
            assert_eq!(message.server_identifier, None);
        });
    }

    #[test]
    fn an_ack_becomes_a_lease() {
        let reply = client().parse(XID, &answer(DhcpMessageType::Ack, |_| {}));
        let lease = Lease {
            address: Ipv4Addr::new(192, 168, 100, 7),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(192, 168, 100, 1)),
            server: Some(Ipv4Addr::new(192, 168, 100, 1)),
            duration: Duration::from_hours(1),
        };
        assert_eq!(lease.renew_after(), Duration::from_mins(30));
        assert_eq!(reply, Some(Reply::Ack(lease)));
    }

    #[test]
    fn answers_to_others_are_ignored() {
        let ack = answer(DhcpMessageType::Ack, |_| {});
        assert_eq!(client().parse(XID + 1, &ack), None);
        let other = answer(DhcpMessageType::Ack, |message| {
            message.client_hardware_address = EthernetAddress([2, 0, 0, 0, 0, 9]);
        });
        assert_eq!(client().parse(XID, &other), None);
        assert_eq!(client().parse(XID, &client().discover(XID)), None);
    }

    #[test]
    fn nonsense_is_ignored() {
        assert_eq!(client().parse(XID, b""), None);
        assert_eq!(client().parse(XID, &[0xff; 600]), None);
        let no_address = answer(DhcpMessageType::Offer, |message| {
            message.your_ip = Ipv4Addr::UNSPECIFIED;
        });
        assert_eq!(client().parse(XID, &no_address), None);
        let holes = answer(DhcpMessageType::Offer, |message| {
            message.subnet_mask = Some(Ipv4Addr::new(255, 0, 255, 0));
        });
        assert_eq!(client().parse(XID, &holes), None);
    }

    #[test]
    fn every_cut_and_every_changed_byte_of_an_answer_is_survived() {
        let whole = answer(DhcpMessageType::Ack, |_| {});
        for end in 0..whole.len() {
            let _ = client().parse(XID, &whole[..end]);
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[end] = value;
                let _ = client().parse(XID, &changed);
            }
        }
    }

    #[test]
    fn a_short_lease_is_stretched_and_names_are_cleaned() {
        let short = answer(DhcpMessageType::Ack, |message| message.lease_duration = Some(0));
        let reply = client().parse(XID, &short);
        assert!(matches!(reply, Some(Reply::Ack(lease)) if lease.duration == MIN_LEASE));
        let mac = client().mac;
        let name = |vm_id: &str| Client::new(mac, vm_id).hostname;
        assert_eq!(name("-a_b c-").as_deref(), Some("abc"));
        assert_eq!(name(""), None);
        assert_eq!(name(&"x".repeat(100)).map(|name| name.len()), Some(MAX_HOSTNAME));
    }
}
