//! The rules as a table of our own in nf_tables, for each family. The plan is pure.

use std::net::IpAddr;

use api::cidr::Family;
use ipnetwork::IpNetwork;
use linux::Result;
use linux::nftables::{
    self, Batch, Chain, ChainKind, Expr, Hook, ListedChain, ListedRule, MetaKey, NatFlags,
    Nftables, Reg, Rule, TableRef, Verdict, priority,
};

use super::PROXY_MARK;

/// The name of the table.
pub const TABLE: &str = "seaway-overlay";

/// The chain that masquerades.
const POSTROUTING: &str = "postrouting";

/// The register that all tests use, one after the other.
const REG: Reg = Reg::at(0);

/// What a table should hold: one chain and its rules, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The table.
    pub table: TableRef,
    /// Its chain.
    pub chain: Chain,
    /// The chain's rules. Each has a comment that no other content would have.
    pub rules: Vec<Rule>,
}

/// The table of one family; none without networks of pods of that family.
pub fn plan(family: Family, cluster_cidrs: &[IpNetwork]) -> Option<Plan> {
    let v6 = family == Family::V6;
    let cidrs: Vec<IpNetwork> = api::cidr::of_family(cluster_cidrs, family).collect();
    let multicast = multicast(family)?;
    if cidrs.is_empty() {
        return None;
    }
    let mark = PROXY_MARK.to_ne_bytes();
    let marked = [
        Expr::Meta {
            key: MetaKey::Mark,
            to: REG,
        },
        Expr::and(REG, mark),
        Expr::equals(REG, mark),
        Expr::Verdict(Verdict::Return),
    ];
    let mut rules = vec![commented(
        marked.into(),
        "the proxy masquerades this itself",
    )];
    // Nothing is masqueraded before it is known that it does not stay within.
    for src in &cidrs {
        for dst in &cidrs {
            let mut steps = within(Expr::source(v6, REG), src, true);
            steps.extend(within(Expr::destination(v6, REG), dst, true));
            steps.push(Expr::Verdict(Verdict::Return));
            rules.push(commented(steps, &format!("{src} to {dst} stays within")));
        }
    }
    for src in &cidrs {
        let mut steps = within(Expr::source(v6, REG), src, true);
        steps.extend(within(Expr::destination(v6, REG), &multicast, false));
        steps.push(Expr::Masquerade(NatFlags {
            fully_random: true,
            ..NatFlags::default()
        }));
        rules.push(commented(steps, &format!("{src} leaves")));
    }
    let of = if v6 {
        nftables::Family::Ipv6
    } else {
        nftables::Family::Ipv4
    };
    let hook = Hook::Postrouting;
    Some(Plan {
        table: TableRef::new(of, TABLE),
        chain: Chain::base(POSTROUTING, ChainKind::Nat, hook, priority::SRCNAT),
        rules,
    })
}

fn multicast(family: Family) -> Option<IpNetwork> {
    let (ip, length): (IpAddr, u8) = match family {
        Family::V4 => ([224, 0, 0, 0].into(), 4),
        Family::V6 => ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    };
    IpNetwork::new(ip, length).ok()
}

/// Whether an address is in a network, or is not.
fn within(address: Expr, net: &IpNetwork, wanted: bool) -> Vec<Expr> {
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let network = bytes(net.network());
    let compare = if wanted {
        Expr::equals(REG, network)
    } else {
        Expr::differs(REG, network)
    };
    vec![address, Expr::and(REG, bytes(net.mask())), compare]
}

/// A rule whose comment tells its content (64-bit FNV-1a of the kernel's bytes), so that a list of
/// comments is enough to know that all is as it was made.
fn commented(steps: Vec<Expr>, words: &str) -> Rule {
    let rule = Rule::new(steps);
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in rule.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    rule.comment(format!("{words} #{hash:016x}"))
}

impl Plan {
    /// Whether this is what the table holds.
    pub fn is_there(&self, chains: &[ListedChain], rules: &[ListedRule]) -> bool {
        let comments = rules.iter().map(|rule| (&rule.chain, &rule.comment));
        let ours = self.rules.iter();
        let wanted = ours.map(|rule| (&self.chain.name, &rule.comment));
        chains.len() == 1
            && chains[0].name == self.chain.name
            && chains[0].is_base
            && !chains[0].drops
            && comments.eq(wanted)
    }

    /// Everything anew, in one transaction: at no time is there less than before.
    pub fn batch(&self, there: bool) -> Batch {
        let mut batch = Batch::new();
        if there {
            batch.delete_table(&self.table);
        }
        batch.add_table(&self.table, Some("masquerade of Seaway's overlay"));
        batch.add_chain(&self.table, &self.chain);
        for rule in &self.rules {
            batch.add_rule(&self.table, &self.chain.name, rule);
        }
        batch
    }

    /// For people and tests.
    pub fn words(&self) -> String {
        let mut text = format!("table {}\n", self.table);
        for rule in &self.rules {
            let names: Vec<&str> = rule.expressions.iter().map(Expr::name).collect();
            let comment = rule.comment.as_deref().unwrap_or_default();
            text += &format!("{}: {comment}\n", names.join(" "));
        }
        text
    }
}

/// The keeper of the tables.
#[derive(Debug)]
pub struct Nft {
    door: Nftables,
    plans: Vec<Plan>,
}

impl Nft {
    /// Opens the door.
    ///
    /// # Errors
    /// The kernel has no nf_tables.
    pub fn new(cluster_cidrs: &[IpNetwork]) -> Result<Self> {
        let door = Nftables::open_for(nftables::Family::Ipv4)?;
        let plans = Family::BOTH.into_iter();
        Ok(Self {
            door,
            plans: plans.filter_map(|f| plan(f, cluster_cidrs)).collect(),
        })
    }

    /// Looks at the tables and makes anew what is not as it should be; tells how many were not.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn ensure(&mut self) -> Result<usize> {
        let mut mended = 0;
        for plan in &self.plans {
            let there = self.door.has_table(&plan.table)?;
            let good = there && {
                let chains = self.door.chains(&plan.table)?;
                plan.is_there(&chains, &self.door.rules(&plan.table)?)
            };
            if !good {
                self.door.commit(&plan.batch(there))?;
                mended += 1;
            }
        }
        Ok(mended)
    }

    /// Removes the tables of both families; tells how many there were.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove(&mut self) -> Result<usize> {
        let mut removed = 0;
        for family in [nftables::Family::Ipv4, nftables::Family::Ipv6] {
            let table = TableRef::new(family, TABLE);
            removed += usize::from(self.door.ensure_no_table(&table)?);
        }
        Ok(removed)
    }

    /// The chains of a table of iptables, if it is kept in nf_tables.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn chains_of(&mut self, family: Family, table: &str) -> Result<Vec<ListedChain>> {
        let of = match family {
            Family::V4 => nftables::Family::Ipv4,
            Family::V6 => nftables::Family::Ipv6,
        };
        match self.door.chains(&TableRef::new(of, table)) {
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            found => found,
        }
    }
}
