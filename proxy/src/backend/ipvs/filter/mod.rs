//! Where rules and sets are kept: nf_tables where the kernel has it, ipset and iptables otherwise.

pub mod ipset;
pub mod nft;

use std::collections::BTreeSet;

use api::cidr::Family;
use linux::Result;

use super::sets::Entry;
use crate::backend::Settings;

/// One family's rules and sets.
pub trait Filter: Send {
    /// Makes rules and sets that are not there or not right; entries stay. Gives back the entries.
    ///
    /// # Errors
    /// The kernel's refusal; so for every function below.
    fn install(&mut self, settings: &Settings) -> Result<BTreeSet<Entry>>;

    /// The entries, where rules and sets are as they should be.
    ///
    /// # Errors
    /// As [`Filter::install`].
    fn installed(&mut self, settings: &Settings) -> Result<Option<BTreeSet<Entry>>>;

    /// The entries of those sets that are there.
    ///
    /// # Errors
    /// As [`Filter::install`].
    fn entries(&mut self) -> Result<BTreeSet<Entry>>;

    /// Deletes entries, then adds entries.
    ///
    /// # Errors
    /// As [`Filter::install`].
    fn change(&mut self, add: &[Entry], delete: &[Entry]) -> Result<()>;

    /// Takes rules and sets away.
    ///
    /// # Errors
    /// As [`Filter::install`].
    fn remove(&mut self) -> Result<()>;
}

/// The best that this machine has.
///
/// # Errors
/// It has none.
pub fn open(family: Family) -> Result<Box<dyn Filter>> {
    match nft::Nft::open(family) {
        Ok(nft) => Ok(Box::new(nft)),
        Err(error) => {
            tracing::info!("{family}: rules are kept by ipset and iptables: {error}");
            Ok(Box::new(ipset::IpSets::open(family)?))
        }
    }
}
