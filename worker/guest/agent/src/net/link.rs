//! Sets links, addresses and routes over rtnetlink, one request and its answer at a time.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::netdevice::name_to_index;
use smoltcp::wire::EthernetAddress;

use super::NetError;

/// An answer is an error code and the head of our request.
const ANSWER_BYTES: usize = 4096;

/// One network interface.
#[derive(Debug)]
pub struct Link {
    name: String,
    index: u32,
}

impl Link {
    /// Finds an interface by name.
    pub fn find(name: &str) -> Result<Self, NetError> {
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
        let index = socket
            .and_then(|socket| name_to_index(&socket, name))
            .map_err(|errno| NetError::during("find the interface")(errno.into()))?;
        Ok(Self { name: name.to_owned(), index })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip link set NAME up`
    pub fn up(&self) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        request(RouteNetlinkMessage::SetLink(message), 0).map_err(NetError::during("set the link up"))
    }

    /// `ip link set NAME address MAC`, while the link is down.
    pub fn set_mac(&self, mac: EthernetAddress) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.attributes = vec![LinkAttribute::Address(mac.0.to_vec())];
        request(RouteNetlinkMessage::SetLink(message), 0).map_err(NetError::during("set the MAC"))
    }

    /// `ip address replace ADDRESS/PREFIX dev NAME`
    pub fn set_address(&self, address: Ipv4Addr, prefix: u8) -> Result<(), NetError> {
        let message = self.address_message(address, prefix);
        request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(NetError::during("set the address"))
    }

    /// `ip address delete ADDRESS/PREFIX dev NAME`; the kernel drops the routes with it.
    pub fn remove_address(&self, address: Ipv4Addr, prefix: u8) -> Result<(), NetError> {
        let message = self.address_message(address, prefix);
        request(RouteNetlinkMessage::DelAddress(message), 0).map_err(NetError::during("remove the address"))
    }

    /// `ip route replace default via GATEWAY dev NAME`
    pub fn set_gateway(&self, gateway: Ipv4Addr) -> Result<(), NetError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Dhcp;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes =
            vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(self.index)];
        request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(NetError::during("set the default route"))
    }

    fn address_message(&self, address: Ipv4Addr, prefix: u8) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = self.index;
        message.header.prefix_len = prefix;
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(address)),
            AddressAttribute::Address(IpAddr::V4(address)),
            AddressAttribute::Broadcast(broadcast_of(address, prefix)),
        ];
        message
    }
}

/// Programs expect 127.0.0.1 to work.
pub fn up_loopback() -> Result<(), NetError> {
    Link::find("lo")?.up()
}

/// The last address of the network.
fn broadcast_of(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() | host_bits)
}

fn request(payload: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(payload));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answer = vec![0; ANSWER_BYTES];
    let count = socket.recv(&mut answer.as_mut_slice(), 0)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer.get(..count).unwrap_or_default())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_address() {
        let address = Ipv4Addr::new(192, 168, 100, 7);
        assert_eq!(broadcast_of(address, 24), Ipv4Addr::new(192, 168, 100, 255));
        assert_eq!(broadcast_of(address, 32), address);
        assert_eq!(broadcast_of(address, 0), Ipv4Addr::BROADCAST);
    }

    #[test]
    fn an_interface_that_does_not_exist_is_an_error_with_its_cause() {
        let error = Link::find("no-such-if0").unwrap_err();
        assert!(error.to_string().starts_with("find the interface: "), "{error}");
    }
}
