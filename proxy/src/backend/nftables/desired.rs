//! Everything that should be in the table of one family, kept up to date port by port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use super::diff::{Change, Named};
use super::fixed::{self, ChainPlan};
use super::item::{self, Endpoint, Front, Key, PORT_MAX, Pick, Value};
use super::picks::Picks;
use super::plan::{PortPlan, plan_port, slot_items};
use crate::backend::{NodePortScope, Settings};
use crate::model::{Decision, Decisions, PortName};

/// The wanted elements of one family.
#[derive(Debug, Clone)]
pub struct Desired {
    settings: Settings,
    ports: BTreeMap<PortName, PortPlan>,
    /// By number.
    names: BTreeMap<u32, PortName>,
    /// Ports that want the same front, first the one that has it.
    fronts: HashMap<Front, Vec<u32>>,
    /// How many slots have an address.
    endpoint_ips: HashMap<IpAddr, u32>,
    /// How many ports have an address.
    cluster_ips: HashMap<IpAddr, u32>,
    picks: Picks,
    /// Numbers of chains that some port has needed.
    made_picks: BTreeSet<u16>,
    /// The number that is tried next for a port.
    next_number: u32,
    /// What changed since [`Desired::take_change`]: before, and now.
    touched: BTreeMap<Key, (Option<Value>, Option<Value>)>,
}

impl Desired {
    /// Without any service.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            ports: BTreeMap::new(),
            names: BTreeMap::new(),
            fronts: HashMap::new(),
            endpoint_ips: HashMap::new(),
            cluster_ips: HashMap::new(),
            picks: Picks::default(),
            made_picks: BTreeSet::new(),
            next_number: 1,
            touched: BTreeMap::new(),
        }
    }

    /// With all of `decisions`.
    pub fn with(settings: Settings, decisions: &Decisions) -> Self {
        let mut desired = Self::new(settings);
        for decision in decisions.values() {
            desired.set(&decision.name, Some(decision));
            desired.forget_changes();
        }
        desired
    }

    /// Settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Service ports.
    pub fn ports(&self) -> impl Iterator<Item = (&PortName, &PortPlan)> {
        self.ports.iter()
    }

    /// Chains and rules that are there whatever services exist.
    pub fn chains(&self) -> Vec<ChainPlan> {
        fixed::chains(&self.settings)
    }

    /// Chains that choose.
    pub fn picks(&self) -> impl Iterator<Item = Pick> + '_ {
        self.picks.iter()
    }

    /// Gives ports the numbers and slots that they have in the kernel, as an earlier process left
    /// them: `known` are ports' numbers by name, `seen` all elements, sorted.
    pub fn adopt(&mut self, known: &HashMap<String, u32>, seen: &[(Key, Value)]) {
        let mut fresh = Self::new(self.settings.clone());
        // Numbers of ports that go are not given to others at once.
        let last = seen.iter().map(|(key, value)| key.port(value)).max();
        fresh.next_number = last.unwrap_or_default() % PORT_MAX + 1;
        for (key, value) in seen {
            if let (Key::Pick(number), Value::Pick(pick)) = (key, value) {
                fresh.picks.insert(*pick, *number);
            }
        }
        let ports = std::mem::take(&mut self.ports);
        let known = |name: &PortName| known.get(&label(name)).copied();
        let kept: BTreeSet<u32> = ports.keys().filter_map(known).collect();
        let mut taken = BTreeSet::new();
        for (name, mut plan) in ports {
            let number = known(&name).filter(|number| taken.insert(*number));
            let number = number.or_else(|| fresh.free_number(&kept));
            plan.renumber(number.unwrap_or(plan.number));
            plan.reslot(seen, |pick| fresh.picks.number(pick));
            fresh.exchange(&name, None, Some(&plan));
            fresh.ports.insert(name, plan);
            fresh.forget_changes();
        }
        *self = fresh;
    }

    /// The same ports with other settings and all of `decisions`. Numbers and slots stay.
    pub fn reconfigure(&mut self, settings: Settings, decisions: &Decisions) {
        let mut fresh = Self::new(settings);
        fresh.next_number = self.next_number;
        fresh.picks = std::mem::take(&mut self.picks);
        let mut old = std::mem::take(&mut self.ports);
        let kept: BTreeSet<u32> = old.values().map(|plan| plan.number).collect();
        for (name, decision) in decisions {
            let old = old.remove(name);
            let number = old.as_ref().map(|old| old.number);
            let Some(number) = number.or_else(|| fresh.free_number(&kept)) else {
                leave_out(name);
                continue;
            };
            let pick = |pick| fresh.picks.number(pick);
            let plan = plan_port(decision, number, old.as_ref(), pick);
            fresh.exchange(name, None, Some(&plan));
            fresh.ports.insert(name.clone(), plan);
            fresh.forget_changes();
        }
        *self = fresh;
    }

    /// A number that no port has, and none in `kept`.
    fn free_number(&self, kept: &BTreeSet<u32>) -> Option<u32> {
        let is_free = |number: &u32| !self.names.contains_key(number) && !kept.contains(number);
        let mut numbers = (self.next_number..=PORT_MAX).chain(1..self.next_number);
        numbers.find(is_free)
    }

    /// Puts one service port in the place of what is there, or takes it away.
    pub fn set(&mut self, name: &PortName, decision: Option<&Decision>) {
        let old = self.ports.remove(name);
        let mut new = None;
        if let Some(decision) = decision {
            let number = old.as_ref().map(|old| old.number);
            let number = number.or_else(|| self.free_number(&BTreeSet::new()));
            let pick = |pick| self.picks.number(pick);
            new = number.map(|number| plan_port(decision, number, old.as_ref(), pick));
            if new.is_none() {
                leave_out(name);
            }
        }
        if old != new {
            self.exchange(name, old.as_ref(), new.as_ref());
        }
        self.ports.extend(new.map(|new| (name.clone(), new)));
    }

    fn touch(&mut self, key: Key, before: Option<Value>, now: Option<Value>) {
        let entry = self.touched.entry(key).or_insert((before, now));
        entry.1 = now;
    }

    /// Notes what changes when `new` comes in the place of `old`. Neither is among the ports. What
    /// goes and comes back is in the end no change.
    fn exchange(&mut self, name: &PortName, old: Option<&PortPlan>, new: Option<&PortPlan>) {
        if let Some(old) = old {
            self.take_away(old, new);
            self.names.remove(&old.number);
        }
        if let Some(new) = new {
            self.names.insert(new.number, name.clone());
            if old.is_none() {
                self.next_number = self.next_number.max(new.number % PORT_MAX + 1);
            }
            self.put(new, old);
        }
    }

    fn take_away(&mut self, plan: &PortPlan, other: Option<&PortPlan>) {
        plan.source_items(&mut |key, value| self.touch(key, Some(value), None));
        for endpoint in plan.endpoints_unlike(other) {
            slot_items(endpoint, &mut |key, value| {
                self.touch(key, Some(value), None);
            });
            let (_, _, Endpoint { ip, .. }, _) = endpoint;
            if lower(&mut self.endpoint_ips, ip) {
                self.touch(Key::EndpointIp(ip), Some(Value::Nothing), None);
            }
        }
        for (front, _) in &plan.fronts {
            self.change_front(*front, plan, |numbers| {
                numbers.retain(|n| *n != plan.number);
            });
        }
        if let Some(ip) = self.counted_cluster_ip(plan)
            && lower(&mut self.cluster_ips, ip)
        {
            self.touch(Key::ClusterIp(ip), Some(Value::Nothing), None);
        }
    }

    fn put(&mut self, plan: &PortPlan, other: Option<&PortPlan>) {
        plan.source_items(&mut |key, value| self.touch(key, None, Some(value)));
        for (number, pick) in plan.picks() {
            if self.made_picks.insert(number) {
                self.touch(Key::Pick(number), None, Some(Value::Pick(pick)));
            }
        }
        for endpoint in plan.endpoints_unlike(other) {
            slot_items(endpoint, &mut |key, value| {
                self.touch(key, None, Some(value));
            });
            let (_, _, Endpoint { ip, .. }, _) = endpoint;
            if raise(&mut self.endpoint_ips, ip) {
                self.touch(Key::EndpointIp(ip), None, Some(Value::Nothing));
            }
        }
        if let Some(ip) = self.counted_cluster_ip(plan)
            && raise(&mut self.cluster_ips, ip)
        {
            self.touch(Key::ClusterIp(ip), None, Some(Value::Nothing));
        }
        for (front, _) in &plan.fronts {
            self.change_front(*front, plan, |numbers| numbers.push(plan.number));
        }
    }

    /// An address of cluster DNS is this node's own.
    fn counted_cluster_ip(&self, plan: &PortPlan) -> Option<IpAddr> {
        let ip = plan.cluster_ip;
        ip.filter(|ip| !self.settings.dns_ips.contains(ip))
    }

    /// Changes who wants a front. The port with the first name has it.
    fn change_front(&mut self, front: Front, plan: &PortPlan, change: impl FnOnce(&mut Vec<u32>)) {
        let mut numbers = self.fronts.remove(&front).unwrap_or_default();
        let before = numbers.first().copied();
        change(&mut numbers);
        numbers.sort_by_key(|number| self.names.get(number));
        let now = numbers.first().copied();
        if !numbers.is_empty() {
            numbers.shrink_to_fit();
            self.fronts.insert(front, numbers);
        }
        if before == now {
            return;
        }
        for (key, value) in self.front_items(before, front, plan) {
            self.touch(key, Some(value), None);
        }
        for (key, value) in self.front_items(now, front, plan) {
            self.touch(key, None, Some(value));
        }
    }

    /// What port number `number` has for a front. `plan` may not be among the ports.
    fn front_items(&self, number: Option<u32>, front: Front, plan: &PortPlan) -> Vec<(Key, Value)> {
        let mut items = Vec::new();
        let Some(number) = number else { return items };
        let found = if number == plan.number {
            Some(plan)
        } else {
            self.plan_of(number)
        };
        if let Some(plan) = found {
            plan.front_items(front, &mut |key, value| items.push((key, value)));
        }
        items
    }

    /// What changed since the last call.
    pub fn take_change(&mut self) -> Change {
        let mut change = Change::default();
        for (key, (before, now)) in std::mem::take(&mut self.touched) {
            change.push(key, before, now);
        }
        change
    }

    /// Forgets what changed. Where all of it is going to be compared, it is called for each port: a
    /// note of every element takes more memory than the ports do.
    pub fn forget_changes(&mut self) {
        self.touched.clear();
    }

    /// Forgets what changed, and the chains that nobody needs any more.
    pub fn start_over(&mut self) {
        self.forget_changes();
        self.picks = Picks::default();
        self.made_picks.clear();
        for plan in self.ports.values() {
            for (number, pick) in plan.picks() {
                self.picks.insert(pick, number);
                self.made_picks.insert(number);
            }
        }
    }

    /// What one element should lead to; `None`: it should not be there.
    pub fn value(&self, key: &Key) -> Option<Value> {
        let mut found = None;
        let mut take = |other: Key, value: Value| {
            if other == *key {
                found = Some(value);
            }
        };
        match key {
            Key::Pick(number) => {
                let made = self.made_picks.contains(number);
                let pick = self.picks.get(*number).filter(|_| made);
                return pick.map(Value::Pick);
            }
            Key::EndpointIp(ip) => {
                return self.endpoint_ips.contains_key(ip).then_some(Value::Nothing);
            }
            Key::ClusterIp(ip) => {
                return self.cluster_ips.contains_key(ip).then_some(Value::Nothing);
            }
            Key::Sticky(word) => self.plan_of(word.set.port)?.own_items(&mut take),
            Key::StickySlot(set, _) | Key::Slot(set, _) => {
                self.plan_of(set.port)?.own_items(&mut take);
            }
            Key::Source(port, ..) => self.plan_of(*port)?.own_items(&mut take),
            Key::Cluster(front) | Key::Local(front) | Key::Front(front) => {
                let first = self.fronts.get(front)?.first()?;
                self.plan_of(*first)?.front_items(*front, &mut take);
            }
            Key::DnsIp(_) | Key::NodeIp(_) | Key::ServiceNet(..) => self.node_items(&mut take),
        }
        found
    }

    fn plan_of(&self, number: u32) -> Option<&PortPlan> {
        self.ports.get(self.names.get(&number)?)
    }

    /// An element was found in the kernel to lead to `seen`, whatever was thought.
    pub fn correct(&mut self, key: Key, seen: Option<Value>) {
        let now = self.value(&key);
        self.touched.insert(key, (seen, now));
    }

    /// Calls `each` for all elements, in no order.
    fn items(&self, each: &mut impl FnMut(Key, Value)) {
        for plan in self.ports.values() {
            plan.own_items(each);
            for (number, pick) in plan.picks() {
                each(Key::Pick(number), Value::Pick(pick));
            }
            for (front, _) in &plan.fronts {
                let first = self.fronts.get(front).and_then(|numbers| numbers.first());
                if first == Some(&plan.number) {
                    plan.front_items(*front, each);
                }
            }
            for (_, _, endpoint, _) in plan.endpoints() {
                each(Key::EndpointIp(endpoint.ip), Value::Nothing);
            }
            if let Some(ip) = self.counted_cluster_ip(plan) {
                each(Key::ClusterIp(ip), Value::Nothing);
            }
        }
        self.node_items(each);
    }

    /// Calls `each` for the elements that follow from the settings.
    fn node_items(&self, each: &mut impl FnMut(Key, Value)) {
        for ip in &self.settings.dns_ips {
            each(Key::DnsIp(*ip), Value::Nothing);
        }
        if let NodePortScope::Only(ips) = &self.settings.node_ports {
            for ip in ips.iter().filter(|ip| !ip.is_loopback()) {
                each(Key::NodeIp(*ip), Value::Nothing);
            }
        }
        // The kernel takes no two ranges that overlap.
        let mut nets = self.settings.service_cidrs.clone();
        nets.sort_by_key(|net| (net.network(), net.prefix()));
        let mut last: Option<ipnetwork::IpNetwork> = None;
        for net in nets {
            if last.is_none_or(|last| !last.contains(net.network())) {
                let (first, end) = item::ends(&net);
                each(Key::ServiceNet(first, end), Value::Nothing);
                last = Some(net);
            }
        }
    }

    /// All elements, sorted.
    pub fn contents(&self) -> Vec<(Key, Value)> {
        let mut all = Vec::new();
        self.items(&mut |key, value| all.push((key, value)));
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Named for Desired {
    fn name(&self, number: u32) -> Option<String> {
        self.names.get(&number).map(label)
    }
}

/// A port's name as comments of elements have it: with the protocol, it is a port's alone.
pub fn label(name: &PortName) -> String {
    format!("{name}/{}", name.protocol)
}

fn leave_out(name: &PortName) {
    tracing::error!("{name}: left out: there are {PORT_MAX} service ports already");
}

/// True when it is the first.
fn raise(counts: &mut HashMap<IpAddr, u32>, ip: IpAddr) -> bool {
    let count = counts.entry(ip).or_insert(0);
    *count += 1;
    *count == 1
}

/// True when it was the last.
fn lower(counts: &mut HashMap<IpAddr, u32>, ip: IpAddr) -> bool {
    let Some(count) = counts.get_mut(&ip) else {
        return false;
    };
    *count = count.saturating_sub(1);
    let gone = *count == 0;
    if gone {
        counts.remove(&ip);
    }
    gone
}

impl fmt::Display for Desired {
    /// Chains with their rules, then elements with the names of services: what golden tests
    /// compare.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::dump::write(f, self)
    }
}
