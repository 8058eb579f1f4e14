//! Two chains of our own in iptables.
//!
//! [`Saved`] and [`text`] are pure; [`Chains`] runs the programs. Rules are compared in the
//! program's own words as it printed them after they were last written.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use linux::Result;
use linux::iptables::{Family, Iptables};

use super::PROXY_MARK;

/// The chain in `nat`.
pub const POSTROUTING: &str = "SEAWAY-POSTRTG";

/// The chain in `filter`.
pub const FORWARD: &str = "SEAWAY-FWD";

/// A chain of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its table.
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The kernel's chain it is called from.
    pub hook: &'static str,
    /// The comment on the call.
    pub comment: &'static str,
    /// Only needed if the hook's policy is not ACCEPT.
    pub only_if_closed: bool,
    /// Its rules, without `-A NAME`.
    pub rules: Vec<String>,
}

/// Our chains for one family.
pub fn chains(family: Family, cluster_cidrs: &[IpNetwork]) -> Vec<Chain> {
    let ipv6 = family == Family::V6;
    let cidrs: Vec<_> = cluster_cidrs
        .iter()
        .filter(|net| net.is_ipv6() == ipv6)
        .collect();
    let multicast = if ipv6 { "ff00::/8" } else { "224.0.0.0/4" };
    let mut nat = vec![format!(
        "-m mark --mark {PROXY_MARK:#x}/{PROXY_MARK:#x} -j RETURN"
    )];
    for src in &cidrs {
        let within = cidrs
            .iter()
            .map(|dst| format!("-s {src} -d {dst} -j RETURN"));
        nat.extend(within);
        nat.push(format!(
            "-s {src} ! -d {multicast} -j MASQUERADE --random-fully"
        ));
    }
    // Nothing is masqueraded before it is known that it does not stay within.
    nat.sort_by_key(|rule| rule.contains("MASQUERADE"));
    let mut forward: Vec<_> = cidrs.iter().map(|n| format!("-s {n} -j ACCEPT")).collect();
    forward.extend(cidrs.iter().map(|n| format!("-d {n} -j ACCEPT")));
    if cidrs.is_empty() {
        return Vec::new();
    }
    vec![
        Chain {
            table: "nat",
            name: POSTROUTING,
            hook: "POSTROUTING",
            comment: "seaway masquerade",
            only_if_closed: false,
            rules: nat,
        },
        Chain {
            table: "filter",
            name: FORWARD,
            hook: "FORWARD",
            comment: "seaway pods",
            only_if_closed: true,
            rules: forward,
        },
    ]
}

/// What `iptables-save` shows of one chain of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// The chain exists.
    pub exists: bool,
    /// The hook's policy is ACCEPT, or the table is not there (which lets pass everything).
    pub open: bool,
    /// The lines that call it, from `-A` on.
    pub calls: Vec<String>,
    /// Its lines, from `-A` on.
    pub rules: Vec<String>,
}

impl Saved {
    /// Finds `chain` in the text of its table.
    pub fn of(chain: &Chain, text: &str) -> Self {
        let mut saved = Self {
            open: true,
            ..Self::default()
        };
        let call = format!(" -j {}", chain.name);
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("-A"), Some(name)) if name == chain.name => saved.rules.push(line.to_owned()),
                (Some("-A"), Some(_)) if line.ends_with(&call) => saved.calls.push(line.to_owned()),
                (Some(first), policy) => match first.strip_prefix(':') {
                    Some(name) if name == chain.name => saved.exists = true,
                    Some(name) if name == chain.hook => saved.open = policy == Some("ACCEPT"),
                    _ => {}
                },
                (None, _) => {}
            }
        }
        saved
    }

    /// Whether anything of ours is there.
    pub fn is_there(&self) -> bool {
        self.exists || !self.calls.is_empty()
    }
}

/// The text that puts `chain` in order; none when it is. `good` are its lines as they were printed
/// when it last was.
pub fn text(chain: &Chain, saved: &Saved, good: Option<&[String]>) -> Option<String> {
    if chain.only_if_closed && saved.open {
        return None;
    }
    let rules_good = saved.exists && good == Some(saved.rules.as_slice());
    if rules_good && saved.calls.len() == 1 {
        return None;
    }
    let Chain {
        table, name, hook, ..
    } = chain;
    let mut out = format!("*{table}\n:{name} - [0:0]\n");
    for rule in &chain.rules {
        out.push_str(&format!("-A {name} {rule}\n"));
    }
    if saved.calls.is_empty() {
        let comment = chain.comment;
        out.push_str(&format!(
            "-A {hook} -m comment --comment \"{comment}\" -j {name}\n"
        ));
    }
    for extra in saved.calls.iter().skip(1) {
        out.push_str(&removal(extra));
    }
    out.push_str("COMMIT\n");
    Some(out)
}

/// The text that removes `chain`; none when it is not there.
pub fn text_to_remove(chain: &Chain, saved: &Saved) -> Option<String> {
    if !saved.is_there() {
        return None;
    }
    let Chain { table, name, .. } = chain;
    let mut out = format!("*{table}\n:{name} - [0:0]\n");
    for call in &saved.calls {
        out.push_str(&removal(call));
    }
    out.push_str(&format!("-X {name}\nCOMMIT\n"));
    Some(out)
}

fn removal(line: &str) -> String {
    format!("-D{}\n", line.strip_prefix("-A").unwrap_or(line))
}

/// The chains of both families, and the programs that keep them.
#[derive(Debug)]
pub struct Chains {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    iptables: Iptables,
    chains: Vec<Chain>,
    /// Each chain's lines, as printed when they were last written.
    good: BTreeMap<&'static str, Vec<String>>,
}

impl Chains {
    /// Finds the programs for the families of `cluster_cidrs`.
    ///
    /// # Errors
    /// They are not installed.
    pub fn new(cluster_cidrs: &[IpNetwork]) -> Result<Self> {
        let mut parts = Vec::new();
        for family in [Family::V4, Family::V6] {
            let chains = chains(family, cluster_cidrs);
            if !chains.is_empty() {
                parts.push(Part {
                    iptables: Iptables::detect(family)?,
                    chains,
                    good: BTreeMap::new(),
                });
            }
        }
        Ok(Self { parts })
    }

    /// Looks at the chains of these names and puts them in order; tells how many were not.
    ///
    /// # Errors
    /// The programs' words.
    pub fn ensure(&mut self, names: &[&str]) -> Result<usize> {
        let mut mended = 0;
        for part in &mut self.parts {
            for chain in part.chains.iter().filter(|c| names.contains(&c.name)) {
                let saved = Saved::of(chain, &part.iptables.save(Some(chain.table))?);
                let good = part.good.get(chain.name).map(Vec::as_slice);
                if let Some(text) = text(chain, &saved, good) {
                    part.iptables.restore(&text)?;
                    let saved = Saved::of(chain, &part.iptables.save(Some(chain.table))?);
                    part.good.insert(chain.name, saved.rules);
                    mended += 1;
                }
            }
        }
        Ok(mended)
    }

    /// Removes the chains of these names; tells how many there were.
    ///
    /// # Errors
    /// The programs' words.
    pub fn remove(&self, names: &[&str]) -> Result<usize> {
        let mut removed = 0;
        for part in &self.parts {
            for chain in part.chains.iter().filter(|c| names.contains(&c.name)) {
                let saved = Saved::of(chain, &part.iptables.save(Some(chain.table))?);
                if let Some(text) = text_to_remove(chain, &saved) {
                    part.iptables.restore(&text)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}
