//! Rules of iptables over sets of ipset, for kernels without nf_tables.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use api::cidr::Family;
use linux::Result;
use linux::ipset::{self, Element as Wire, IpSets as Door, Kind, NAME_BYTES_MAX};
use linux::iptables::{self, Iptables};

use super::Filter;
use crate::backend::ipvs::rules::{Action, Hook, Match, Rule, rules};
use crate::backend::ipvs::sets::{Element, Entry, Key, SetId, Shape};
use crate::backend::{DetectLocal, Settings};
use crate::model::Protocol;

/// All chains of ours begin so.
const CHAIN_PREFIX: &str = "SEAWAY-IPVS-";

/// Where the bits of a masqueraded packet's mark are cleared.
const MASQUERADE_CHAIN: &str = "SEAWAY-IPVS-MASQ";

/// What earlier versions of this program called some of the sets.
const FORMER: [&str; 6] = [
    "addresses",
    "masq-strangers",
    "restricted",
    "allowed",
    "hairpin",
    "health-checks",
];

/// One family's.
pub struct IpSets {
    family: Family,
    door: Door,
    iptables: Iptables,
}

impl IpSets {
    /// Opens it.
    ///
    /// # Errors
    /// There are no programs of iptables, or the kernel refuses the socket.
    pub fn open(family: Family) -> Result<Self> {
        let of = match family {
            Family::V4 => iptables::Family::V4,
            Family::V6 => iptables::Family::V6,
        };
        Ok(Self {
            family,
            door: Door::open()?,
            // The other back end is for kernels with nf_tables, where this filter is not used.
            iptables: Iptables::of(of, iptables::Backend::Legacy)?,
        })
    }

    fn name(&self, set: SetId) -> String {
        set_name(self.family, set)
    }

    /// Deletes a set, if it is there. One that rules of somebody else use is emptied: those of
    /// kube-proxy use sets of the same names.
    fn discard(&mut self, name: &str) -> Result<()> {
        match self.door.destroy(name) {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) if ipset::is_in_use(&error) => {
                tracing::warn!("{error}: it is emptied and stays, since other rules use it");
                self.door.flush(name)
            }
            done => done,
        }
    }

    fn discard_former(&mut self) -> Result<()> {
        for name in FORMER {
            self.discard(&own_name(self.family, name))?;
        }
        Ok(())
    }
}

impl Filter for IpSets {
    fn install(&mut self, settings: &Settings) -> Result<BTreeSet<Entry>> {
        for set in SetId::ALL {
            let name = self.name(set);
            self.door
                .create(&name, kind(set), self.family == Family::V6)?;
        }
        let saved = self.iptables.save(None)?;
        if !is_right(&saved, settings) {
            self.iptables.restore(&restore_text(&saved, settings))?;
        }
        self.discard_former()?;
        self.entries()
    }

    fn installed(&mut self, settings: &Settings) -> Result<Option<BTreeSet<Entry>>> {
        let saved = self.iptables.save(None)?;
        if !is_right(&saved, settings) {
            return Ok(None);
        }
        self.entries().map(Some)
    }

    fn entries(&mut self) -> Result<BTreeSet<Entry>> {
        let mut entries = BTreeSet::new();
        for set in SetId::ALL {
            let name = self.name(set);
            match self.door.elements(&name) {
                Ok(all) => {
                    let read = |wire: &Wire| Some((set, from_wire(set, wire)?));
                    entries.extend(all.iter().filter_map(read));
                }
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(entries)
    }

    fn change(&mut self, add: &[Entry], delete: &[Entry]) -> Result<()> {
        for (set, element) in delete {
            let name = self.name(*set);
            self.door.delete(&name, kind(*set), &to_wire(element))?;
        }
        for (set, element) in add {
            let name = self.name(*set);
            self.door.add(&name, kind(*set), &to_wire(element))?;
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        let saved = self.iptables.save(None)?;
        let text = remove_text(&saved);
        if !text.is_empty() {
            self.iptables.restore(&text)?;
        }
        self.discard_former()?;
        // Where the first one never was, those with kube-proxy's names are kube-proxy's.
        let [mark, rest @ ..] = SetId::ALL;
        match self.door.elements(&self.name(mark)) {
            Err(error) if error.is_not_found() => return Ok(()),
            listed => listed.map(drop)?,
        }
        for set in rest {
            self.discard(&self.name(set))?;
        }
        self.discard(&self.name(mark))
    }
}

/// kube-proxy's name where it has such a set, cut where the kernel's limit is.
fn set_name(family: Family, set: SetId) -> String {
    if !set.is_kubes() {
        return own_name(family, set.name());
    }
    let prefix = match family {
        Family::V4 => "KUBE-",
        Family::V6 => "KUBE-6-",
    };
    let mut name = format!("{prefix}{}", set.name().to_uppercase());
    name.truncate(NAME_BYTES_MAX);
    name
}

fn own_name(family: Family, name: &str) -> String {
    let number = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    format!("SEAWAY{number}-{name}")
}

fn kind(set: SetId) -> Kind {
    match set.shape() {
        Shape::Ip => Kind::Ip,
        Shape::Key => Kind::IpPort,
        Shape::KeyMark => Kind::IpPortMark,
        Shape::KeySource => Kind::IpPortIp,
        Shape::KeyNet => Kind::IpPortNet,
        Shape::Port => Kind::Port,
    }
}

/// Which parts of a packet each field of a set is compared with.
fn directions(set: SetId) -> &'static str {
    match set.shape() {
        Shape::Ip | Shape::Port => "dst",
        Shape::Key | Shape::KeyMark => "dst,dst",
        Shape::KeySource | Shape::KeyNet => "dst,dst,src",
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn to_wire(element: &Element) -> Wire {
    let of = |key: &Key| Wire {
        ip: Some(key.ip),
        port: Some((Some(number(key.protocol)), key.port)),
        second: None,
        mark: None,
    };
    let bare = Wire {
        ip: None,
        port: None,
        second: None,
        mark: None,
    };
    match element {
        Element::Ip(ip) => Wire {
            ip: Some(*ip),
            ..bare
        },
        Element::Port(port) => Wire {
            port: Some((None, *port)),
            ..bare
        },
        Element::Key(key) => of(key),
        Element::From(key, net) => Wire {
            second: Some(*net),
            ..of(key)
        },
        Element::Mark(key, mark) => Wire {
            mark: Some(*mark),
            ..of(key)
        },
    }
}

fn from_wire(set: SetId, wire: &Wire) -> Option<Element> {
    let key = || {
        let (protocol, port) = wire.port?;
        let protocol = Protocol::ALL
            .into_iter()
            .find(|p| Some(number(*p)) == protocol)?;
        let ip = wire.ip?;
        Some(Key { ip, protocol, port })
    };
    Some(match set.shape() {
        Shape::Ip => Element::Ip(wire.ip?),
        Shape::Port => Element::Port(wire.port?.1),
        Shape::Key => Element::Key(key()?),
        Shape::KeyMark => Element::Mark(key()?, wire.mark?),
        Shape::KeySource | Shape::KeyNet => Element::From(key()?, wire.second?),
    })
}

/// A hook's chain, its table, and the built-in chains that call it.
fn place(hook: Hook) -> (&'static str, &'static str, &'static [&'static str]) {
    match hook {
        Hook::Prerouting => ("mangle", "SEAWAY-IPVS-PRE", &["PREROUTING"]),
        Hook::Output => ("mangle", "SEAWAY-IPVS-OUT", &["OUTPUT"]),
        Hook::Refuse => ("filter", "SEAWAY-IPVS-REFUSE", &["INPUT", "OUTPUT"]),
        Hook::Leaving => ("mangle", "SEAWAY-IPVS-LEAVE", &["POSTROUTING"]),
        Hook::Masquerade => ("nat", "SEAWAY-IPVS-POST", &["POSTROUTING"]),
    }
}

const TABLES: [&str; 3] = ["mangle", "filter", "nat"];

/// The lines of one chain.
fn lines(chain: &str, rule: &Rule, settings: &Settings) -> Vec<String> {
    let mut text = format!("-A {chain}");
    for each in &rule.matches {
        write_match(&mut text, each, settings.family);
    }
    let with = |target: &str| vec![format!("{text} -j {target}")];
    match rule.action {
        Action::Return => with("RETURN"),
        Action::Accept => with("ACCEPT"),
        Action::Drop => with("DROP"),
        Action::SetBits(bits) => with(&format!("MARK --set-xmark {bits:#x}/{bits:#x}")),
        Action::KeepBits(bits) => with(&format!("MARK --set-xmark 0x0/{:#x}", !bits)),
        Action::MapMark => {
            let name = set_name(settings.family, SetId::Inside);
            with(&format!("SET --map-set {name} dst,dst --map-mark"))
        }
        Action::Masquerade { clear: 0 } => with(&masquerade(settings)),
        Action::Masquerade { .. } => with(MASQUERADE_CHAIN),
        Action::Reject => {
            let icmp = match settings.family {
                Family::V4 => "icmp-port-unreachable",
                Family::V6 => "icmp6-port-unreachable",
            };
            let of = |protocol: Protocol| {
                let how = if protocol == Protocol::Tcp {
                    "tcp-reset"
                } else {
                    icmp
                };
                let start = format!("-A {chain}");
                let rest = text.strip_prefix(&start).unwrap_or_default();
                format!("{start} -p {protocol}{rest} -j REJECT --reject-with {how}")
            };
            Protocol::ALL.map(of).into()
        }
    }
}

fn masquerade(settings: &Settings) -> String {
    let random = if settings.random_fully {
        " --random-fully"
    } else {
        ""
    };
    format!("MASQUERADE{random}")
}

fn write_match(text: &mut String, each: &Match, family: Family) {
    let bang = |not: bool| if not { " !" } else { "" };
    let written = match each {
        Match::Pod { detect, not } => match detect {
            DetectLocal::Net(net) => write!(text, "{} -s {net}", bang(*not)),
            DetectLocal::Interface(name) => write!(text, "{} -i {name}", bang(*not)),
            DetectLocal::InterfacePrefix(name) => write!(text, "{} -i {name}+", bang(*not)),
        },
        Match::New => write!(text, " -m conntrack --ctstate NEW"),
        Match::In { set, not } => {
            let name = set_name(family, *set);
            let not = bang(*not);
            write!(text, " -m set{not} --match-set {name} {}", directions(*set))
        }
        Match::SourceIsService => {
            let name = set_name(family, SetId::Addresses);
            write!(text, " -m set --match-set {name} src")
        }
        Match::SourceIsLocal => write!(text, " -m addrtype --src-type LOCAL"),
        // What is refused is told by protocol.
        Match::HasPorts => Ok(()),
        Match::Protocol(protocol) => write!(text, " -p {protocol}"),
        Match::Marked { value, mask } => write!(text, " -m mark --mark {value:#x}/{mask:#x}"),
    };
    debug_assert!(written.is_ok());
}

/// The rules of our chains in one table, chains first.
fn table_lines(table: &str, settings: &Settings) -> Vec<String> {
    let mut all = Vec::new();
    for hook in Hook::ALL {
        let (of, chain, _) = place(hook);
        if of == table {
            let rules = rules(hook, settings);
            all.extend(rules.iter().flat_map(|rule| lines(chain, rule, settings)));
        }
    }
    if table == "nat" {
        let clear = settings.mark;
        all.push(format!(
            "-A {MASQUERADE_CHAIN} -j MARK --set-xmark 0x0/{clear:#x}"
        ));
        all.push(format!("-A {MASQUERADE_CHAIN} -j {}", masquerade(settings)));
    }
    all
}

fn chains(table: &str) -> Vec<&'static str> {
    let of = |hook| {
        let (of, chain, _) = place(hook);
        (of == table).then_some(chain)
    };
    let mut all: Vec<&str> = Hook::ALL.into_iter().filter_map(of).collect();
    if table == "nat" {
        all.push(MASQUERADE_CHAIN);
    }
    all
}

fn calls(table: &str) -> Vec<String> {
    let mut all = Vec::new();
    for hook in Hook::ALL {
        let (of, chain, from) = place(hook);
        if of == table {
            all.extend(from.iter().map(|from| format!("-A {from} -j {chain}")));
        }
    }
    all
}

/// The lines of one table in what `iptables-save` printed.
fn saved_table<'a>(saved: &'a str, table: &str) -> Vec<&'a str> {
    let mut inside = false;
    let mut all = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            inside = name == table;
        } else if inside && line.starts_with('-') {
            all.push(line);
        }
    }
    all
}

/// The parts of a chain's lines that the program prints as they were given: sets and targets.
fn marks<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    chain: &str,
) -> Vec<Vec<(&'a str, &'a str)>> {
    let start = format!("-A {chain} ");
    let of = |line: &'a str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pairs = words.windows(2).map(|pair| (pair[0], pair[1]));
        pairs
            .filter(|(word, _)| matches!(*word, "-j" | "--match-set" | "--map-set"))
            .collect()
    };
    let lines = lines.into_iter().filter(|line| line.starts_with(&start));
    lines.map(of).collect()
}

/// Whether chains, rules and calls are as they should be. Of rules, sets and targets are compared:
/// the program prints much of the rest in words of its own.
fn is_right(saved: &str, settings: &Settings) -> bool {
    TABLES.iter().all(|table| {
        let found = saved_table(saved, table);
        let wanted = table_lines(table, settings);
        let same = chains(table).iter().all(|chain| {
            let found = found.iter().copied();
            marks(found, chain) == marks(wanted.iter().map(String::as_str), chain)
        });
        same && calls(table)
            .iter()
            .all(|call| found.contains(&call.as_str()))
    })
}

fn restore_text(saved: &str, settings: &Settings) -> String {
    let mut text = String::new();
    for table in TABLES {
        let found = saved_table(saved, table);
        let mut line = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        line(&format!("*{table}"));
        for chain in chains(table) {
            line(&format!(":{chain} - [0:0]"));
        }
        for rule in table_lines(table, settings) {
            line(&rule);
        }
        for call in calls(table) {
            if !found.contains(&call.as_str()) {
                line(&call.replacen("-A ", "-I ", 1));
            }
        }
        line("COMMIT");
    }
    text
}

/// Takes away calls and chains that are there.
fn remove_text(saved: &str) -> String {
    let mut text = String::new();
    for table in TABLES {
        let found = saved_table(saved, table);
        let mut lines = Vec::new();
        for line in &found {
            if line.contains(&format!("-j {CHAIN_PREFIX}"))
                && !line.starts_with(&format!("-A {CHAIN_PREFIX}"))
            {
                lines.push(line.replacen("-A ", "-D ", 1));
            }
        }
        let named = |chain: &&&str| {
            saved
                .lines()
                .any(|line| line.starts_with(&format!(":{chain} ")))
        };
        let there: Vec<&str> = chains(table).iter().filter(named).copied().collect();
        lines.extend(there.iter().map(|chain| format!("-F {chain}")));
        lines.extend(there.iter().map(|chain| format!("-X {chain}")));
        if !lines.is_empty() {
            text.push_str(&format!("*{table}\n{}\nCOMMIT\n", lines.join("\n")));
        }
    }
    text
}

#[cfg(test)]
mod tests;
