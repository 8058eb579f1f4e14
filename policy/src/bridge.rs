//! How packets that cross a bridge come before the rules: by br_netfilter, or by a table for the
//! bridge that sends them through the node ([`crate::plan::bridge`]).

use api::cidr::any_contains;
use ipnetwork::IpNetwork;
use linux::nftables::{Batch, Chain, ChainKind, Family, Hook, Nftables, Rule, TableRef, priority};
use linux::{Host, Kernel, Mac, Result};

use crate::objects::comments;
use crate::plan;
use crate::plan::names::{PREROUTING, TABLE};

/// Settings by which bridged packets pass the hooks of IP.
pub const SETTINGS: [&str; 2] = [
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
];

/// What `nft list ruleset` says of the table.
const COMMENT: &str = "Seaway: pods of this node reach each other through the node";

/// How packets between pods of one node come before the rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bridged {
    /// By br_netfilter where the kernel has it, else routed.
    #[default]
    Auto,
    /// Routed.
    Route,
}

/// The table.
pub fn table() -> TableRef {
    TableRef::new(Family::Bridge, TABLE)
}

/// Switches the settings on; the error tells why they are not to be had.
fn netfilter() -> Result<()> {
    SETTINGS
        .into_iter()
        .try_for_each(|setting| linux::sysctl::ensure(setting, "1").map(drop))
}

/// Keeps the table for the bridge. It stands beside the policies, which hold for everything else
/// whatever becomes of it.
#[derive(Debug, Default)]
pub struct Bridge {
    how: Bridged,
    /// Packets between pods of this node are routed; else br_netfilter has them.
    routed: bool,
    /// The rules that are in the kernel; `None`: it has to be looked at.
    there: Option<Vec<Rule>>,
    due: bool,
    unjudged: Option<String>,
}

impl Bridge {
    /// Nothing is looked at yet.
    pub fn new(how: Bridged) -> Self {
        Self {
            how,
            ..Self::default()
        }
    }

    /// Whether packets between pods of this node are routed.
    pub fn is_routed(&self) -> bool {
        self.routed
    }

    /// Why packets between pods of this node are not judged, if so.
    pub fn unjudged(&self) -> Option<&str> {
        self.unjudged.as_deref()
    }

    /// The bridge may have come or changed; `rules`: so may those for it.
    pub fn doubt(&mut self, rules: bool) {
        self.due |= self.routed || rules;
        if rules {
            self.there = None;
        }
    }

    /// Whether [`Bridge::sync`] has something to do.
    pub fn is_due(&self) -> bool {
        self.due
    }

    /// Chooses between br_netfilter and routing, as the kernel is now.
    pub fn look(&mut self) {
        let why = match self.how {
            Bridged::Auto => netfilter().err().map(|error| error.to_string()),
            Bridged::Route => Some("as asked for".to_owned()),
        };
        if let (false, Some(why)) = (self.routed, &why) {
            tracing::info!("packets between pods of this node are routed by it: {why}");
        }
        self.routed = why.is_some();
        self.doubt(true);
    }

    /// Brings the table up to date; tells how much was written.
    pub fn sync(&mut self, nft: &mut Nftables, kernel: &mut Kernel, nets: &[IpNetwork]) -> usize {
        if !std::mem::take(&mut self.due) {
            return 0;
        }
        let (written, why) = match self.write(nft, kernel, nets) {
            Ok(written) => (written, None),
            Err(error) => {
                let what = "what pods of this node say to each other over the bridge is not judged";
                (false, Some(format!("{error}: {what}")))
            }
        };
        if let Some(why) = why.as_ref().filter(|_| why != self.unjudged) {
            tracing::warn!("{why}");
        }
        self.unjudged = why;
        usize::from(written)
    }

    fn write(
        &mut self,
        nft: &mut Nftables,
        kernel: &mut Kernel,
        nets: &[IpNetwork],
    ) -> Result<bool> {
        let rules = self.rules(kernel, nets)?;
        if self.there.as_ref() == Some(&rules) {
            return Ok(false);
        }
        self.there = None;
        let written = ensure(nft, &rules)?;
        self.there = Some(rules);
        Ok(written)
    }

    fn rules(&self, kernel: &mut Kernel, nets: &[IpNetwork]) -> Result<Vec<Rule>> {
        let bridge = match self.routed {
            true => find(kernel, nets)?,
            false => None,
        };
        Ok(plan::bridge::rules(nets, bridge))
    }

    /// Whether the kernel has exactly what is planned.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn is_true(
        &self,
        nft: &mut Nftables,
        kernel: &mut Kernel,
        nets: &[IpNetwork],
    ) -> Result<bool> {
        is_there(nft, &self.rules(kernel, nets)?)
    }
}

/// The hardware address of the bridge with an address in one of these networks.
fn find(kernel: &mut Kernel, nets: &[IpNetwork]) -> Result<Option<Mac>> {
    for (name, addr) in kernel.all_addrs()? {
        if !any_contains(nets, addr.net.ip()) {
            continue;
        }
        let link = kernel.link(&name)?;
        if let Some(link) = link.filter(|link| link.kind.as_deref() == Some("bridge")) {
            return Ok(link.mac);
        }
    }
    Ok(None)
}

/// Comments of the rules that are there; none: there is no table.
fn observe(nft: &mut Nftables) -> Result<Option<Vec<String>>> {
    if !nft.has_table(&table())? {
        return Ok(None);
    }
    let rules = nft.rules(&table())?.into_iter();
    Ok(Some(rules.map(|r| r.comment.unwrap_or_default()).collect()))
}

/// Whether the table has exactly these rules; none: there is no table.
fn is_there(nft: &mut Nftables, rules: &[Rule]) -> Result<bool> {
    Ok(observe(nft)? == (!rules.is_empty()).then(|| comments(rules)))
}

/// Gives the table exactly these rules, in one transaction; without any there is no table. Whether
/// something was to be done.
///
/// # Errors
/// The kernel's refusal, as where it has no nf_tables for bridges.
pub fn ensure(nft: &mut Nftables, rules: &[Rule]) -> Result<bool> {
    let table = table();
    if is_there(nft, rules)? {
        return Ok(false);
    }
    if rules.is_empty() {
        return nft.ensure_no_table(&table);
    }
    let mut batch = Batch::new();
    batch.add_table(&table, Some(COMMENT));
    batch.delete_table(&table);
    batch.add_table(&table, Some(COMMENT));
    let kind = ChainKind::Filter;
    let chain = Chain::base(PREROUTING, kind, Hook::Prerouting, priority::RAW);
    batch.add_chain(&table, &chain);
    for rule in rules {
        batch.add_rule(&table, PREROUTING, rule);
    }
    nft.commit(&batch)?;
    Ok(true)
}
