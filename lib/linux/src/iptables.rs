//! `iptables-save` and `iptables-restore` of one family: text in, text out, in the calling thread's
//! network namespace. The programs exist in two kinds that keep their rules in different places of
//! the kernel; the one whose rules the host already has is used.

mod stamp;

pub use stamp::Stamp;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::exec::{Exec, which};
use crate::nftables::{self, Nftables, TableRef};

/// How long the programs wait for another one's lock.
const LOCK_SECONDS: &str = "5";

/// A restore of 100 000 rules takes some seconds; more than this is a hang.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Address family of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl Family {
    fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    fn legacy_tables(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }
}

/// Whether the calling thread's network namespace has a table of the old kind, which nf_tables does
/// not show.
pub fn has_legacy_table(family: Family, table: &str) -> bool {
    let names = fs::read_to_string(family.legacy_tables()).unwrap_or_default();
    names.lines().any(|name| name == table)
}

/// Where the rules are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// nf_tables, through iptables-nft.
    Nft,
    /// The old x_tables.
    Legacy,
}

impl Backend {
    fn word(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// The pair of programs for one family.
#[derive(Debug, Clone)]
pub struct Iptables {
    family: Family,
    backend: Backend,
    save: PathBuf,
    restore: PathBuf,
}

impl Iptables {
    /// Finds the kind that the calling thread's network namespace uses: the one that has rules
    /// already; when none or both have, nft, or legacy on a kernel without nf_tables.
    ///
    /// # Errors
    /// Neither kind is installed.
    pub fn detect(family: Family) -> Result<Self> {
        let nft = Self::of(family, Backend::Nft);
        let legacy = Self::of(family, Backend::Legacy);
        match (nft, legacy) {
            (Ok(nft), Ok(legacy)) if !nft.is_taken() => Ok(legacy),
            (Ok(nft), Ok(legacy)) => {
                // Reading this file, unlike asking the program, never makes the kernel load tables.
                let tables = fs::read_to_string(family.legacy_tables()).unwrap_or_default();
                let legacy_used = !tables.trim().is_empty() && legacy.has_rules()?;
                Ok(if legacy_used && !nft.has_rules()? {
                    legacy
                } else {
                    nft
                })
            }
            (Ok(only), Err(_)) | (Err(_), Ok(only)) => Ok(only),
            (Err(error), Err(_)) => Self::plain(family).ok_or(error),
        }
    }

    /// The programs of a given kind.
    ///
    /// # Errors
    /// They are not installed.
    pub fn of(family: Family, backend: Backend) -> Result<Self> {
        let base = format!("{}-{}", family.program(), backend.word());
        let find = |what: &str| {
            let program = format!("{base}-{what}");
            which(&program).ok_or_else(|| {
                Error::new(format!("find {program}"), std::io::ErrorKind::NotFound)
                    .with_detail("install the package iptables")
            })
        };
        Ok(Self {
            family,
            backend,
            save: find("save")?,
            restore: find("restore")?,
        })
    }

    /// The programs without a kind in their name, where only those are installed.
    fn plain(family: Family) -> Option<Self> {
        let base = family.program();
        let version = Exec::new(which(base)?)
            .arg("--version")
            .output()
            .ok()?
            .text();
        let backend = if version.contains("nf_tables") {
            Backend::Nft
        } else {
            Backend::Legacy
        };
        let save = which(&format!("{base}-save"))?;
        let restore = which(&format!("{base}-restore"))?;
        Some(Self {
            family,
            backend,
            save,
            restore,
        })
    }

    /// The family of the rules.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Where the rules are kept.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The rules of `table`, or of all tables, as `iptables-save` writes them without counters.
    ///
    /// # Errors
    /// The program's words.
    pub fn save(&self, table: Option<&str>) -> Result<String> {
        let mut exec = Exec::new(&self.save).timeout(TIMEOUT);
        if let Some(table) = table {
            exec = exec.args(["-t", table]);
        }
        Ok(exec.run()?.text())
    }

    /// Applies `text` (tables between `*name` and `COMMIT`), each table as one transaction. Chains
    /// that `text` does not declare stay as they are; counters in `[packets:bytes]` are kept.
    ///
    /// # Errors
    /// The program's words, which name the line.
    pub fn restore(&self, text: &str) -> Result<()> {
        self.restore_with(text, &[]).map(drop)
    }

    /// As [`Iptables::restore`]; tells by which [`nftables::Edit::port`] notifications of nf_tables name
    /// what was done: that of a program's first socket is its process number. The old kind, of which
    /// the kernel tells nothing, has none.
    ///
    /// # Errors
    /// The program's words, which name the line.
    pub fn restore_as(&self, text: &str) -> Result<Option<u32>> {
        let pid = self.restore_with(text, &[])?;
        Ok(pid.filter(|_| self.backend == Backend::Nft))
    }

    /// Checks `text` without applying it.
    ///
    /// # Errors
    /// The program's words, which name the line.
    pub fn check(&self, text: &str) -> Result<()> {
        self.restore_with(text, &["--test"]).map(drop)
    }

    /// The number of the process that did it; none where there was nothing to do.
    fn restore_with(&self, text: &str, more: &[&str]) -> Result<Option<u32>> {
        if text.is_empty() {
            return Ok(None);
        }
        let exec = Exec::new(&self.restore).args(["-w", LOCK_SECONDS, "--noflush", "--counters"]);
        let exec = exec.args(more).stdin(text).timeout(TIMEOUT);
        Ok(Some(exec.run()?.pid))
    }

    /// Takes these tables away where nothing is in them: chains go with `restore`, in nf_tables the
    /// table stays. The old kind has its tables for ever.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove_empty_tables<'a>(&self, tables: impl IntoIterator<Item = &'a str>) -> Result<()> {
        if self.backend == Backend::Legacy {
            return Ok(());
        }
        let family = self.nf_family();
        let mut nft = Nftables::open()?;
        for table in tables {
            nft.ensure_no_empty_table(&TableRef::new(family, table))?;
        }
        Ok(())
    }

    /// Whether the kernel has the tables into which the new kind translates.
    fn is_taken(&self) -> bool {
        let family = self.nf_family();
        // Where a table is there already, none is made to tell: this is on the path of each pod.
        let is_there = |name: &str| {
            Nftables::open()
                .and_then(|mut nft| nft.has_table(&TableRef::new(family, name)))
                .unwrap_or(false)
        };
        is_there("nat") || is_there("filter") || Nftables::open_for(family).is_ok()
    }

    fn nf_family(&self) -> nftables::Family {
        match self.family {
            Family::V4 => nftables::Family::Ipv4,
            Family::V6 => nftables::Family::Ipv6,
        }
    }

    fn has_rules(&self) -> Result<bool> {
        Ok(self.save(None)?.lines().any(|line| line.starts_with("-A")))
    }
}
