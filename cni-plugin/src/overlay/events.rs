//! What the kernel tells of changes, and which of it concerns the overlay.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use linux::{fdb, neigh, route};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;

use super::model::{Entry, Key, PROTOCOL_SEAWAY};

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Room for what the kernel tells while we are busy, in bytes: three entries of a thousand nodes
/// take about 3 MiB. More means that everything is compared.
const RECEIVE_BYTES: usize = 8 << 20;

/// Which links and routes matter. The default is all links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// Names of our devices, and the underlay's where it is known.
    pub names: BTreeSet<String>,
    /// Our devices by index.
    pub ours: BTreeMap<u32, String>,
    /// Index and name of the underlay; none while there is none: then every link and address
    /// matters.
    pub underlay: Option<(u32, String)>,
    /// Other people's routes decide how nodes are reached.
    pub foreign_routes: bool,
}

/// What a message tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A device or the underlay is different: everything has to be compared.
    All,
    /// A single entry is.
    Entry(Box<ToldEntry>),
}

/// What the kernel tells of a single entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldEntry {
    /// Which one.
    pub key: Key,
    /// What is there under this key, perhaps beside what was; none: something was removed.
    pub there: Option<Entry>,
}

impl Told {
    fn entry(key: Key, there: Option<Entry>) -> Self {
        Self::Entry(Box::new(ToldEntry { key, there }))
    }
}

impl Interest {
    /// What a message tells, if it may need mending.
    pub fn told(&self, message: &Message) -> Option<Told> {
        match message {
            Message::NewLink(link) | Message::DelLink(link) => self.link(link).then_some(Told::All),
            Message::NewAddress(addr) | Message::DelAddress(addr) => {
                self.is_known(addr.header.index).then_some(Told::All)
            }
            Message::NewNeighbour(message) => self.neighbour(message, true),
            Message::DelNeighbour(message) => self.neighbour(message, false),
            Message::NewRoute(message) => self.route(message, true),
            Message::DelRoute(message) => self.route(message, false),
            _ => None,
        }
    }

    fn is_known(&self, index: u32) -> bool {
        let underlay = self.underlay.as_ref();
        self.ours.contains_key(&index) || underlay.is_none_or(|(underlay, _)| *underlay == index)
    }

    fn link(&self, link: &LinkMessage) -> bool {
        self.is_known(link.header.index)
            || link
                .attributes
                .iter()
                .any(|a| matches!(a, LinkAttribute::IfName(name) if self.names.contains(name)))
    }

    /// A neighbour or forwarding entry of ours. The underlay's own neighbours come and go all the
    /// time.
    fn neighbour(&self, message: &NeighbourMessage, there: bool) -> Option<Told> {
        let dev = self.ours.get(&message.header.ifindex)?;
        let entry = match message.header.family {
            AddressFamily::Bridge => {
                let (_, entry) = fdb::parse(message)?;
                // Some kernels (seen with 6.12) tell of each change twice, the second time without
                // the outer address; mending that would be told twice, and so on.
                entry.dst?;
                Entry::Fdb(dev.clone(), entry)
            }
            _ => {
                let (_, neigh) = neigh::parse(message)?;
                Entry::Neigh(dev.clone(), neigh)
            }
        };
        // The kernel makes neighbours of its own, which are not permanent.
        let lasting = match &entry {
            Entry::Neigh(_, neigh) => neigh.permanent,
            _ => true,
        };
        let key = entry.key();
        Some(Told::entry(key, Some(entry).filter(|_| there && lasting)))
    }

    fn route(&self, message: &RouteMessage, there: bool) -> Option<Told> {
        let (index, mut route) = route::parse(message)?;
        if route.table != route::TABLE_MAIN {
            return None;
        }
        route.dev = index.and_then(|index| self.name(index));
        let ours = route.protocol == PROTOCOL_SEAWAY;
        if !ours && message.header.protocol == netlink_packet_route::route::RouteProtocol::Kernel {
            // Comes with every address and every pod.
            return None;
        }
        if !ours && (self.foreign_routes || (route.is_default() && self.underlay.is_none())) {
            return Some(Told::All);
        }
        let key = Key::Route(route.dst, route.metric);
        // One of another's in the place of ours is to be replaced, not removed.
        Some(Told::entry(
            key,
            Some(Entry::Route(route)).filter(|_| there && ours),
        ))
    }

    fn name(&self, index: u32) -> Option<String> {
        let underlay = self.underlay.as_ref();
        let underlay = underlay.filter(|(underlay, _)| *underlay == index);
        self.ours
            .get(&index)
            .or_else(|| underlay.map(|(_, name)| name))
            .cloned()
    }
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
        Self::open_with(RECEIVE_BYTES)
    }

    /// The same with room for so many bytes.
    fn open_with(room: usize) -> io::Result<Self> {
        let (mut connection, _, messages) = new_multicast_connection(&GROUPS)?;
        let socket = connection.socket_mut().socket_mut();
        // Without the right to more, the kernel's own room has to do.
        drop(linux::netlink::set_receive_room(socket, room));
        Ok(Self {
            messages,
            pump: tokio::spawn(connection),
        })
    }

    /// Waits for something of interest. None: the subscription broke and has to be made anew.
    pub async fn next(&mut self, interest: &Interest) -> Option<Told> {
        while let Some((message, _)) = self.messages.next().await {
            match &message.payload {
                NetlinkPayload::InnerMessage(message) => {
                    if let Some(told) = interest.told(message) {
                        return Some(told);
                    }
                }
                // The kernel had more to tell than we took: anything may have happened. It says so
                // once, and drops what follows until all that waits is read (`netlink_overrun`).
                NetlinkPayload::Overrun(_) => return None,
                _ => {}
            }
        }
        None
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState,
    };

    use super::*;

    #[test]
    fn what_is_told_twice_is_heard_once() {
        let interest = Interest {
            ours: BTreeMap::from([(7, "seaway.1".to_owned())]),
            ..Interest::default()
        };
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = 7;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        let mac = NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]);
        message.attributes.push(mac);
        let messages = [Message::NewNeighbour, Message::DelNeighbour];
        for of in messages {
            assert_eq!(interest.told(&of(message.clone())), None);
        }
        let ip = NeighbourAddress::Inet([172, 31, 0, 1].into());
        message.attributes.push(NeighbourAttribute::Destination(ip));
        for of in messages {
            assert!(interest.told(&of(message.clone())).is_some());
        }
    }

    /// More happens than the kernel keeps: that is told, although none of it is of interest.
    #[test]
    fn what_could_not_be_told_is_told() {
        use linux::link::{LinkChange, NewBridge};
        use linux::{Host, NetNs};

        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED what_could_not_be_told_is_told: needs root");
            return;
        }
        let netns = NetNs::anonymous().unwrap();
        let listen = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut host = linux::Kernel::open().unwrap();
                let bridge = NewBridge {
                    name: "br0".into(),
                    ..NewBridge::default()
                };
                host.add_bridge(&bridge).unwrap();
                let mut events = Events::open_with(4096).unwrap();
                // Nobody reads meanwhile: this is the only thread.
                for mtu in 1000..1100 {
                    let change = LinkChange {
                        mtu: Some(mtu),
                        ..LinkChange::default()
                    };
                    host.set_link("br0", &change).unwrap();
                }
                let interest = Interest {
                    underlay: Some((4711, "eth0".to_owned())),
                    ..Interest::default()
                };
                let told = events.next(&interest);
                let limit = linux::patience::scaled(std::time::Duration::from_secs(30));
                tokio::time::timeout(limit, told).await
            })
        };
        assert_eq!(netns.run(listen).unwrap(), Ok(None));
    }
}
