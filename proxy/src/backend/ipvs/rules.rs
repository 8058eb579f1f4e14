//! The rules: the same whatever services exist, a handful at each hook, each one look-up.

use crate::backend::{DetectLocal, Settings};
use crate::model::Protocol;

use super::sets::SetId;

/// Marks of ours: this in the upper twelve bits. The kernel compares whole marks with those of
/// virtual servers, so the rest is the number of the service port.
const MARK_TAG: u32 = 0x5ea0_0000;
const MARK_TAG_MASK: u32 = 0xfff0_0000;

/// Where packets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// What arrives, before routing.
    Prerouting,
    /// What the node itself sends, before the load balancer.
    Output,
    /// What is for the node and what the node sends, where most filters are.
    Refuse,
    /// What leaves, after the load balancer.
    Leaving,
    /// The first packet of each connection that leaves, where sources are translated.
    Masquerade,
}

impl Hook {
    /// All, in the order of a packet's way.
    pub const ALL: [Self; 5] = [
        Self::Prerouting,
        Self::Output,
        Self::Refuse,
        Self::Leaving,
        Self::Masquerade,
    ];
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Comes from a pod of this node (or not).
    Pod {
        /// How that is told.
        detect: DetectLocal,
        /// It does not.
        not: bool,
    },
    /// The first packet of a connection.
    New,
    /// What it is for, and for some sets where it comes from, is in a set (or not).
    In {
        /// The set.
        set: SetId,
        /// It is not.
        not: bool,
    },
    /// Its source is an address of a service.
    SourceIsService,
    /// Its source is an address of this node.
    SourceIsLocal,
    /// A protocol with ports.
    HasPorts,
    /// This protocol.
    Protocol(Protocol),
    /// Its mark, under `mask`, is `value`.
    Marked {
        /// Bits.
        value: u32,
        /// Bits that are looked at.
        mask: u32,
    },
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing more at this hook.
    Return,
    /// Let in: in iptables also past the rules of others that come later.
    Accept,
    /// Dropped.
    Drop,
    /// Refused.
    Reject,
    /// Bits are set in its mark.
    SetBits(u32),
    /// All other bits of its mark are cleared.
    KeepBits(u32),
    /// Its mark becomes what [`SetId::Inside`] says, if anything.
    MapMark,
    /// Its source becomes the node's address; these bits of its mark have done their work and
    /// are cleared, lest a tunnel's packet around it inherits them.
    Masquerade {
        /// The bits.
        clear: u32,
    },
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// Then this is done.
    pub action: Action,
}

/// The number `n` as a mark of ours, never with the bit that asks for masquerading.
pub fn mark(n: u32, masquerade_bit: u32) -> u32 {
    (MARK_TAG | (n & !MARK_TAG_MASK)) & !masquerade_bit
}

/// Whether a mark is one of ours.
pub fn is_ours(mark: u32, masquerade_bit: u32) -> bool {
    let (value, mask) = tag(masquerade_bit);
    mark & mask == value
}

/// The bits that all marks of ours have, and which bits these are.
fn tag(masquerade_bit: u32) -> (u32, u32) {
    (MARK_TAG & !masquerade_bit, MARK_TAG_MASK | masquerade_bit)
}

fn rule(matches: impl Into<Vec<Match>>, action: Action) -> Rule {
    Rule {
        matches: matches.into(),
        action,
    }
}

fn within(set: SetId) -> Match {
    Match::In { set, not: false }
}

fn without(set: SetId) -> Match {
    Match::In { set, not: true }
}

/// The rules at a hook.
pub fn rules(hook: Hook, settings: &Settings) -> Vec<Rule> {
    match hook {
        Hook::Prerouting => arriving(settings),
        Hook::Output => sent(settings),
        Hook::Refuse => vec![
            rule(
                [
                    Match::Protocol(Protocol::Tcp),
                    within(SetId::HealthChecks),
                    without(SetId::Addresses),
                ],
                Action::Accept,
            ),
            rule([within(SetId::Refuse), Match::New], Action::Reject),
            // The address is the node's since it lies on the dummy device; what listens on the node
            // must not be reached through it.
            rule(
                [
                    Match::HasPorts,
                    Match::New,
                    within(SetId::Addresses),
                    without(SetId::ClusterIp),
                    without(SetId::ExternalIp),
                    without(SetId::ExternalIpLocal),
                    without(SetId::LoadBalancer),
                ],
                Action::Reject,
            ),
        ],
        Hook::Leaving => leaving(settings),
        Hook::Masquerade => masquerading(settings),
    }
}

/// Denials, for connections that begin.
fn denials() -> Vec<Rule> {
    vec![
        rule([Match::New, within(SetId::DropAll)], Action::Drop),
        rule(
            [
                Match::New,
                within(SetId::LoadBalancerFw),
                without(SetId::LoadBalancerSourceCidr),
                without(SetId::LoadBalancerSourceIp),
            ],
            Action::Drop,
        ),
    ]
}

fn arriving(settings: &Settings) -> Vec<Rule> {
    let bit = settings.mark;
    let pod = |not| {
        let detect = settings.detect_local.clone();
        detect.map(|detect| Match::Pod { detect, not })
    };
    let stranger: Vec<Match> = pod(true).into_iter().collect();
    let mut rules = vec![rule([without(SetId::Frontends)], Action::Return)];
    // Each packet: a flow of UDP may outlive what the load balancer remembers of it.
    rules.extend(pod(false).map(|pod| rule([pod, within(SetId::Inside)], Action::MapMark)));
    rules.extend(denials());
    let of_strangers = |set| [stranger.clone(), vec![Match::New, within(set)]].concat();
    rules.push(rule(of_strangers(SetId::DropOutside), Action::Drop));
    if !stranger.is_empty() {
        let strangers = of_strangers(SetId::ClusterIp);
        rules.push(rule(strangers, Action::SetBits(bit)));
    }
    rules.extend(masqueraded(bit));
    rules
}

/// Who is masqueraded whoever comes, for frontends.
fn masqueraded(bit: u32) -> Vec<Rule> {
    let mut all = vec![
        vec![within(SetId::MasqueradeAll)],
        vec![within(SetId::ExternalIp)],
        vec![
            within(SetId::LoadBalancer),
            without(SetId::LoadBalancerLocal),
        ],
    ];
    // A bitmap knows the port alone: which address it is, the frontends have told but for services'
    // own, and these are on the dummy device.
    all.extend(Protocol::ALL.map(|protocol| {
        vec![
            Match::Protocol(protocol),
            within(SetId::NodePort(protocol)),
            without(SetId::NodePortLocal(protocol)),
            without(SetId::Addresses),
        ]
    }));
    let each = all.into_iter();
    each.map(|matches| rule([vec![Match::New], matches].concat(), Action::SetBits(bit)))
        .collect()
}

fn sent(settings: &Settings) -> Vec<Rule> {
    let bit = settings.mark;
    let mut rules = vec![
        rule([without(SetId::Frontends)], Action::Return),
        rule([within(SetId::Inside)], Action::MapMark),
    ];
    rules.extend(denials());
    if settings.detect_local.is_some() {
        let cluster = [Match::New, within(SetId::ClusterIp)];
        rules.push(rule(cluster, Action::SetBits(bit)));
    }
    rules.extend(masqueraded(bit));
    rules
}

fn leaving(settings: &Settings) -> Vec<Rule> {
    let bit = settings.mark;
    let (value, mask) = tag(bit);
    let ours = |mask| Match::Marked { value, mask };
    vec![
        // Pods keep their address on this way, the node cannot.
        rule(
            [ours(mask), Match::New, Match::SourceIsLocal],
            Action::SetBits(bit),
        ),
        // With the mark, a tunnel's packet around this one would be taken for a client's.
        rule([ours(mask & !bit)], Action::KeepBits(bit)),
    ]
}

fn masquerading(settings: &Settings) -> Vec<Rule> {
    let bit = settings.mark;
    let marked = Match::Marked {
        value: bit,
        mask: bit,
    };
    vec![
        rule([marked], Action::Masquerade { clear: bit }),
        rule([within(SetId::LoopBack)], Action::Masquerade { clear: 0 }),
        // The kernel gives the node's own connection to a service the service's address as its
        // source, since that is local; no reply would find back to it.
        rule([Match::SourceIsService], Action::Masquerade { clear: 0 }),
    ]
}
