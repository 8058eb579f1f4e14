//! The firewall of the network namespace that the plugin runs in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, create_dir_all};
use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use linux::conntrack::{Conntrack, Flow, UDP};
use linux::iptables::{Family, Iptables, has_legacy_table};
use linux::nftables::{Batch, Element, Nftables, TableRef};
use linux::{Error, Host, Kernel, Result};

use super::{Entries, Firewall, Forward, Rules, Tag, Whose, nft};
use crate::plan::link_name_of_hash;
use crate::request::Backend;

/// How often a change is tried again that somebody else's came in between.
const TRIES: usize = 5;

/// Locked while iptables' rules are read and changed.
const IPTABLES_LOCK: &str = "/run/lock/seaway-cni.iptables";

/// Entries in tables of ours, or rules in chains of ours.
#[derive(Debug)]
pub struct NodeFirewall {
    /// Somebody wants iptables, so there may be rules to remove.
    iptables: bool,
    nft: Option<Nftables>,
    /// Found out when it is first asked for.
    usual: Option<Backend>,
}

impl NodeFirewall {
    /// `iptables`: the configuration asks for iptables somewhere.
    pub fn new(iptables: bool) -> Self {
        Self {
            iptables,
            nft: None,
            usual: None,
        }
    }

    /// nftables; `None` when the kernel has none.
    fn nft(&mut self) -> Option<&mut Nftables> {
        if self.nft.is_none() {
            let opened = Nftables::open().and_then(|mut nft| {
                nft.generation()?;
                Ok(nft)
            });
            self.nft = opened.ok();
        }
        self.nft.as_mut()
    }

    /// Who does what nobody is named for. There are kernels with nf_tables and without its tables for
    /// IP, which only making one tells: this is on the path of each pod, so not where ours is there.
    fn usual(&mut self) -> Backend {
        if let Some(usual) = self.usual {
            return usual;
        }
        let family = nft::ip_table().family;
        let takes = self.has_table() || Nftables::has_family(family).unwrap_or(false);
        let usual = if takes {
            Backend::Nftables
        } else {
            Backend::Iptables
        };
        *self.usual.insert(usual)
    }

    /// The parts for nftables and for iptables.
    fn split(&mut self, entries: &Entries) -> (Entries, Entries) {
        let nobody_asks = entries.forwards.is_empty() && entries.masquerades.is_empty();
        entries.split(if nobody_asks {
            Backend::Nftables
        } else {
            self.usual()
        })
    }

    fn has_table(&mut self) -> bool {
        let has = |nft: &mut Nftables| nft.has_table(&nft::ip_table()).unwrap_or(false);
        self.nft().is_some_and(has)
    }

    /// Whether rules of ours may be in iptables.
    fn may_have_rules(&mut self) -> bool {
        let old = |family| has_legacy_table(family, "nat");
        self.iptables
            || self.nft().is_none()
            || (!self.has_table()
                && [Family::V4, Family::V6].into_iter().any(old)
                && self.usual() == Backend::Iptables)
    }

    /// nftables, which is needed for `what`.
    fn needed(&mut self, what: &Entries) -> Result<&mut Nftables> {
        let op = format!("make {what}");
        self.nft()
            .ok_or_else(|| Error::other(op, "the kernel has no nf_tables"))
    }

    fn put_elements(&mut self, entries: &Entries) -> Result<()> {
        let wanted = nft::elements(entries);
        if wanted.is_empty() {
            return Ok(());
        }
        let mut layout: Vec<TableRef> = Vec::new();
        for _ in 0..TRIES {
            let mut batch = Batch::new();
            for table in &layout {
                nft::add_layout(&mut batch, table);
            }
            for entry in &wanted {
                batch.create_elements(&entry.table, &entry.set, [&entry.element]);
            }
            let nft = self.needed(entries)?;
            match nft.commit(&batch) {
                Ok(()) => return Ok(()),
                Err(e) if e.is_not_found() => {
                    layout = wanted.iter().map(|entry| entry.table.clone()).collect();
                    layout.dedup();
                }
                Err(e) if e.is_exists() => {
                    for tag in in_the_way(nft, &wanted, &entries.tag)? {
                        self.remove_everything(&Whose::One(tag))?;
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(Error::other(
            format!("make {entries}"),
            format!("changed {TRIES} times meanwhile"),
        ))
    }

    fn remove_everything(&mut self, whose: &Whose) -> Result<()> {
        self.remove_elements(&nft::ip_table(), whose)?;
        self.remove_elements(&nft::bridge_table(), whose)
    }

    fn remove_elements(&mut self, table: &TableRef, whose: &Whose) -> Result<()> {
        let Some(nft) = self.nft() else { return Ok(()) };
        for _ in 0..TRIES {
            let mut batch = Batch::new();
            for set in nft::sets(table) {
                let meant = |element: Element| {
                    let tag = element.comment.as_deref().and_then(Tag::parse);
                    tag.is_some_and(|tag| whose.holds(&tag)).then_some(element)
                };
                match nft.elements_with(table, &set.name, meant) {
                    Ok(found) => batch.delete_elements(table, &set, &found),
                    // There is no table, or one of another make.
                    Err(e) if e.is_not_found() => break,
                    Err(e) => return Err(e),
                }
            }
            match nft.commit(&batch) {
                // Somebody else has removed one of them: look again.
                Err(e) if e.is_not_found() => {}
                done => return done,
            }
        }
        let op = format!("remove entries from table {table}");
        Err(Error::other(op, format!("changed {TRIES} times meanwhile")))
    }
}

/// Who has keys of `wanted`: attachments that are gone, or the same from an earlier try. A host port
/// of one that is there is an error.
fn in_the_way(nft: &mut Nftables, wanted: &[nft::Entry], own: &Tag) -> Result<BTreeSet<Tag>> {
    let mut stale = BTreeSet::new();
    for entry in wanted {
        let same = |element: Element| (element.key == entry.element.key).then_some(element);
        for element in nft.elements_with(&entry.table, &entry.set.name, same)? {
            let op = || format!("add to set {} of table {}", entry.set.name, entry.table);
            let tag = element.comment.as_deref().and_then(Tag::parse);
            let tag = tag.ok_or_else(|| Error::other(op(), "the entry is there, and not ours"))?;
            if let Some(forward) = &entry.forward
                && tag.owner != own.owner
                && Kernel::open()?
                    .link(&link_name_of_hash(tag.owner))?
                    .is_some()
            {
                let (protocol, port) = (forward.protocol.name(), forward.host_port);
                let op = format!("map host port {port}/{protocol}");
                return Err(Error::other(op, format!("{} has it", tag.title())));
            }
            stale.insert(tag);
        }
    }
    Ok(stale)
}

impl Firewall for NodeFirewall {
    fn put(&mut self, entries: &Entries) -> Result<()> {
        let (elements, rules) = self.split(entries);
        self.put_elements(&elements)?;
        if !rules.is_empty() {
            put_rules(&rules)?;
        }
        Ok(())
    }

    fn remove(&mut self, whose: &Whose) -> Result<()> {
        self.remove_everything(whose)?;
        if self.may_have_rules() {
            with_rules(|rules, _| rules.text_to_remove(whose))?;
        }
        Ok(())
    }

    fn missing(&mut self, entries: &Entries) -> Result<Vec<String>> {
        let (elements, rules) = self.split(entries);
        let mut missing = Vec::new();
        for entry in nft::elements(&elements) {
            let same = |element: Element| {
                let same = element.key == entry.element.key && element.value == entry.element.value;
                same.then_some(())
            };
            let nft = self.needed(entries)?;
            let there = match nft.elements_with(&entry.table, &entry.set.name, same) {
                Err(e) if e.is_not_found() => Vec::new(),
                there => there?,
            };
            if there.is_empty() {
                missing.push(format!(
                    "table {} lacks an entry in {}",
                    entry.table, entry.set.name
                ));
            }
        }
        if !rules.is_empty() {
            for family in [Family::V4, Family::V6] {
                let saved = Rules::parse(&Iptables::detect(family)?.save(Some("nat"))?);
                let (there, wanted) = saved.count(&rules, family);
                if there < wanted {
                    missing.push(format!("{there} of {wanted} iptables rules are there"));
                }
            }
        }
        Ok(missing)
    }

    fn forget_udp(&mut self, ports: &[Forward]) -> Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        let mut conntrack = Conntrack::open()?;
        let mut local = BTreeMap::new();
        for ipv6 in [false, true] {
            let ports: Vec<&Forward> = ports.iter().filter(|p| p.to.is_ipv6() == ipv6).collect();
            if ports.is_empty() {
                continue;
            }
            for flow in conntrack.list(ipv6, UDP)? {
                if ports.iter().any(|port| is_stale(&flow, port))
                    && (flow.reply.source != flow.original.destination
                        || is_local(flow.original.destination.ip(), &mut local))
                {
                    conntrack.delete(&flow)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a connection to this host port leads elsewhere than to where the port leads.
fn is_stale(flow: &Flow, port: &Forward) -> bool {
    let asked = flow.original.destination;
    let there = std::net::SocketAddr::new(port.to, port.to_port);
    asked.port() == port.host_port
        && port.host_ip.is_none_or(|ip| ip == asked.ip())
        && flow.reply.source != there
}

/// Whether this machine has the address: only then can a socket be bound to it.
fn is_local(ip: IpAddr, known: &mut BTreeMap<IpAddr, bool>) -> bool {
    *known
        .entry(ip)
        .or_insert_with(|| UdpSocket::bind((ip, 0)).is_ok())
}

fn put_rules(entries: &Entries) -> Result<()> {
    with_rules(|rules, family| rules.text_to_put(entries, family))
}

/// Reads our rules of both families and applies what `change` makes of them; nobody else of us does
/// so at the same time.
fn with_rules(change: impl Fn(&Rules, Family) -> Option<String>) -> Result<()> {
    let op = || format!("lock {IPTABLES_LOCK}");
    // Who boots the machine makes the folder, as a rule.
    let folder = Path::new(IPTABLES_LOCK).parent();
    folder
        .map_or(Ok(()), create_dir_all)
        .map_err(|e| Error::new(op(), e))?;
    let lock = File::create(IPTABLES_LOCK).map_err(|e| Error::new(op(), e))?;
    lock.lock().map_err(|e| Error::new(op(), e))?;
    for family in [Family::V4, Family::V6] {
        let iptables = Iptables::detect(family)?;
        let rules = Rules::parse(&iptables.save(Some("nat"))?);
        if let Some(text) = change(&rules, family) {
            iptables.restore(&text)?;
        }
    }
    Ok(())
}
