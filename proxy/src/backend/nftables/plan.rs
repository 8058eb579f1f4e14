//! One decision becomes the elements of its port.

use std::net::IpAddr;

use super::item::{self, Endpoint, Fate, Front, Key, LOW_MAX, Pick, Service, SetId, Value, Word};
use crate::model::{BySource, Decision, Path, Set, SourceFilter, Verdict};

/// The endpoints of one set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots {
    /// By slot.
    pub endpoints: Box<[Endpoint]>,
    /// Numbers of the endpoints, by slot, where clients stay with theirs; else empty. An endpoint
    /// keeps its number, and it is long before another one gets it.
    pub numbers: Box<[u16]>,
    /// The number that is tried next.
    next: u16,
    /// Number of the chain that chooses; 0 without an endpoint.
    pub pick: u16,
}

/// One service port's share of the sets. What several ports may have in common (cluster IPs,
/// endpoints' addresses) is counted in [`super::desired`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// Its number, above 0.
    pub number: u32,
    /// Where it is reached.
    pub fronts: Box<[(Front, Service)]>,
    /// Its endpoints, anywhere and on this node, where they are used.
    pub slots: [Slots; 2],
    /// Seconds for which a client stays with its endpoint; 0: no affinity.
    pub affinity_seconds: u32,
    /// Who may use its load balancer addresses.
    pub sources: Box<[(IpAddr, IpAddr)]>,
    /// Its cluster IP.
    pub cluster_ip: Option<IpAddr>,
}

const SETS: [Set; 2] = [Set::Cluster, Set::Local];

/// Plans one service port. `before` is what was planned last: endpoints keep their slots. `pick`
/// gives the numbers of chains that choose.
pub fn plan_port(
    decision: &Decision,
    number: u32,
    before: Option<&PortPlan>,
    mut pick: impl FnMut(Pick) -> u16,
) -> PortPlan {
    let affinity_seconds = decision.affinity_seconds.unwrap_or_default();
    let slots = SETS.map(|set| {
        if !uses(decision, set) {
            return Slots::default();
        }
        let mut wanted: Vec<Endpoint> = decision
            .set(set)
            .map(|target| Endpoint {
                ip: target.ip,
                port: target.port,
            })
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        if affinity_seconds != 0 {
            wanted.truncate(usize::from(LOW_MAX));
        }
        let old = before.map(|plan| &plan.slots[index(set)]);
        let mut slots = Slots::place(old, &wanted, affinity_seconds != 0);
        if let Some(chain) = slots.pick_of(affinity_seconds) {
            slots.pick = pick(chain);
        }
        slots
    });
    PortPlan {
        number,
        fronts: fronts(decision, number),
        slots,
        affinity_seconds,
        sources: sources(decision),
        cluster_ip: decision.cluster_ip,
    }
}

fn index(set: Set) -> usize {
    match set {
        Set::Cluster => 0,
        Set::Local => 1,
    }
}

impl Slots {
    /// Puts endpoints (sorted) into slots without a hole. Whoever has one keeps it; the last ones
    /// move into holes.
    fn place(old: Option<&Self>, wanted: &[Endpoint], numbered: bool) -> Self {
        let endpoints = place(old.map_or(&[][..], |old| &old.endpoints), wanted);
        let mut slots = Self {
            endpoints,
            ..Self::default()
        };
        if numbered {
            slots.number(old);
        }
        slots
    }

    fn number(&mut self, old: Option<&Self>) {
        let mut known: Vec<(Endpoint, u16)> = Vec::new();
        if let Some(old) = old {
            let endpoints = old.endpoints.iter().copied();
            known.extend(endpoints.zip(old.numbers.iter().copied()));
            self.next = old.next;
        }
        known.sort_unstable();
        let mut taken: Vec<u16> = known.iter().map(|(_, number)| *number).collect();
        taken.sort_unstable();
        let mut next = self.next;
        let numbers = self.endpoints.iter().map(|endpoint| {
            let place = known.binary_search_by_key(endpoint, |(known, _)| *known);
            place.map_or_else(
                |_new| {
                    // There are more numbers than endpoints.
                    while taken.binary_search(&next).is_ok() {
                        next = next.wrapping_add(1) & LOW_MAX;
                    }
                    next = next.wrapping_add(1) & LOW_MAX;
                    next.wrapping_sub(1) & LOW_MAX
                },
                |i| known[i].1,
            )
        });
        self.numbers = numbers.collect();
        self.next = next;
    }

    /// The chain that chooses among them.
    fn pick_of(&self, affinity_seconds: u32) -> Option<Pick> {
        let count = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        (count > 0).then_some(Pick {
            count,
            affinity_seconds,
        })
    }
}

fn place(old: &[Endpoint], wanted: &[Endpoint]) -> Box<[Endpoint]> {
    if old.len() == wanted.len() && old.iter().all(|e| wanted.binary_search(e).is_ok()) {
        return old.into();
    }
    let mut homeless = vec![true; wanted.len()];
    let mut slots: Vec<Option<Endpoint>> = vec![None; wanted.len()];
    for (slot, endpoint) in slots.iter_mut().zip(old) {
        if let Ok(i) = wanted.binary_search(endpoint) {
            *slot = Some(*endpoint);
            homeless[i] = false;
        }
    }
    let mut rest = wanted
        .iter()
        .zip(homeless)
        .filter_map(|(endpoint, homeless)| homeless.then_some(*endpoint));
    let filled = slots
        .into_iter()
        .filter_map(|slot| slot.or_else(|| rest.next()));
    filled.collect()
}

/// Whether any traffic goes to the endpoints of `set`.
fn uses(decision: &Decision, set: Set) -> bool {
    let forwards = |paths: &BySource<Path>| {
        [paths.pod, paths.node, paths.outside]
            .iter()
            .any(|path| path.verdict == Verdict::Forward(set))
    };
    let inside = decision.cluster_ip.is_some() && forwards(&decision.internal);
    inside || (decision.externally_accessible() && forwards(&decision.external))
}

fn fronts(decision: &Decision, number: u32) -> Box<[(Front, Service)]> {
    let protocol = decision.name.protocol;
    let front = |ip, port| Front { ip, protocol, port };
    let internal = service(&decision.internal, number, false);
    let external = service(&decision.external, number, false);
    let balancer = service(&decision.external, number, is_filtered(decision));
    let mut fronts: Vec<(Front, Service)> = Vec::new();
    let mut add = |front, service| {
        // The same address can be listed as several kinds; the first is the least restricted.
        if !fronts.iter().any(|(known, _)| *known == front) {
            fronts.push((front, service));
        }
    };
    if let Some(ip) = decision.cluster_ip {
        add(front(Some(ip), decision.port), internal);
    }
    for ip in &decision.external_ips {
        add(front(Some(*ip), decision.port), external);
    }
    for ip in &decision.balancer_ips {
        add(front(Some(*ip), decision.port), balancer);
    }
    if let Some(port) = decision.node_port {
        add(front(None, port), external);
    }
    fronts.into()
}

/// Without an endpoint for anybody everybody is refused, whoever they are.
fn is_filtered(decision: &Decision) -> bool {
    let paths = decision.external;
    let served = [paths.pod, paths.node, paths.outside]
        .iter()
        .any(|path| matches!(path.verdict, Verdict::Forward(_)));
    served && decision.source_filter != SourceFilter::Anybody
}

fn service(paths: &BySource<Path>, number: u32, filtered: bool) -> Service {
    let paths = [paths.pod, paths.node, paths.outside];
    let fate = |path: Path| match path.verdict {
        Verdict::Forward(Set::Cluster) => Fate::Cluster,
        Verdict::Forward(Set::Local) => Fate::Local,
        Verdict::Reject => Fate::Reject,
        Verdict::Drop => Fate::Drop,
    };
    let masquerade = |path: Path| path.masquerade && matches!(path.verdict, Verdict::Forward(_));
    Service {
        port: number,
        fates: paths.map(fate),
        masquerade: paths.map(masquerade),
        filtered,
    }
}

fn sources(decision: &Decision) -> Box<[(IpAddr, IpAddr)]> {
    let SourceFilter::Only { nets, own_address } = &decision.source_filter else {
        return Box::default();
    };
    if !is_filtered(decision) || decision.balancer_ips.is_empty() {
        return Box::default();
    }
    let mut ranges: Vec<(IpAddr, IpAddr)> = nets.iter().map(item::ends).collect();
    if *own_address {
        ranges.extend(decision.balancer_ips.iter().map(|ip| (*ip, *ip)));
    }
    // The kernel takes no two ranges that overlap.
    ranges.sort_unstable_by_key(|(first, last)| (*first, std::cmp::Reverse(*last)));
    let mut apart: Vec<(IpAddr, IpAddr)> = Vec::new();
    for range in ranges {
        // Networks are within each other, or apart.
        if apart.last().is_none_or(|(_, last)| range.1 > *last) {
            apart.push(range);
        }
    }
    apart.into()
}

impl PortPlan {
    /// The chains that choose its endpoints, with their numbers.
    pub fn picks(&self) -> impl Iterator<Item = (u16, Pick)> + '_ {
        self.slots.iter().filter_map(|slots| {
            let pick = slots.pick_of(self.affinity_seconds)?;
            Some((slots.pick, pick))
        })
    }

    /// Endpoints of both sets, with set, slot, and number where they have one.
    pub fn endpoints(&self) -> impl Iterator<Item = (SetId, u32, Endpoint, Option<u16>)> + '_ {
        SETS.into_iter().flat_map(|set| {
            let id = SetId::new(self.number, set);
            let slots = &self.slots[index(set)];
            let numbers = slots.numbers.iter().copied().map(Some);
            let numbers = numbers.chain(std::iter::repeat(None));
            (0..)
                .zip(slots.endpoints.iter().zip(numbers))
                .map(move |(slot, (endpoint, number))| (id, slot, *endpoint, number))
        })
    }

    /// Calls `each` for the elements of a front.
    pub fn front_items(&self, front: Front, each: &mut impl FnMut(Key, Value)) {
        let Some((_, service)) = self.fronts.iter().find(|(known, _)| *known == front) else {
            return;
        };
        each(Key::Front(front), Value::Service(*service));
        for (set, fate) in [(Set::Cluster, Fate::Cluster), (Set::Local, Fate::Local)] {
            let slots = &self.slots[index(set)];
            if service.fates.contains(&fate) && !slots.endpoints.is_empty() {
                let word = Word {
                    set: SetId::new(self.number, set),
                    low: slots.pick,
                };
                let key = match set {
                    Set::Cluster => Key::Cluster(front),
                    Set::Local => Key::Local(front),
                };
                each(key, Value::Word(word));
            }
        }
    }

    /// Calls `each` for who may use its load balancer addresses.
    pub fn source_items(&self, each: &mut impl FnMut(Key, Value)) {
        for (first, last) in &self.sources {
            each(Key::Source(self.number, *first, *last), Value::Nothing);
        }
    }

    /// Calls `each` for all elements that it shares with no other port.
    pub fn own_items(&self, each: &mut impl FnMut(Key, Value)) {
        self.source_items(each);
        for endpoint in self.endpoints() {
            slot_items(endpoint, each);
        }
    }

    /// Endpoints whose elements `other` (another plan of the same port) does not have alike.
    pub fn endpoints_unlike(
        &self,
        other: Option<&Self>,
    ) -> Vec<(SetId, u32, Endpoint, Option<u16>)> {
        let other = other.filter(|other| other.number == self.number);
        let has = |id: SetId, slot: u32, endpoint: Endpoint, number: Option<u16>| {
            let (Some(other), Ok(slot)) = (other, usize::try_from(slot)) else {
                return false;
            };
            let slots = &other.slots[usize::from(id.local)];
            slots.endpoints.get(slot) == Some(&endpoint)
                && slots.numbers.get(slot).copied() == number
        };
        self.endpoints()
            .filter(|(id, slot, endpoint, number)| !has(*id, *slot, *endpoint, *number))
            .collect()
    }

    /// Takes another number.
    pub fn renumber(&mut self, number: u32) {
        self.number = number;
        for (_, service) in &mut self.fronts {
            service.port = number;
        }
    }

    /// Puts endpoints into the slots that they have in `known` (sorted elements), with the numbers
    /// that they have there. `pick` gives the numbers of chains.
    pub fn reslot(&mut self, known: &[(Key, Value)], mut pick: impl FnMut(Pick) -> u16) {
        for (set, slots) in SETS.into_iter().zip(&mut self.slots) {
            let id = SetId::new(self.number, set);
            let numbered = self.affinity_seconds != 0;
            let mut wanted = slots.endpoints.to_vec();
            wanted.sort_unstable();
            *slots = Slots::place(Some(&known_slots(known, id)), &wanted, numbered);
            if let Some(chain) = slots.pick_of(self.affinity_seconds) {
                slots.pick = pick(chain);
            }
        }
    }
}

/// Calls `each` for the elements of one endpoint.
pub fn slot_items(
    (id, slot, endpoint, number): (SetId, u32, Endpoint, Option<u16>),
    each: &mut impl FnMut(Key, Value),
) {
    let Some(low) = number else {
        each(Key::Slot(id, slot), Value::Endpoint(endpoint));
        return;
    };
    let word = Word { set: id, low };
    each(Key::Sticky(word), Value::Endpoint(endpoint));
    each(Key::StickySlot(id, slot), Value::Word(word));
}

/// The slots of a set as they are among sorted elements.
fn known_slots(known: &[(Key, Value)], id: SetId) -> Slots {
    let from = |key: Key| &known[known.partition_point(|(other, _)| *other < key)..];
    let plain = from(Key::Slot(id, 0)).iter().map_while(|item| match item {
        (Key::Slot(of, _), Value::Endpoint(endpoint)) if *of == id => Some(*endpoint),
        _ => None,
    });
    let mut endpoints: Vec<Endpoint> = plain.collect();
    let mut numbers = Vec::new();
    for (key, value) in from(Key::StickySlot(id, 0)) {
        let (Key::StickySlot(of, _), Value::Word(word)) = (key, value) else {
            break;
        };
        if *of != id {
            break;
        }
        if let Some((Key::Sticky(found), Value::Endpoint(endpoint))) =
            from(Key::Sticky(*word)).first()
            && found == word
        {
            endpoints.push(*endpoint);
            numbers.push(word.low);
        }
    }
    let next = numbers.iter().max().map_or(0, |last| (last + 1) & LOW_MAX);
    Slots {
        // Both kinds are there only when affinity came or went while nobody looked.
        numbers: if numbers.len() == endpoints.len() {
            numbers.into()
        } else {
            Box::default()
        },
        endpoints: endpoints.into(),
        next,
        pick: 0,
    }
}
