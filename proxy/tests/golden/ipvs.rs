//! Plans and changes of mode ipvs as text: virtual servers with their destinations, addresses of the
//! device, entries of the sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use linux::ipvs::Server;
use proxy::backend::ipvs::Options;
use proxy::backend::ipvs::desired::Desired;
use proxy::backend::ipvs::diff::{Change, Known, applied, touched_by, touched_only};
use proxy::backend::ipvs::plan::Context;
use proxy::backend::ipvs::sets::{Element, Entry, Key, SetId};
use proxy::backend::{Settings, ipvs};
use proxy::model::Decisions;

fn context(settings: &Settings, node_ips: &[IpAddr]) -> Context {
    Context {
        settings: settings.clone(),
        options: Options::default(),
        node_ips: node_ips.iter().copied().collect(),
    }
}

/// The whole plan.
pub(crate) fn plan(settings: &Settings, decisions: &Decisions, node_ips: &[IpAddr]) -> String {
    let desired = Desired::with(context(settings, node_ips), decisions);
    let mut text = String::from("virtual servers\n");
    for (_, of) in desired.servers() {
        text += &format!("    {}\n", shown_server(&of.server));
        for to in of.destinations.iter() {
            text += &format!("        {to}\n");
        }
    }
    text += &format!("addresses of {}\n", ipvs::DEVICE);
    for ip in desired.binds() {
        text += &format!("    {ip}\n");
    }
    text + &entries(desired.entries())
}

/// What each change writes, in order; at last what goes once nobody uses it any more.
pub(crate) struct Changes {
    desired: Desired,
    known: Known,
}

impl Changes {
    pub(crate) fn new(settings: &Settings, node_ips: &[IpAddr]) -> Self {
        Self {
            desired: Desired::new(context(settings, node_ips)),
            known: Known::default(),
        }
    }

    pub(crate) fn step(&mut self, before: &Decisions, after: &Decisions) -> String {
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            self.desired.set(name, None);
        }
        for (name, decision) in after {
            self.desired.set(name, Some(decision));
        }
        let touched = self.desired.take_touched();
        let change = touched_only(&self.desired, &self.known, &touched, &BTreeSet::new());
        applied(&mut self.known, &self.desired, &change);
        let mut text = steps(&change);
        let drained = self.known.draining.clone();
        if !drained.is_empty() {
            let touched = touched_by(&drained);
            let change = touched_only(&self.desired, &self.known, &touched, &drained);
            applied(&mut self.known, &self.desired, &change);
            text += &format!("when their last connection has ended\n{}", steps(&change));
        }
        text
    }
}

/// In the order in which they are made.
fn steps(change: &Change) -> String {
    let mut text = String::new();
    let of_entries = |word: &str, list: &[Entry]| match list {
        [] => String::new(),
        list => format!("{word}\n{}", entries(list)),
    };
    text += &of_entries("replace", &change.replace);
    text += &of_entries("add", &change.add);
    for command in &change.raise {
        text += &format!("{command}\n");
    }
    text += &of_entries("delete", &change.permit);
    for command in &change.lower {
        text += &format!("{command}\n");
    }
    for ip in &change.bind {
        text += &format!("bind {ip}\n");
    }
    for ip in &change.unbind {
        text += &format!("unbind {ip}\n");
    }
    text + &of_entries("delete", &change.delete)
}

fn shown_server(server: &Server) -> String {
    let scheduler = server.scheduler.map_or("unknown", |s| s.name());
    let mut text = format!("{} {scheduler}", server.id);
    if let Some(seconds) = server.persistence {
        text += &format!(" persistent {seconds} s");
    }
    let options = server.options;
    for (is_set, word) in [
        (options.one_packet, " one-packet"),
        (options.fallback, " fallback"),
        (options.hash_port, " hash-port"),
    ] {
        if is_set {
            text += word;
        }
    }
    text
}

fn entries<'a>(all: impl IntoIterator<Item = &'a Entry>) -> String {
    let mut by_set: BTreeMap<SetId, BTreeSet<Element>> = BTreeMap::new();
    for (set, element) in all {
        by_set.entry(*set).or_default().insert(*element);
    }
    let mut text = String::new();
    for (set, elements) in by_set {
        text += &format!("{}\n", set.name());
        for element in elements {
            text += &format!("    {}\n", shown_element(element));
        }
    }
    text
}

fn shown_element(element: Element) -> String {
    let shown = |key: Key| {
        let at = std::net::SocketAddr::new(key.ip, key.port);
        format!("{at}/{}", key.protocol)
    };
    match element {
        Element::Ip(ip) => ip.to_string(),
        Element::Port(port) => port.to_string(),
        Element::Key(key) => shown(key),
        Element::From(key, net) => format!("{} from {net}", shown(key)),
        Element::Mark(key, mark) => format!("{} : mark {mark:#x}", shown(key)),
    }
}
