//! What leaves the cluster gets the node's address, and what belongs to pods may pass where the host
//! forwards nothing by default.
//!
//! The first is a table of our own in nf_tables ([`nft`]), or chains in iptables ([`iptables`]) where
//! the kernel has no nf_tables. The second is always a chain in iptables, since a table of our own
//! cannot undo what another drops; without a host firewall in iptables no program is run at all.

pub mod iptables;
pub mod nft;

use api::cidr::Family;
use ipnetwork::IpNetwork;
use linux::Result;

use iptables::{Chains, FORWARD, POSTROUTING};
use nft::Nft;

/// The bit by which the service proxy marks what it masquerades itself (kube-proxy's default,
/// `--iptables-masquerade-bit 14`).
pub const PROXY_MARK: u32 = 1 << 14;

/// Who masquerades.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Masquerader {
    /// nftables where the kernel has it, else iptables
    #[default]
    Auto,
    /// A table of our own in nf_tables
    Nftables,
    /// Chains of our own in iptables
    Iptables,
}

/// The keeper of all rules.
#[derive(Debug)]
pub struct Firewall {
    cidrs: Vec<IpNetwork>,
    nft: Option<Nft>,
    /// Found when it is first needed.
    chains: Option<Chains>,
    /// What another way of masquerading left was looked for.
    swept: bool,
}

impl Firewall {
    /// Chooses the way.
    ///
    /// # Errors
    /// What was chosen is not there.
    pub fn new(cidrs: &[IpNetwork], masquerader: Masquerader) -> Result<Self> {
        let nft = match (masquerader, Nft::new(cidrs)) {
            (Masquerader::Iptables, _) | (Masquerader::Auto, Err(_)) => None,
            (Masquerader::Auto | Masquerader::Nftables, nft) => Some(nft?),
        };
        Ok(Self {
            cidrs: cidrs.to_vec(),
            nft,
            chains: None,
            swept: false,
        })
    }

    fn chains(&mut self) -> Result<&mut Chains> {
        let chains = match self.chains.take() {
            Some(chains) => chains,
            None => Chains::new(&self.cidrs)?,
        };
        Ok(self.chains.insert(chains))
    }

    /// Looks at everything and puts it in order; tells how much was not.
    ///
    /// # Errors
    /// The kernel's or the programs' words.
    pub fn ensure(&mut self) -> Result<usize> {
        let Some(mut nft) = self.nft.take() else {
            let mended = self.chains()?.ensure(&[POSTROUTING, FORWARD])?;
            return Ok(mended + self.sweep_nft());
        };
        let result = self.ensure_with(&mut nft);
        self.nft = Some(nft);
        result
    }

    fn ensure_with(&mut self, nft: &mut Nft) -> Result<usize> {
        let mut mended = nft.ensure()?;
        if self.host_filters(nft)? {
            mended += self.chains()?.ensure(&[FORWARD])?;
        }
        // First the new, then the old goes.
        if !self.swept {
            if in_iptables(nft, "nat", |chain| chain.name == POSTROUTING)? {
                mended += self.chains()?.remove(&[POSTROUTING])?;
            }
            self.swept = true;
        }
        Ok(mended)
    }

    /// Whether a firewall of the host may drop what pods send.
    fn host_filters(&self, nft: &mut Nft) -> Result<bool> {
        in_iptables(nft, "filter", |chain| {
            chain.name == "FORWARD" && chain.drops
        })
    }

    /// Removes our table where iptables is to do its work; it may not even be there.
    fn sweep_nft(&mut self) -> usize {
        if std::mem::replace(&mut self.swept, true) {
            return 0;
        }
        let removed = Nft::new(&self.cidrs).and_then(|mut nft| nft.remove());
        removed.unwrap_or(0)
    }

    /// Removes everything of ours, whoever made it.
    ///
    /// # Errors
    /// The kernel's or the programs' words.
    pub fn remove(&mut self) -> Result<()> {
        let Ok(mut nft) = Nft::new(&self.cidrs) else {
            return self.chains()?.remove(&[POSTROUTING, FORWARD]).map(drop);
        };
        nft.remove()?;
        let ours = |table| {
            let name = if table == "nat" { POSTROUTING } else { FORWARD };
            move |chain: &linux::nftables::ListedChain| chain.name == name
        };
        if in_iptables(&mut nft, "nat", ours("nat"))?
            || in_iptables(&mut nft, "filter", ours("filter"))?
        {
            self.chains()?.remove(&[POSTROUTING, FORWARD])?;
        }
        Ok(())
    }
}

/// Whether a table of iptables has such a chain. Of one that is not kept in nf_tables only the
/// programs know, so that it may.
fn in_iptables(
    nft: &mut Nft,
    table: &str,
    is_it: impl Fn(&linux::nftables::ListedChain) -> bool,
) -> Result<bool> {
    for family in Family::BOTH {
        let legacy = match family {
            Family::V4 => linux::iptables::Family::V4,
            Family::V6 => linux::iptables::Family::V6,
        };
        if linux::iptables::has_legacy_table(legacy, table)
            || nft.chains_of(family, table)?.iter().any(&is_it)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
