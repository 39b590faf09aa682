//! Links, addresses and neighbours by rtnetlink: no forks on the way of a boot.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec,
    packet_route::{
        AddressFamily,
        link::{LinkAttribute, LinkFlags, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    },
};
use stoker_schemas::id::Mac;

use super::{namespace::Namespace, system};
use crate::ports::net::NetError;

/// Netlink inside a namespace.
#[derive(Clone)]
pub(super) struct Links {
    quick: Handle,
    teardown: Handle,
}

/// What Stoker looks at of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    /// Index of the bridge it is on.
    pub master: Option<u32>,
    /// Packets that came out of the guest; the tap "receives" them.
    pub received: u64,
    /// Packets that went to the guest.
    pub sent: u64,
}

/// A neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub mac: Option<Mac>,
    pub state: String,
}

impl Links {
    pub async fn open(namespace: &Namespace) -> Result<Self, NetError> {
        let [quick, teardown] = namespace.netlink_threads();
        Ok(Self { quick: connect(quick).await?, teardown: connect(teardown).await? })
    }

    pub async fn set_up(&self, name: &str) -> Result<(), NetError> {
        let request = self.quick.link().set(LinkUnspec::new_with_name(name).up().build());
        request.execute().await.map_err(|e| failed(format!("bring up {name}"), e))
    }

    /// A bridge with this address, made where missing. Its MAC is fixed: a bridge without one
    /// changes it as taps come and go, and guests lose their gateway each time.
    pub async fn ensure_bridge(&self, name: &str, mac: Mac, address: Ipv4Addr, prefix: u8) -> Result<u32, NetError> {
        let made = LinkBridge::new(name).address(mac.0.to_vec()).build();
        match self.quick.link().add(made).execute().await {
            Ok(()) => {}
            Err(error) if is(&error, io::ErrorKind::AlreadyExists) => self.set_up(name).await?,
            Err(error) => return Err(failed(format!("make bridge {name}"), error)),
        }
        let Some(bridge) = self.find(name).await? else {
            return Err(NetError::System { what: format!("make bridge {name}"), cause: "it vanished".to_owned() });
        };
        match self.quick.address().add(bridge.index, IpAddr::V4(address), prefix).execute().await {
            Ok(()) => Ok(bridge.index),
            Err(error) if is(&error, io::ErrorKind::AlreadyExists) => Ok(bridge.index),
            Err(error) => Err(failed(format!("give {name} the address {address}/{prefix}"), error)),
        }
    }

    /// Up, on the bridge and in a group, in one message.
    pub async fn join_bridge(&self, name: &str, bridge: u32, group: u32) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_name(name).up().controller(bridge).link_group(group).build();
        let joined = self.quick.link().set(message).execute().await;
        joined.map_err(|e| failed(format!("put {name} on the bridge"), e))
    }

    pub async fn find(&self, name: &str) -> Result<Option<Link>, NetError> {
        let mut found = self.quick.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.as_ref().map(link)),
            Err(error) if no_such_link(&error) => Ok(None),
            Err(error) => Err(failed(format!("look up {name}"), error)),
        }
    }

    pub async fn all(&self) -> Result<Vec<Link>, NetError> {
        let messages: Vec<LinkMessage> =
            self.quick.link().get().execute().try_collect().await.map_err(|e| failed("list links", e))?;
        Ok(messages.iter().map(link).collect())
    }

    /// Removes a link; `Ok` where there is none.
    pub async fn delete(&self, name: &str) -> Result<(), NetError> {
        let Some(found) = self.find(name).await? else { return Ok(()) };
        match self.teardown.link().del(found.index).execute().await {
            Err(error) if !no_such_link(&error) => Err(failed(format!("remove {name}"), error)),
            _ => Ok(()),
        }
    }

    /// Tells the kernel who has an address, unconfirmed (`STALE`): packets leave at once, waiting
    /// ones too, and the kernel asks the guest itself a moment later.
    pub async fn learn(&self, link: u32, address: Ipv4Addr, mac: Mac) -> Result<(), NetError> {
        let request = self.quick.neighbours().add(link, IpAddr::V4(address));
        let request = request.link_layer_address(&mac.0).state(NeighbourState::Stale).replace();
        request.execute().await.map_err(|e| failed(format!("note the neighbour {address}"), e))
    }

    /// Forgets who had an address; `Ok` where nobody had.
    pub async fn forget(&self, link: u32, address: Ipv4Addr) -> Result<(), NetError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = link;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        match self.quick.neighbours().del(message).execute().await {
            Err(error) if !is(&error, io::ErrorKind::NotFound) => {
                Err(failed(format!("forget the neighbour {address}"), error))
            }
            _ => Ok(()),
        }
    }

    pub async fn neighbour(&self, link: u32, address: Ipv4Addr) -> Result<Option<Neighbour>, NetError> {
        let request = self.quick.neighbours().get().set_address_family(AddressFamily::Inet);
        let entries: Vec<NeighbourMessage> =
            request.execute().try_collect().await.map_err(|e| failed("list neighbours", e))?;
        let wanted = NeighbourAttribute::Destination(NeighbourAddress::Inet(address));
        let entry = entries.iter().find(|e| e.header.ifindex == link && e.attributes.contains(&wanted));
        Ok(entry.map(|entry| Neighbour {
            mac: entry.attributes.iter().find_map(mac_of),
            state: entry.header.state.to_string().to_uppercase(),
        }))
    }
}

/// The socket is made, and spoken through, on a thread of the namespace.
async fn connect(thread: &tokio::runtime::Handle) -> Result<Handle, NetError> {
    let opened = thread.spawn(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(handle)
    });
    let opened = opened.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    opened.map_err(|e| system("open a netlink socket", &e))
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
        received: 0,
        sent: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Stats64(stats) => {
                link.received = stats.rx_packets;
                link.sent = stats.tx_packets;
            }
            _ => {}
        }
    }
    link
}

fn mac_of(attribute: &NeighbourAttribute) -> Option<Mac> {
    match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    }
}

fn is(error: &rtnetlink::Error, kind: io::ErrorKind) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.to_io().kind() == kind)
}

fn no_such_link(error: &rtnetlink::Error) -> bool {
    let code = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    };
    code == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn failed(what: impl Into<String>, error: rtnetlink::Error) -> NetError {
    match error {
        rtnetlink::Error::NetlinkError(message) => system(what, &message.to_io()),
        other => NetError::System { what: what.into(), cause: other.to_string() },
    }
}
