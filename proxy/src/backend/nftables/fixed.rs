//! Chains and rules. Those of [`chains`] are there whatever services exist; those of [`pick`] once
//! for each number of endpoints that any service has.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use api::cidr::Family;
use linux::nftables::{
    Chain, ChainKind, CtKey, DynsetOp, Expr, FibResult, Hook, MetaKey, NatFlags, NatKind, Reg,
    Reject, Rule, Verdict, fib, priority,
};

use super::item::{self, Fate, Pick, bit, unspecified};
use super::kernel_family;
use super::sets::SetName;
use super::steps::{carried, carried_is, change_mark, goto, lookup, map, set_carried};
use crate::backend::{DetectLocal, NodePortScope, Settings};
use crate::model::Source;

/// Packets from elsewhere.
pub const PREROUTING: &str = "prerouting";
/// Packets of the node itself.
pub const OUTPUT: &str = "output";
/// Sources are translated.
pub const POSTROUTING: &str = "postrouting";
/// Packets that pass through.
pub const FORWARD: &str = "forward";
/// What is no service port.
pub const UNSERVED: &str = "unserved";
/// Refuses.
pub const REJECT: &str = "reject";

/// To an endpoint anywhere.
pub const CLUSTER: &str = "to-cluster";
/// To an endpoint on this node.
pub const LOCAL: &str = "to-local";

/// `IPS_DST_NAT` of `linux/netfilter/nf_conntrack_common.h`.
pub const CT_STATUS_DNAT: u32 = 1 << 5;

/// `NF_CT_STATE_INVALID_BIT`.
pub const CT_STATE_INVALID: u32 = 1;

const IPPROTO_TCP: u8 = 6;

/// A chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainPlan {
    /// Chain.
    pub chain: Chain,
    /// Rules, in order. Each has a comment that ends with a hash of what it does.
    pub rules: Vec<Rule>,
}

impl ChainPlan {
    fn new(chain: Chain, rules: impl IntoIterator<Item = (Vec<Expr>, &'static str)>) -> Self {
        let rules = rules.into_iter().map(|(expressions, what)| {
            let rule = Rule::new(expressions);
            let mut hasher = DefaultHasher::new();
            rule.bytes().hash(&mut hasher);
            let hash = hasher.finish() & 0xffff_ffff;
            rule.comment(format!("{what} [{hash:08x}]"))
        });
        Self {
            chain,
            rules: rules.collect(),
        }
    }

    fn regular(
        name: impl Into<String>,
        rules: impl IntoIterator<Item = (Vec<Expr>, &'static str)>,
    ) -> Self {
        Self::new(Chain::regular(name), rules)
    }

    /// What a list of the kernel's rules shows of it.
    pub fn comments(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().filter_map(|rule| rule.comment.as_deref())
    }
}

/// The chain that serves a source.
pub fn source_chain(source: Source) -> &'static str {
    match source {
        Source::Pod => "from-pod",
        Source::Node => "from-node",
        Source::Outside => "from-outside",
    }
}

fn serve_chain(source: Source) -> &'static str {
    match source {
        Source::Pod => "serve-pod",
        Source::Node => "serve-node",
        Source::Outside => "serve-outside",
    }
}

const SOURCES: [Source; 3] = [Source::Pod, Source::Node, Source::Outside];

fn index(source: Source) -> u32 {
    match source {
        Source::Pod => 0,
        Source::Node => 1,
        Source::Outside => 2,
    }
}

/// Chains that are there whatever services exist, those that are jumped to first.
pub fn chains(settings: &Settings) -> Vec<ChainPlan> {
    let rules = Rules::new(settings);
    let mut chains = vec![
        ChainPlan::regular(REJECT, rules.reject()),
        ChainPlan::regular(UNSERVED, rules.unserved()),
        ChainPlan::regular(CLUSTER, rules.choose_set(SetName::Cluster)),
        ChainPlan::regular(LOCAL, rules.choose_set(SetName::Local)),
    ];
    for source in SOURCES {
        chains.push(ChainPlan::regular(serve_chain(source), rules.serve(source)));
        chains.push(ChainPlan::regular(
            source_chain(source),
            rules.source(source),
        ));
    }
    let nat = |name, hook, at| Chain::base(name, ChainKind::Nat, hook, at);
    let dstnat = priority::DSTNAT;
    let bases = [
        (nat(PREROUTING, Hook::Prerouting, dstnat), Source::Outside),
        (nat(OUTPUT, Hook::Output, dstnat), Source::Node),
    ];
    for (chain, source) in bases {
        chains.push(ChainPlan::new(chain, rules.dispatch(source)));
    }
    let chain = nat(POSTROUTING, Hook::Postrouting, priority::SRCNAT);
    chains.push(ChainPlan::new(chain, rules.postrouting()));
    if settings.drop_invalid {
        let at = priority::FILTER;
        let chain = Chain::base(FORWARD, ChainKind::Filter, Hook::Forward, at);
        chains.push(ChainPlan::new(chain, rules.forward()));
    }
    chains
}

/// The chain that chooses among as many endpoints.
pub fn pick(settings: &Settings, pick: Pick) -> ChainPlan {
    let rules = Rules::new(settings);
    let each = if pick.affinity_seconds == 0 {
        rules.choose(pick)
    } else {
        rules.choose_with_affinity(pick)
    };
    ChainPlan::regular(pick.chain(), each)
}

type Rows = Vec<(Vec<Expr>, &'static str)>;

/// Makes rules. The priority of the packet carries from one rule to the next what was looked up:
/// the kernel keeps no register from rule to rule, and `nft` before 1.1 cannot print a rule that
/// looks up what it just looked up. It is 0 again when the packet goes on.
struct Rules<'a> {
    settings: &'a Settings,
    v6: bool,
    /// Registers of an address.
    address: u8,
}

/// Where most values are.
const R0: Reg = Reg::at(0);
/// Behind a word.
const R1: Reg = Reg::at(1);

impl<'a> Rules<'a> {
    fn new(settings: &'a Settings) -> Self {
        let v6 = settings.family == Family::V6;
        Self {
            settings,
            v6,
            address: if v6 { 4 } else { 1 },
        }
    }

    /// The packet's destination, in the registers from 0 on.
    fn address_key(&self) -> Vec<Expr> {
        let mut key = vec![Expr::destination(self.v6, R0)];
        key.extend(self.port_key());
        key
    }

    /// The packet's destination as a node port.
    fn node_port_key(&self) -> Vec<Expr> {
        let mut key = vec![Expr::address(R0, unspecified(self.settings.family))];
        key.extend(self.port_key());
        key
    }

    fn port_key(&self) -> [Expr; 2] {
        let protocol = Expr::Meta {
            key: MetaKey::L4Protocol,
            to: Reg::at(self.address),
        };
        [protocol, Expr::destination_port(Reg::at(self.address + 1))]
    }

    /// Carries on what `name` has for a key.
    fn carry(&self, key: Vec<Expr>, name: SetName) -> Vec<Expr> {
        let mut rule = key;
        rule.push(map(name, R0, R0));
        rule.push(set_carried(R0));
        rule
    }

    /// Everything that one source may be served with.
    fn source(&self, source: Source) -> Rows {
        let mut service = self.carry(self.address_key(), SetName::Services);
        service.push(goto(serve_chain(source)));
        let dns = vec![
            Expr::destination(self.v6, R0),
            lookup(SetName::DnsIps, R0, false),
            Expr::Verdict(Verdict::Return),
        ];
        let mut node_port = self.has_node_ports();
        node_port.extend(self.carry(self.node_port_key(), SetName::Services));
        node_port.push(goto(serve_chain(source)));
        vec![
            (service, "addresses of services"),
            (dns, "cluster DNS on this node"),
            (node_port, "node ports"),
            (vec![goto(UNSERVED)], "no service port"),
        ]
    }

    /// What is done with a connection of one source for the service that is carried.
    fn serve(&self, source: Source) -> Rows {
        let mut firewall = carried_is(1 << bit::FILTERED, 1 << bit::FILTERED);
        firewall.extend(carried(R0, item::PORT_MASK));
        firewall.push(Expr::source(self.v6, R1));
        firewall.push(lookup(SetName::Sources, R0, true));
        firewall.push(Expr::Verdict(Verdict::Drop));
        let mut rows = vec![(firewall, "not within loadBalancerSourceRanges")];
        let shift = bit::FATES + 2 * index(source);
        let fate = |fate: Fate, then: Expr| {
            let mut rule = carried_is(3 << shift, fate.bits() << shift);
            rule.push(then);
            rule
        };
        let drop = fate(Fate::Drop, Expr::Verdict(Verdict::Drop));
        rows.push((drop, "no endpoint for this traffic"));
        rows.push((fate(Fate::Reject, goto(REJECT)), "no endpoint"));
        let masquerade = 1 << (bit::MASQUERADE + index(source));
        let mut mark = carried_is(masquerade, masquerade);
        let bits = self.settings.mark.to_ne_bytes();
        mark.extend(change_mark(|reg| Expr::or(reg, bits)));
        rows.push((mark, "mark for masquerading"));
        rows.push((fate(Fate::Local, goto(LOCAL)), "endpoints on this node"));
        rows.push((vec![goto(CLUSTER)], "all endpoints"));
        rows
    }

    /// Goes on to the chain that chooses an endpoint, and carries the set.
    fn choose_set(&self, name: SetName) -> Rows {
        let keys = [
            (self.address_key(), "address"),
            (self.node_port_key(), "node port"),
        ];
        let rule = |(key, what)| {
            let mut rule = self.carry(key, name);
            rule.extend(carried(R0, item::LOW_MASK));
            rule.push(Expr::VerdictMap {
                map: SetName::Picks.name().to_owned(),
                key: R0,
            });
            (rule, what)
        };
        keys.into_iter().map(rule).collect()
    }

    /// Whether the destination is an address on which node ports are served. Loopback never is:
    /// that takes `route_localnet`, which lets neighbours in.
    fn has_node_ports(&self) -> Vec<Expr> {
        let to = Reg::at(0);
        let destination = Expr::destination(self.v6, to);
        match &self.settings.node_ports {
            NodePortScope::Only(_) => vec![destination, lookup(SetName::NodeIps, to, false)],
            NodePortScope::All => {
                let not_loopback = if self.v6 {
                    let loopback = self.settings.family.loopback().network();
                    vec![destination, Expr::differs(to, item::address(loopback))]
                } else {
                    // The first byte of the destination.
                    vec![Expr::network(16, 1, to), Expr::differs(to, [127])]
                };
                let mut test = not_loopback;
                test.push(Expr::Fib {
                    flags: fib::DESTINATION,
                    result: FibResult::AddressType,
                    to,
                });
                test.push(Expr::equals(to, fib::LOCAL.to_ne_bytes()));
                test
            }
        }
    }

    /// Pods are told apart, all others are `source`.
    fn dispatch(&self, source: Source) -> Rows {
        let to = Reg::at(0);
        let input = Expr::Meta {
            key: MetaKey::InputInterface,
            to,
        };
        let pod = match &self.settings.detect_local {
            None => None,
            Some(DetectLocal::Net(net)) => {
                let mut test = vec![Expr::source(self.v6, to)];
                if u32::from(net.prefix()) < u32::from(self.settings.family.bits()) {
                    test.push(Expr::and(to, item::address(net.mask())));
                }
                test.push(Expr::equals(to, item::address(net.network())));
                Some(test)
            }
            // The node's own packets come from no interface.
            Some(_) if source == Source::Node => None,
            Some(DetectLocal::Interface(name)) => {
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(16, 0);
                Some(vec![input, Expr::equals(to, bytes)])
            }
            Some(DetectLocal::InterfacePrefix(name)) => {
                Some(vec![input, Expr::equals(to, name.as_bytes())])
            }
        };
        let mut rows = Vec::new();
        if let Some(mut pod) = pod {
            pod.push(goto(source_chain(Source::Pod)));
            rows.push((pod, "from a pod"));
        }
        rows.push((vec![goto(source_chain(source))], "all others"));
        rows
    }

    fn unserved(&self) -> Rows {
        let of = |set| {
            let to = Reg::at(0);
            vec![Expr::destination(self.v6, to), lookup(set, to, false)]
        };
        let mut refuse = of(SetName::ClusterIps);
        refuse.push(goto(REJECT));
        let mut drop = of(SetName::ServiceNets);
        drop.push(Expr::Verdict(Verdict::Drop));
        vec![(refuse, "no such port"), (drop, "no such cluster IP")]
    }

    /// TCP is reset: to a client on this node an ICMP message that comes while it still connects is
    /// a hint at most, and it would try for a second.
    fn reject(&self) -> Rows {
        let to = Reg::at(0);
        let protocol = Expr::Meta {
            key: MetaKey::L4Protocol,
            to,
        };
        let reset = vec![
            protocol,
            Expr::equals(to, [IPPROTO_TCP]),
            Expr::Reject(Reject::TcpReset),
        ];
        // ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH.
        let code = if self.v6 { 4 } else { 3 };
        let unreachable = vec![Expr::Reject(Reject::Icmp(code))];
        vec![(reset, "refuse"), (unreachable, "refuse")]
    }

    fn masquerade(&self) -> Expr {
        Expr::Masquerade(NatFlags {
            fully_random: self.settings.random_fully,
            ..NatFlags::default()
        })
    }

    fn postrouting(&self) -> Rows {
        let bit = self.settings.mark;
        let reg = Reg::at(0);
        let mut marked = vec![
            Expr::Meta {
                key: MetaKey::Mark,
                to: reg,
            },
            Expr::and(reg, bit.to_ne_bytes()),
            Expr::equals(reg, bit.to_ne_bytes()),
        ];
        // A packet that passes here twice (an overlay's outer packet keeps the mark) must not be
        // masqueraded twice.
        marked.extend(change_mark(|reg| Expr::and(reg, (!bit).to_ne_bytes())));
        marked.push(self.masquerade());
        let mut hairpin = vec![
            Expr::Ct {
                key: CtKey::Status,
                to: reg,
            },
            Expr::and(reg, CT_STATUS_DNAT.to_ne_bytes()),
            Expr::differs(reg, [0; 4]),
            Expr::source(self.v6, reg),
            Expr::destination(self.v6, Reg::at(self.address)),
            lookup(SetName::EndpointIps, reg, false),
        ];
        hairpin.push(self.masquerade());
        vec![
            (marked, "masquerade what is marked"),
            (hairpin, "masquerade an endpoint that reaches itself"),
        ]
    }

    /// Conntrack does not translate an invalid packet back, and its receiver would answer an
    /// unknown source with a reset that kills the connection.
    fn forward(&self) -> Rows {
        let reg = Reg::at(0);
        let rule = vec![
            Expr::Ct {
                key: CtKey::State,
                to: reg,
            },
            Expr::and(reg, CT_STATE_INVALID.to_ne_bytes()),
            Expr::differs(reg, [0; 4]),
            Expr::source(self.v6, reg),
            Expr::source(self.v6, Reg::at(self.address)),
            lookup(SetName::EndpointIps, reg, false),
            Expr::Verdict(Verdict::Drop),
        ];
        vec![(rule, "invalid packets of endpoints")]
    }

    /// The set that is carried, and a slot of it.
    fn slot(&self, pick: Pick, first: bool) -> Vec<Expr> {
        let mut key = carried(R0, item::SET_MASK);
        key.push(if first || pick.count == 1 {
            Expr::Immediate {
                to: R1,
                value: vec![0; 4],
            }
        } else {
            Expr::Numgen {
                random: true,
                modulus: pick.count,
                offset: 0,
                to: R1,
            }
        });
        key
    }

    /// To the endpoint that starts at register 0. The priority is nobody's any more.
    fn translate(&self) -> [Expr; 3] {
        let free = Reg::at(self.address + 1);
        let nothing = Expr::Immediate {
            to: free,
            value: vec![0; 4],
        };
        let dnat = Expr::Nat {
            kind: NatKind::Destination,
            family: kernel_family(self.settings.family),
            address: Some(R0),
            address_last: None,
            port: Some(Reg::at(self.address)),
            port_last: None,
            flags: NatFlags::default(),
        };
        [nothing, set_carried(free), dnat]
    }

    /// A packet may see the count from before a change and the slots from after it; the first slot
    /// is always there.
    fn choose(&self, pick: Pick) -> Rows {
        let row = |first| {
            let mut rule = self.slot(pick, first);
            rule.push(map(SetName::Endpoints, R0, R0));
            rule.extend(self.translate());
            (rule, if first { "or the first" } else { "any of them" })
        };
        let also_first = pick.count > 1;
        let mut rows = vec![row(false)];
        rows.extend(also_first.then(|| row(true)));
        rows
    }

    fn choose_with_affinity(&self, pick: Pick) -> Rows {
        let timeout = Duration::from_secs(u64::from(pick.affinity_seconds));
        let client = || {
            let mut key = carried(R0, item::SET_MASK);
            key.push(Expr::source(self.v6, R1));
            key
        };
        let endpoint = Reg::at(self.address + 1);
        let remember = |op, timeout| {
            let mut rule = client();
            rule.push(Expr::Meta {
                key: MetaKey::Priority,
                to: endpoint,
            });
            rule.push(Expr::Dynset {
                op,
                set: SetName::Affinity.name().to_owned(),
                key: R0,
                data: Some(endpoint),
                timeout,
            });
            rule
        };
        // To the endpoint whose number is carried.
        let sticky = || {
            let mut rule = carried(R0, u32::MAX);
            rule.push(map(SetName::StickyEndpoints, R0, R0));
            rule
        };
        let mut known = self.carry(client(), SetName::Affinity);
        // Only one that is still there is remembered on.
        known.extend(sticky());
        known.extend(remember(DynsetOp::Update, Some(timeout)));
        known.extend(sticky());
        known.extend(self.translate());

        let forget = remember(DynsetOp::Delete, None);

        let mut choose = self.carry(self.slot(pick, false), SetName::StickySlots);
        choose.extend(remember(DynsetOp::Update, Some(timeout)));
        choose.extend(sticky());
        choose.extend(self.translate());
        let mut rows = vec![
            (known, "as before"),
            (forget, "forget an endpoint that is gone"),
            (choose, "any of them, and remember"),
        ];
        // Where the map is full, or as in a chain without affinity.
        let firsts: &[bool] = if pick.count > 1 {
            &[false, true]
        } else {
            &[false]
        };
        for &first in firsts {
            let mut rule = self.carry(self.slot(pick, first), SetName::StickySlots);
            rule.extend(sticky());
            rule.extend(self.translate());
            rows.push((rule, if first { "or the first" } else { "any of them" }));
        }
        rows
    }
}
