//! Frames between pods of one node, where the kernel's bridges do not hand them to the hooks of IP:
//! they are addressed to the node itself, which routes them back by the same bridge, through the
//! rules and connection tracking like everything else.
//!
//! What is not for an address of this node's pods, and neighbour discovery, crosses the bridge as it
//! is.

use ipnetwork::IpNetwork;

use super::base::{IPV4, IPV6, is_discovery, rule, verdict};
use crate::nft::{Base, Expr, Mac, MetaKey, Reg, Rule, Verdict};

/// `PACKET_HOST` of `linux/if_packet.h`: to this machine.
const TO_US: u8 = 0;
/// `PACKET_OTHERHOST`: to another one. What is for the bridge itself, and what all get, is not.
const TO_ANOTHER: u8 = 3;

const MAC_BYTES: u32 = 6;

const R: Reg = Reg::at(0);

/// The rules, for the networks of this node's pods and the hardware address of their bridge; none
/// without either.
pub fn rules(nets: &[IpNetwork], bridge: Option<Mac>) -> Vec<Rule> {
    let Some(mac) = bridge.filter(|_| !nets.is_empty()) else {
        return Vec::new();
    };
    let mut rules = vec![discovery()];
    rules.extend(nets.iter().map(|net| to_the_node(net, mac)));
    rules
}

fn meta(key: MetaKey) -> Expr {
    Expr::Meta { key, to: R }
}

fn is_family(ethertype: [u8; 2]) -> [Expr; 2] {
    [meta(MetaKey::EtherType), Expr::equals(R, ethertype)]
}

/// It is about the link, and its hop limit tells that it was never routed (RFC 4861, 7.1).
fn discovery() -> Rule {
    let steps = is_family(IPV6)
        .into_iter()
        .chain(is_discovery())
        .chain([verdict(Verdict::Accept)]);
    rule("neighbour and listener discovery", steps)
}

fn to_the_node(net: &IpNetwork, mac: Mac) -> Rule {
    let v6 = net.is_ipv6();
    let (network, mask) = match net {
        IpNetwork::V4(net) => (
            net.network().octets().to_vec(),
            net.mask().octets().to_vec(),
        ),
        IpNetwork::V6(net) => (
            net.network().octets().to_vec(),
            net.mask().octets().to_vec(),
        ),
    };
    let from_pod = [
        meta(MetaKey::PacketType),
        Expr::equals(R, [TO_ANOTHER]),
        Expr::destination(v6, R),
        Expr::and(R, mask),
        Expr::equals(R, network),
        Expr::Counter,
    ];
    let value = |bytes: &[u8]| Expr::Immediate {
        to: R,
        value: bytes.to_vec(),
    };
    let redirect = [
        value(&mac.0),
        Expr::SetPayload {
            base: Base::Link,
            offset: 0,
            length: MAC_BYTES,
            from: R,
        },
        value(&[TO_US]),
        Expr::SetMeta {
            key: MetaKey::PacketType,
            from: R,
        },
        verdict(Verdict::Accept),
    ];
    let family = if v6 { IPV6 } else { IPV4 };
    let steps = is_family(family).into_iter().chain(from_pod);
    rule(
        &format!("to a pod of this node, in {net}"),
        steps.chain(redirect),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_for_each_network_and_none_without_a_bridge() {
        let nets: Vec<IpNetwork> = ["10.244.1.0/24", "fd00:10:244:1::/64"]
            .map(|net| net.parse().unwrap())
            .to_vec();
        let mac = Mac([10, 0, 0, 0, 0, 1]);
        assert!(rules(&nets, None).is_empty());
        assert!(rules(&[], Some(mac)).is_empty());
        let made = rules(&nets, Some(mac));
        assert_eq!(made.len(), 3);
        let masks = made.iter().flat_map(|rule| &rule.expressions);
        let masks = masks.filter_map(|step| match step {
            Expr::Bitwise { mask, .. } => Some(mask.len()),
            _ => None,
        });
        assert_eq!(masks.collect::<Vec<_>>(), [4, 16]);
        // The comment tells one bridge from another.
        let other = rules(&nets, Some(Mac([10, 0, 0, 0, 0, 2])));
        assert_eq!(made[0].comment, other[0].comment);
        assert_ne!(made[1].comment, other[1].comment);
    }
}
