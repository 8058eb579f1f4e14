//! Rules of iptables over sets of ipset, for kernels without nf_tables.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use api::cidr::Family;
use ipnetwork::IpNetwork;
use linux::Result;
use linux::ipset::{Element as Wire, IpSets as Door, Kind};
use linux::iptables::{self, Iptables};

use super::Filter;
use crate::backend::ipvs::rules::{Action, Hook, Match, Rule, rules};
use crate::backend::ipvs::sets::{Element, Entry, Key, SetId};
use crate::backend::{DetectLocal, Settings};
use crate::model::Protocol;

/// All chains of ours begin so.
const CHAIN_PREFIX: &str = "SEAWAY-IPVS-";

/// Where the bits of a masqueraded packet's mark are cleared.
const MASQUERADE_CHAIN: &str = "SEAWAY-IPVS-MASQ";

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
            self.door
                .delete(&name, kind(*set), &to_wire(*set, element))?;
        }
        for (set, element) in add {
            let name = self.name(*set);
            self.door.add(&name, kind(*set), &to_wire(*set, element))?;
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        let saved = self.iptables.save(None)?;
        let text = remove_text(&saved);
        if !text.is_empty() {
            self.iptables.restore(&text)?;
        }
        for set in SetId::ALL {
            let name = self.name(set);
            match self.door.destroy(&name) {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

fn set_name(family: Family, set: SetId) -> String {
    let number = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    format!("SEAWAY{number}-{}", set.name())
}

fn kind(set: SetId) -> Kind {
    match set {
        SetId::Addresses => Kind::Ip,
        SetId::Inside => Kind::IpPortMark,
        SetId::Allowed => Kind::IpPortNet,
        SetId::Hairpin => Kind::NetNet,
        SetId::Frontends
        | SetId::MasqueradeAll
        | SetId::MasqueradeStrangers
        | SetId::Refuse
        | SetId::DropAll
        | SetId::DropOutside
        | SetId::Restricted
        | SetId::HealthChecks => Kind::IpPort,
    }
}

/// Which parts of a packet each field of a set is compared with.
fn directions(set: SetId) -> &'static str {
    match kind(set) {
        Kind::Ip => "dst",
        Kind::IpPort | Kind::IpPortMark => "dst,dst",
        Kind::IpPortNet => "dst,dst,src",
        Kind::NetNet => "src,dst",
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn to_wire(set: SetId, element: &Element) -> Wire {
    let of = |key: &Key| Wire {
        ip: IpNetwork::from(key.ip),
        port: Some((number(key.protocol), key.port)),
        second: None,
        mark: None,
    };
    match element {
        Element::Ip(ip) => Wire {
            ip: IpNetwork::from(*ip),
            port: None,
            second: (set == SetId::Hairpin).then(|| IpNetwork::from(*ip)),
            mark: None,
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
        let protocol = Protocol::ALL.into_iter().find(|p| number(*p) == protocol)?;
        Some(Key {
            ip: wire.ip.ip(),
            protocol,
            port,
        })
    };
    Some(match kind(set) {
        Kind::Ip | Kind::NetNet => Element::Ip(wire.ip.ip()),
        Kind::IpPort => Element::Key(key()?),
        Kind::IpPortMark => Element::Mark(key()?, wire.mark?),
        Kind::IpPortNet => Element::From(key()?, wire.second?),
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

/// Whether chains, rules and calls are as they should be. Rules are compared by number: the program
/// prints them in words of its own.
fn is_right(saved: &str, settings: &Settings) -> bool {
    TABLES.iter().all(|table| {
        let found = saved_table(saved, table);
        let count = |chain: &str| {
            let start = format!("-A {chain} ");
            found.iter().filter(|line| line.starts_with(&start)).count()
        };
        let wanted = table_lines(table, settings);
        let same = chains(table).iter().all(|chain| {
            let start = format!("-A {chain} ");
            count(chain)
                == wanted
                    .iter()
                    .filter(|line| line.starts_with(&start))
                    .count()
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
