//! What the kernel tells of changes, and which of it concerns the overlay.

use std::collections::BTreeSet;
use std::io;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;

use super::model::PROTOCOL_SEAWAY;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// The main routing table (`RT_TABLE_MAIN`).
const TABLE_MAIN: u32 = 254;

/// Which links matter. The default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// Names of our devices, and the underlay's where it is known.
    pub names: BTreeSet<String>,
    /// Indices of our devices.
    pub ours: BTreeSet<u32>,
    /// Index of the underlay; none while there is none: then every link and address matters.
    pub underlay: Option<u32>,
}

impl Interest {
    /// Whether a message tells of something that may need mending.
    pub fn concerns(&self, message: &Message) -> bool {
        match message {
            Message::NewLink(link) | Message::DelLink(link) => self.link(link),
            Message::NewAddress(addr) | Message::DelAddress(addr) => {
                self.is_known(addr.header.index)
            }
            // The underlay's own neighbours come and go all the time.
            Message::NewNeighbour(neigh) | Message::DelNeighbour(neigh) => {
                self.ours.contains(&neigh.header.ifindex)
            }
            Message::NewRoute(route) | Message::DelRoute(route) => is_made_by_someone(route),
            _ => false,
        }
    }

    fn is_known(&self, index: u32) -> bool {
        self.ours.contains(&index) || self.underlay.is_none_or(|underlay| underlay == index)
    }

    fn link(&self, link: &LinkMessage) -> bool {
        self.is_known(link.header.index)
            || link
                .attributes
                .iter()
                .any(|a| matches!(a, LinkAttribute::IfName(name) if self.names.contains(name)))
    }
}

/// A route of ours, or one by which another may have replaced it. Those that the kernel makes for
/// addresses and links, which come with every pod, are not.
fn is_made_by_someone(route: &RouteMessage) -> bool {
    let table = route
        .attributes
        .iter()
        .find_map(|a| match a {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(u32::from(route.header.table));
    let protocol = route.header.protocol;
    protocol == RouteProtocol::from(PROTOCOL_SEAWAY)
        || (table == TABLE_MAIN && protocol != RouteProtocol::Kernel)
}

/// A subscription to the kernel's notifications.
pub struct Events {
    messages: UnboundedReceiver<(NetlinkMessage<Message>, SocketAddr)>,
    pump: JoinHandle<()>,
}

impl Events {
    /// Subscribes, in the calling thread's network namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> io::Result<Self> {
        let (connection, _, messages) = new_multicast_connection(&GROUPS)?;
        Ok(Self {
            messages,
            pump: tokio::spawn(connection),
        })
    }

    /// Waits for something of interest, and throws away what came with it. False: the subscription
    /// broke and has to be made anew.
    pub async fn next(&mut self, interest: &Interest) -> bool {
        while let Some((message, _)) = self.messages.next().await {
            if is_of_interest(interest, &message) {
                return true;
            }
        }
        false
    }
}

fn is_of_interest(interest: &Interest, message: &NetlinkMessage<Message>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(message) => interest.concerns(message),
        // The kernel had more to tell than we took: anything may have happened.
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.pump.abort();
    }
}
