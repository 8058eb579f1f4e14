//! The table for people: rules in `nft`'s words as far as they go, and names of services beside
//! every element.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::SocketAddr;

use linux::nftables::{
    Base, CmpOp, CtKey, DynsetOp, Expr, FibResult, MetaKey, NatKind, Nftables, Reject, Verdict,
};

use super::desired::Desired;
use super::diff::Named;
use super::fixed::{self, ChainPlan};
use super::item::{Fate, Front, Key, Service, SetId, Value};
use super::observe::{self, Observed};
use api::cidr::Family;

/// Writes everything that is wanted.
pub(super) fn write(f: &mut fmt::Formatter<'_>, desired: &Desired) -> fmt::Result {
    for plan in desired.chains() {
        write_chain(f, &plan)?;
    }
    for pick in desired.picks() {
        write_chain(f, &fixed::pick(desired.settings(), pick))?;
    }
    write_items(f, &desired.contents(), desired)
}

fn write_chain(f: &mut impl Write, plan: &ChainPlan) -> fmt::Result {
    writeln!(f, "chain {}", plan.chain.name)?;
    for rule in &plan.rules {
        let comment = rule.comment.as_deref().unwrap_or_default();
        // The hash of a rule is of bytes, whose order is this machine's.
        let what = comment.split(" [").next().unwrap_or_default();
        write!(f, "   ")?;
        for expression in &rule.expressions {
            write!(f, " {};", Shown(expression))?;
        }
        writeln!(f, " # {what}")?;
    }
    Ok(())
}

/// Writes elements by set.
pub fn write_items(f: &mut impl Write, items: &[(Key, Value)], names: &impl Named) -> fmt::Result {
    let mut set = None;
    for (key, value) in items {
        if set != Some(key.set()) {
            set = Some(key.set());
            writeln!(f, "{}", key.set().name())?;
        }
        let named = |number: u32| names.name(number).unwrap_or_else(|| format!("#{number}"));
        let name = named(key.port(value));
        let left = match key {
            Key::Pick(number) => format!("{number}"),
            Key::EndpointIp(ip) | Key::DnsIp(ip) | Key::NodeIp(ip) | Key::ClusterIp(ip) => {
                ip.to_string()
            }
            Key::Sticky(word) => format!("{name} {} endpoint {}", which(word.set), word.low),
            Key::StickySlot(set, slot) | Key::Slot(set, slot) => {
                format!("{name} {} slot {slot}", which(*set))
            }
            Key::Source(_, first, last) => format!("{name} {first}-{last}"),
            Key::Cluster(front) | Key::Local(front) | Key::Front(front) => shown_front(*front),
            Key::ServiceNet(first, last) => format!("{first}-{last}"),
        };
        let right = match (key, value) {
            (_, Value::Nothing) => String::new(),
            (_, Value::Pick(pick)) => format!(" : goto {}", pick.chain()),
            (_, Value::Endpoint(to)) => format!(" : {}", SocketAddr::new(to.ip, to.port)),
            (Key::StickySlot(..), Value::Word(word)) => format!(" : endpoint {}", word.low),
            (_, Value::Word(word)) => {
                format!(" : {name} {}, pick {}", which(word.set), word.low)
            }
            (_, Value::Service(service)) => format!(" : {name}{}", shown_service(service)),
        };
        writeln!(f, "    {left}{right}")?;
    }
    Ok(())
}

fn which(set: SetId) -> &'static str {
    if set.local { "local" } else { "cluster" }
}

fn shown_front(front: Front) -> String {
    match front.ip {
        Some(ip) => format!("{}/{}", SocketAddr::new(ip, front.port), front.protocol),
        None => format!("node port {}/{}", front.port, front.protocol),
    }
}

fn shown_service(service: &Service) -> String {
    let mut text = String::new();
    let fates = service.fates.iter().zip(service.masquerade);
    for (who, (fate, masquerade)) in ["pods", "node", "others"].iter().zip(fates) {
        let fate = match fate {
            Fate::Drop => "drop",
            Fate::Reject => "reject",
            Fate::Cluster => "cluster",
            Fate::Local => "local",
        };
        let masquerade = if masquerade { "/m" } else { "" };
        text.push_str(&format!(" {who} {fate}{masquerade}"));
    }
    if service.filtered {
        text.push_str(" filtered");
    }
    text
}

/// Names as the comments of the kernel's elements have them.
struct Comments(BTreeMap<u32, String>);

impl Named for Comments {
    fn name(&self, number: u32) -> Option<String> {
        self.0.get(&number).cloned()
    }
}

/// The table of a family as the kernel has it; `None` when there is none.
///
/// # Errors
/// The kernel's refusal.
pub fn kernel(nft: &mut Nftables, family: Family) -> linux::Result<Option<String>> {
    let observed = observe::observe(nft, family)?;
    if !observed.exists {
        return Ok(None);
    }
    Ok(Some(listing(&observed, family)))
}

fn listing(observed: &Observed, family: Family) -> String {
    let numbers: BTreeMap<&String, &u32> = observed.numbers.iter().collect();
    let names = numbers
        .into_iter()
        .map(|(name, number)| (*number, name.clone()));
    let names = Comments(names.collect());
    let mut out = format!("table {}\n", super::table(family));
    for (chain, comments) in &observed.chains {
        out.push_str(&format!("chain {chain}\n"));
        for comment in comments {
            let what = comment.split(" [").next().unwrap_or_default();
            out.push_str(&format!("    # {what}\n"));
        }
    }
    // Writing to a string does not fail.
    write_items(&mut out, &observed.items, &names).unwrap_or_default();
    for (set, element) in &observed.strange {
        out.push_str(&format!(
            "not ours in {}: {:02x?}\n",
            set.name(),
            element.key
        ));
    }
    out
}

/// An expression, in about `nft`'s words.
struct Shown<'a>(&'a Expr);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Expr::Payload {
                base,
                offset,
                length,
                to,
            } => {
                let base = match base {
                    Base::Link => "link",
                    Base::Network => "network",
                    Base::Transport => "transport",
                };
                write!(f, "r{} = {base}[{offset}..+{length}]", to.index())
            }
            Expr::Meta { key, to } => write!(f, "r{} = {}", to.index(), meta(*key)),
            Expr::SetMeta { key, from } => write!(f, "{} = r{}", meta(*key), from.index()),
            Expr::Ct { key, to } => {
                let key = match key {
                    CtKey::State => "state",
                    CtKey::Status => "status",
                    _ => "?",
                };
                write!(f, "r{} = ct {key}", to.index())
            }
            Expr::Cmp { reg, op, value } => {
                let op = match op {
                    CmpOp::Eq => "==",
                    CmpOp::Ne => "!=",
                    CmpOp::Lt => "<",
                    CmpOp::Le => "<=",
                    CmpOp::Gt => ">",
                    CmpOp::Ge => ">=",
                };
                write!(f, "r{} {op} {}", reg.index(), Hex(value))
            }
            Expr::Bitwise {
                from,
                to,
                mask,
                xor,
            } => {
                let (from, to) = (from.index(), to.index());
                write!(f, "r{to} = r{from} & {} ^ {}", Hex(mask), Hex(xor))
            }
            Expr::Lookup { set, key, not } => {
                let not = if *not { "not " } else { "" };
                write!(f, "r{} {not}in @{set}", key.index())
            }
            Expr::Map { map, key, to } => {
                write!(f, "r{} = @{map}[r{}]", to.index(), key.index())
            }
            Expr::VerdictMap { map, key } => write!(f, "@{map}[r{}]", key.index()),
            Expr::Immediate { to, value } => write!(f, "r{} = {}", to.index(), Hex(value)),
            other => self.act(other, f),
        }
    }
}

impl Shown<'_> {
    fn act(&self, expr: &Expr, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match expr {
            Expr::Verdict(verdict) => match verdict {
                Verdict::Accept => f.write_str("accept"),
                Verdict::Drop => f.write_str("drop"),
                Verdict::Continue => f.write_str("continue"),
                Verdict::Return => f.write_str("return"),
                Verdict::Jump(chain) => write!(f, "jump {chain}"),
                Verdict::Goto(chain) => write!(f, "goto {chain}"),
            },
            Expr::Nat {
                kind,
                address,
                port,
                ..
            } => {
                let kind = match kind {
                    NatKind::Source => "snat",
                    NatKind::Destination => "dnat",
                };
                let reg = |reg: &Option<linux::nftables::Reg>| reg.map_or(0, |reg| reg.index());
                write!(f, "{kind} to r{} . r{}", reg(address), reg(port))
            }
            Expr::Masquerade(flags) => {
                let how = if flags.fully_random {
                    " fully-random"
                } else {
                    ""
                };
                write!(f, "masquerade{how}")
            }
            Expr::Reject(Reject::TcpReset) => f.write_str("reject with tcp reset"),
            Expr::Reject(_) => f.write_str("reject"),
            Expr::Numgen { modulus, to, .. } => {
                write!(f, "r{} = numgen random mod {modulus}", to.index())
            }
            Expr::Dynset {
                op,
                set,
                key,
                data,
                timeout,
            } => {
                let op = match op {
                    DynsetOp::Add => "add",
                    DynsetOp::Update => "update",
                    DynsetOp::Delete => "delete",
                };
                write!(f, "{op} @{set}[r{}]", key.index())?;
                if let Some(data) = data {
                    write!(f, " = r{}", data.index())?;
                }
                if let Some(timeout) = timeout {
                    write!(f, " for {timeout:?}")?;
                }
                Ok(())
            }
            Expr::Fib { result, to, .. } => {
                let result = match result {
                    FibResult::Interface => "interface",
                    FibResult::AddressType => "type",
                };
                write!(f, "r{} = fib destination {result}", to.index())
            }
            other => f.write_str(other.name()),
        }
    }
}

fn meta(key: MetaKey) -> &'static str {
    match key {
        MetaKey::Mark => "mark",
        MetaKey::Priority => "priority",
        MetaKey::InputInterface => "iifname",
        MetaKey::OutputInterface => "oifname",
        MetaKey::NfProtocol => "nfproto",
        MetaKey::L4Protocol => "l4proto",
        MetaKey::PacketType => "pkttype",
        MetaKey::EtherType => "protocol",
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
