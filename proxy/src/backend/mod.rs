//! Backends: each renders the same decisions into objects of the kernel and applies them.
//!
//! A backend plans (pure: decisions -> wanted objects), diffs (pure: wanted, known -> change) and
//! applies (the only part that touches the kernel). The sync loop knows it as a [`Backend`].

pub mod ebpf;
pub mod iptables;
pub mod ipvs;
mod mode;
pub mod nftables;
mod settings;

pub use mode::{Mode, choose, cleanup, open, open_with, remove_others};
pub use settings::{DetectLocal, NodePortScope, Settings};

use std::time::Instant;

use linux::nftables::Notice;

use crate::conntrack::Frontends;
use crate::model::Decisions;
use crate::store::PortChange;

/// What one sync wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Objects written: chains, elements or map slots.
    pub objects: usize,
    /// Rules in chains that were written, where the backend has rules.
    pub rules: usize,
    /// Objects deleted.
    pub deleted: usize,
    /// Everything was compared with the kernel.
    pub full: bool,
}

/// How many rules of ours a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRules {
    /// Name of the table.
    pub table: &'static str,
    /// All.
    pub total: usize,
    /// Written by the last sync.
    pub last: usize,
}

/// Makes text for Prometheus.
pub type MoreMetrics = Box<dyn Fn() -> String + Send + Sync>;

/// One family's services in the kernel, as one mode keeps them.
pub trait Backend: Send {
    /// Settings it works with.
    fn settings(&self) -> &Settings;

    /// Starts over with other settings and all of `decisions`; the next sync compares everything.
    fn reconfigure(&mut self, settings: Settings, decisions: &Decisions);

    /// Sets service ports; nothing is written yet.
    fn set(&mut self, changes: &[PortChange]);

    /// Makes the kernel's objects what is wanted. The first call takes over what is in the kernel.
    ///
    /// # Errors
    /// The kernel's refusal. The caller then distrusts and calls again.
    fn sync(&mut self) -> linux::Result<Report>;

    /// The next sync looks at the kernel and compares everything.
    fn distrust(&mut self);

    /// [`Backend::is_intact`] found that they are not what was written: the next sync looks at the
    /// kernel, as far as that is needed to make them so.
    fn doubt(&mut self) {
        self.distrust();
    }

    /// Whether the kernel's objects are thought to be known.
    fn is_trusted(&self) -> bool;

    /// The node's addresses may have changed. True when what is wanted follows from them and is
    /// something else now: a sync is due.
    fn see_addresses(&mut self) -> bool {
        false
    }

    /// Whether the kernel still has all that was written.
    ///
    /// # Errors
    /// The kernel's refusal to tell.
    fn is_intact(&mut self) -> linux::Result<bool>;

    /// Takes away all that is ours, also what an earlier process made.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn cleanup(&mut self) -> linux::Result<()>;

    /// The UDP addresses that are served in the kernel, also by an earlier process. Asked before
    /// [`Backend::cleanup`], so that flows through them do not outlive what translated them.
    ///
    /// # Errors
    /// The kernel's refusal to tell.
    fn frontends(&mut self) -> linux::Result<Frontends> {
        Ok(Frontends::default())
    }

    /// Rules by table, where the mode has such.
    fn rules(&self) -> Vec<TableRules> {
        Vec::new()
    }

    /// Tells of what somebody did to nf_tables, perhaps this backend; true when its objects may have
    /// been changed.
    fn see(&mut self, seen: &Notice<'_>) -> bool;

    /// It has been told of all that was done to nf_tables by the end of its last sync, and before.
    fn seen_all(&mut self) {}

    /// How the kernel names this backend as the maker of changes of nf_tables; of those it is not
    /// told. `None`: it has no name of its own.
    fn own_port(&self) -> Option<u32>;

    /// When the next sync is due although nothing changes.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Makes more text for Prometheus, of what the kernel counts for this mode.
    fn metrics(&self) -> Option<MoreMetrics> {
        None
    }
}
