//! Keys and values of the maps. Numbers that come from packets are big-endian byte arrays; all
//! others are in the machine's order. No structure has hidden padding, so that its bytes are its
//! value; [`VERSION`] changes with any of them.

/// Version of everything in here; part of the path under which maps are pinned.
pub const VERSION: u32 = 2;

/// An address of either family; IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
pub type Addr = [u8; 16];

/// A port in network order.
pub type Port = [u8; 2];

/// The first twelve bytes of an IPv4 address in an [`Addr`].
pub const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An IPv4 address as an [`Addr`].
#[inline(always)]
pub const fn v4(ip: [u8; 4]) -> Addr {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ip[0], ip[1], ip[2], ip[3],
    ]
}

/// Whether an address is an IPv4 one.
#[inline(always)]
pub fn is_v4(addr: &Addr) -> bool {
    let (a, b) = halves(addr);
    a == 0 && (b >> 32) == 0xffff
}

/// Both halves of an address as numbers: comparing them is what a kernel program can do best.
#[inline(always)]
pub fn halves(addr: &Addr) -> (u64, u64) {
    let [
        a0,
        a1,
        a2,
        a3,
        a4,
        a5,
        a6,
        a7,
        b0,
        b1,
        b2,
        b3,
        b4,
        b5,
        b6,
        b7,
    ] = *addr;
    (
        u64::from_be_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
    )
}

/// Whether two addresses are the same.
#[inline(always)]
pub fn same(a: &Addr, b: &Addr) -> bool {
    halves(a) == halves(b)
}

/// TCP in IP headers.
pub const TCP: u8 = 6;
/// UDP in IP headers.
pub const UDP: u8 = 17;
/// ICMP in IPv4 headers.
pub const ICMP: u8 = 1;
/// ICMPv6 in IPv6 headers.
pub const ICMPV6: u8 = 58;

/// Structures whose bytes are their value.
///
/// # Safety
/// `repr(C)`, no padding, every pattern of bits is a value.
#[expect(
    unsafe_code,
    reason = "the promise about the layout of the structures below"
)]
pub unsafe trait Plain: Copy + Default + 'static {}

/// The bytes of a value, as the maps hold it.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    let at = core::ptr::from_ref(value).cast();
    #[expect(unsafe_code, reason = "`Plain` is for this")]
    // SAFETY: `T` has no padding, so all its bytes are there to read.
    unsafe {
        core::slice::from_raw_parts(at, size_of::<T>())
    }
}

/// A value of its bytes; `None` when there are too few or too many.
pub fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    #[expect(unsafe_code, reason = "`Plain` is for this")]
    // SAFETY: as long as `T`, of which every pattern of bits is a value; read without alignment.
    let value = unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) };
    Some(value)
}

#[expect(unsafe_code, reason = "as below")]
// SAFETY: an integer.
unsafe impl Plain for u32 {}
#[expect(unsafe_code, reason = "as below")]
// SAFETY: bytes.
unsafe impl Plain for Addr {}

/// Declares a plain structure and checks its size, which hidden padding would change.
macro_rules! plain {
    ($size:literal, $(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name { $($(#[$fmeta])* pub $field: $type),* }
        const _: () = assert!(size_of::<$name>() == $size);
        const _: () = assert!(0 $(+ size_of::<$type>())* == $size);
        #[expect(unsafe_code, reason = "the size is the sum of the fields' sizes: there is no padding")]
        // SAFETY: integers and arrays of them, repr(C), no padding as asserted.
        unsafe impl $crate::abi::Plain for $name {}
    };
}
pub(crate) use plain;

plain!(20,
    /// An address and a port.
    Endpoint {
        /// Address.
        addr: Addr,
        /// Port.
        port: Port,
        /// Zero.
        pad: [u8; 2],
    }
);

impl Endpoint {
    /// Of its parts.
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port) -> Self {
        Self {
            addr,
            port,
            pad: [0; 2],
        }
    }

    /// Whether it is no endpoint.
    #[inline(always)]
    pub fn is_none(&self) -> bool {
        halves(&self.addr) == (0, 0)
    }
}

plain!(20,
    /// Key of the map of frontends. The wildcard address of a family (`0.0.0.0`, `::`) stands for
    /// all addresses of the node on which node ports are served.
    FrontendKey {
        /// Address.
        addr: Addr,
        /// Port.
        port: Port,
        /// Protocol of the IP header.
        protocol: u8,
        /// Zero.
        pad: u8,
    }
);

/// [`Frontend::kind`]: a cluster IP.
pub const KIND_CLUSTER: u8 = 0;
/// [`Frontend::kind`]: an external IP or a node port.
pub const KIND_EXTERNAL: u8 = 1;
/// [`Frontend::kind`]: a load balancer's address, to which source ranges apply.
pub const KIND_BALANCER: u8 = 2;

plain!(8,
    /// Value of the map of frontends.
    Frontend {
        /// Key of the map of services.
        service: u32,
        /// What kind of address it is.
        kind: u8,
        /// Zero.
        pad: [u8; 3],
    }
);

/// [`Service::flags`]: source ranges restrict the load balancer addresses.
pub const FLAG_RANGES: u32 = 1;
/// [`Service::flags`]: a balancer address is allowed as its own source, and so is the node.
pub const FLAG_OWN_ADDRESS: u32 = 2;
/// [`Service::flags`]: the endpoints are in the map of members, too.
pub const FLAG_MEMBERS: u32 = 4;

/// [`Service::paths`]: refused.
pub const PATH_REJECT: u8 = 0;
/// `Service::paths`: dropped.
pub const PATH_DROP: u8 = 1;
/// `Service::paths`: to an endpoint of [`SET_CLUSTER`].
pub const PATH_CLUSTER: u8 = 2;
/// `Service::paths`: to an endpoint of [`SET_LOCAL`].
pub const PATH_LOCAL: u8 = 3;
/// Bit in `Service::paths`: the source becomes the node's address.
pub const PATH_MASQUERADE: u8 = 0x80;

/// The endpoints that traffic without restriction uses.
pub const SET_CLUSTER: u32 = 0;
/// The endpoints on this node.
pub const SET_LOCAL: u32 = 1;
/// Endpoints that flows may stay with (members only).
pub const SET_SERVING: u32 = 2;

plain!(40,
    /// Value of the map of services; the key is a number.
    Service {
        /// Endpoints in either set.
        counts: [u32; 2],
        /// Seconds for which a client stays with its endpoint; 0: it does not.
        affinity_seconds: u32,
        /// `FLAG_*`.
        flags: u32,
        /// What is done with traffic to the cluster IP from pods, the node, outside.
        internal: [u8; 3],
        /// As `internal`, to all other addresses.
        external: [u8; 3],
        /// Zero.
        pad: [u8; 2],
        /// Address family: 4 or 6.
        family: u32,
        /// Places in a table of consistent hashing; 0: it has none.
        table_size: u32,
        /// Which table holds for either set; 0: none.
        tables: [u32; 2],
    }
);

plain!(12,
    /// Key of the map of slots: the n-th endpoint of a set.
    SlotKey {
        /// Service.
        service: u32,
        /// `SET_*`.
        set: u32,
        /// Index below the set's count.
        index: u32,
    }
);

plain!(16,
    /// Key of the map of tables: a part of a table of consistent hashing.
    TableKey {
        /// Service.
        service: u32,
        /// `SET_*`.
        set: u32,
        /// Which table: one of [`Service::tables`] is in use, another may be being written.
        generation: u32,
        /// The part: a place's number divided by [`PLACES`].
        part: u32,
    }
);

/// Places in a part of a table.
pub const PLACES: u32 = 256;

/// Value of the map of tables: indices of slots.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places(pub [u16; PLACES as usize]);

impl Default for Places {
    fn default() -> Self {
        Self([0; PLACES as usize])
    }
}

#[expect(unsafe_code, reason = "integers, without padding")]
// SAFETY: an array of integers.
unsafe impl Plain for Places {}

plain!(28,
    /// Key of the map of members: whether an endpoint is in a set.
    MemberKey {
        /// Service.
        service: u32,
        /// `SET_*`.
        set: u32,
        /// Endpoint.
        endpoint: Endpoint,
    }
);

plain!(20,
    /// Key of the map of affinities.
    AffinityKey {
        /// Client.
        client: Addr,
        /// Service.
        service: u32,
    }
);

plain!(32,
    /// Value of the map of affinities.
    Affinity {
        /// When the client last opened a connection, nanoseconds of the monotonic clock.
        seen_ns: u64,
        /// Its endpoint.
        endpoint: Endpoint,
        /// Zero.
        pad: u32,
    }
);

/// Bits before the address in the longest prefix match of a [`RangeKey`].
pub const RANGE_BITS: u32 = 32;

plain!(24,
    /// Key of the map of source ranges (longest prefix match).
    RangeKey {
        /// Bits that count, [`RANGE_BITS`] for the service among them.
        bits: u32,
        /// Service.
        service: u32,
        /// Network.
        addr: Addr,
    }
);

/// [`SocketKey::role`]: from a peer to the frontend that the socket believes to talk to.
pub const ROLE_PEER: u32 = 0;
/// [`SocketKey::role`]: from a frontend to the endpoint that a socket's datagrams go to.
pub const ROLE_FLOW: u32 = 1;

plain!(32,
    /// Key of the map of translated sockets.
    SocketKey {
        /// The socket's cookie.
        cookie: u64,
        /// The endpoint or the frontend, by `role`.
        other: Endpoint,
        /// `ROLE_*`.
        role: u32,
    }
);

plain!(28,
    /// Value of the map of translated sockets.
    SocketPeer {
        /// The frontend or the endpoint, by role.
        peer: Endpoint,
        /// Service.
        service: u32,
        /// Set that the endpoint was chosen from.
        set: u32,
    }
);

/// [`NodeAddr::flags`]: node ports are served here.
pub const NODE_PORTS: u32 = 1;

plain!(4,
    /// Value of the map of the node's own addresses.
    NodeAddr {
        /// `NODE_PORTS` or zero.
        flags: u32,
    }
);

/// [`Iface::flags`]: packets from there come from local pods.
pub const IFACE_PODS: u32 = 1;

plain!(36,
    /// Value of the map of interfaces; the key is the index.
    Iface {
        /// Address for masquerading what leaves here, IPv4; zero: none.
        v4: Addr,
        /// As `v4`, IPv6.
        v6: Addr,
        /// `IFACE_PODS` or zero.
        flags: u32,
    }
);

/// [`Config::flags`]: node ports are served on 127.0.0.0/8 for the node itself.
pub const CONFIG_LOCALHOST: u32 = 1;
/// [`Config::flags`]: the offsets are known.
pub const CONFIG_OFFSETS: u32 = 2;

plain!(64,
    /// Offsets in the kernel's structures (bytes), by which a socket's own address is found.
    Offsets {
        /// `bpf_sock_addr_kern.sk`.
        kern_sk: u32,
        /// `sock_common.skc_net`.
        sk_net: u32,
        /// `net.dev_base_head`.
        net_devices: u32,
        /// `net_device.dev_list`.
        dev_list: u32,
        /// `net_device.flags`.
        dev_flags: u32,
        /// `net_device.ip_ptr`.
        dev_ip: u32,
        /// `net_device.ip6_ptr`.
        dev_ip6: u32,
        /// `in_device.ifa_list`.
        in_addrs: u32,
        /// `in_ifaddr.ifa_local`.
        ifa_local: u32,
        /// `inet6_dev.addr_list`.
        in6_addrs: u32,
        /// `inet6_ifaddr.if_list`.
        ifa6_list: u32,
        /// `inet6_ifaddr.addr`.
        ifa6_addr: u32,
        /// `in_ifaddr.ifa_next`.
        ifa_next: u32,
        /// Zero.
        pad: [u32; 3],
    }
);

plain!(152,
    /// The one value of the map of settings.
    Config {
        /// Cookie of the node's network namespace.
        node_netns: u64,
        /// `CONFIG_*`.
        flags: u32,
        /// Prefix lengths of `pods`, as of 128 bits; 0: none.
        pods_bits: [u32; 2],
        /// Zero.
        pad: u32,
        /// Networks of pods, IPv4 and IPv6.
        pods: [Addr; 2],
        /// The node's addresses for masquerading where the interface has none.
        masquerade: [Addr; 2],
        /// Offsets in the kernel's structures.
        offsets: Offsets,
    }
);

/// [`FlowKey::role`]: what the client sends.
pub const FLOW_FORWARD: u32 = 0;
/// [`FlowKey::role`]: what the endpoint sends, as it leaves the endpoint for the client.
pub const FLOW_REPLY: u32 = 1;
/// [`FlowKey::role`]: what the endpoint sends, to the masquerading address.
pub const FLOW_MASQUERADED: u32 = 2;

plain!(48,
    /// Key of the map of flows.
    FlowKey {
        /// From.
        src: Endpoint,
        /// To.
        dst: Endpoint,
        /// Protocol of the IP header.
        protocol: u32,
        /// `FLOW_*`.
        role: u32,
    }
);

/// [`Flow::flags`]: the source becomes the node's address.
pub const FLOW_MASQUERADE: u32 = 1;
/// [`Flow::flags`]: nobody serves; the node itself is to refuse it.
pub const FLOW_REFUSED: u32 = 2;

/// [`Flow::state`]: a FIN from the client was seen.
pub const STATE_FIN_CLIENT: u32 = 1;
/// [`Flow::state`]: a FIN from the endpoint was seen.
pub const STATE_FIN_SERVER: u32 = 2;
/// [`Flow::state`]: a RST was seen.
pub const STATE_RESET: u32 = 4;
/// [`Flow::state`]: the endpoint has answered.
pub const STATE_ANSWERED: u32 = 8;

plain!(104,
    /// Value of the map of flows; the same under all keys of a connection but for `seen_ns` and
    /// `state`, which are kept under the key of role [`FLOW_REPLY`].
    Flow {
        /// When a packet was last seen, nanoseconds of the monotonic clock.
        seen_ns: u64,
        /// Client.
        client: Endpoint,
        /// The address the client uses.
        frontend: Endpoint,
        /// The endpoint it talks to.
        endpoint: Endpoint,
        /// The address the endpoint sees; zero: not masqueraded (yet).
        node: Endpoint,
        /// Service.
        service: u32,
        /// Set that the endpoint was chosen from.
        set: u32,
        /// `FLOW_*` flags.
        flags: u32,
        /// `STATE_*`.
        state: u32,
    }
);

plain!(40,
    /// Key of the map of fragments: later ones carry no ports (RFC 791, RFC 8200).
    FragmentKey {
        /// From.
        src: Addr,
        /// To.
        dst: Addr,
        /// Identification.
        id: u32,
        /// Protocol.
        protocol: u32,
    }
);

plain!(4,
    /// Value of the map of fragments.
    Ports {
        /// Source.
        src: Port,
        /// Destination.
        dst: Port,
    }
);

plain!(24,
    /// Key of the map of counters.
    CounterKey {
        /// Service.
        service: u32,
        /// Endpoint; zero for the service.
        endpoint: Endpoint,
    }
);

plain!(24,
    /// Value of the map of counters, one for each CPU.
    Counter {
        /// Connections (datagrams of unconnected sockets count when their endpoint is chosen).
        connections: u64,
        /// Packets that the network layer translated, both ways.
        packets: u64,
        /// Their bytes.
        bytes: u64,
    }
);

/// Indices of the map of events, one number for each CPU.
pub mod event {
    /// Connections translated at sockets.
    pub const SOCKET: u32 = 0;
    /// Connections translated in the network layer.
    pub const NETWORK: u32 = 1;
    /// Refused: no endpoint.
    pub const REJECTED: u32 = 2;
    /// Dropped: endpoints, but none that this traffic may use.
    pub const DROP_POLICY: u32 = 3;
    /// Dropped: not within the source ranges.
    pub const DROP_RANGES: u32 = 4;
    /// Dropped: the map of slots is behind that of services.
    pub const DROP_SLOT: u32 = 5;
    /// Dropped: no free port for masquerading.
    pub const DROP_PORTS: u32 = 6;
    /// Dropped: the map of flows took no entry.
    pub const DROP_FLOWS: u32 = 7;
    /// Dropped: the client's port talks to the same endpoint through another address already.
    pub const DROP_COLLISION: u32 = 8;
    /// Node ports that a process wanted to bind.
    pub const BIND_REFUSED: u32 = 9;
    /// Errors of ICMP translated.
    pub const ICMP: u32 = 10;
    /// Fragments translated.
    pub const FRAGMENTS: u32 = 11;
    /// Packets passed untouched, since they could not be read.
    pub const UNREADABLE: u32 = 12;
    /// How many there are.
    pub const COUNT: u32 = 13;
    /// Their names in metrics, in order.
    pub const NAMES: [&str; COUNT as usize] = [
        "socket_connection",
        "network_connection",
        "rejected",
        "drop_policy",
        "drop_source_range",
        "drop_slot",
        "drop_no_port",
        "drop_flow_table",
        "drop_collision",
        "bind_refused",
        "icmp_translated",
        "fragment_translated",
        "unreadable",
    ];
}
