//! What is told of the paths to other nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Verdict;

/// What is known of each path, by node and address.
#[derive(Debug, Default)]
pub(super) struct Paths {
    all: BTreeMap<(String, IpAddr), Verdict>,
}

impl Paths {
    /// Notes what a path carries; none: it is none any more.
    pub(super) fn set(&mut self, node: &str, to: IpAddr, verdict: Option<Verdict>) {
        let key = (node.to_owned(), to);
        match verdict {
            Some(verdict) => self.all.insert(key, verdict),
            None => self.all.remove(&key),
        };
    }

    /// Prometheus' text. Only narrow paths are named, so that there is nothing for each node.
    pub(super) fn metrics(&self) -> String {
        let name = "seaway_overlay_paths";
        let mut text = format!(
            "# HELP {name} Paths to other nodes by what they carry.\n# TYPE {name} gauge\n"
        );
        let mut counts = BTreeMap::from([("narrow", 0), ("silent", 0), ("whole", 0)]);
        for verdict in self.all.values() {
            *counts.entry(word(*verdict)).or_insert(0) += 1;
        }
        for (carries, count) in counts {
            text += &format!("{name}{{carries=\"{carries}\"}} {count}\n");
        }
        let name = "seaway_overlay_path_mtu_bytes";
        let mut named = false;
        for ((node, to), verdict) in &self.all {
            let Verdict::Narrow(mtu) = verdict else {
                continue;
            };
            if !std::mem::replace(&mut named, true) {
                let help = "Largest packet to a node where that is less than the link's";
                text += &format!("# HELP {name} {help}.\n# TYPE {name} gauge\n");
            }
            text += &format!("{name}{{node=\"{node}\",address=\"{to}\"}} {mtu}\n");
        }
        text
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Whole => "whole",
        Verdict::Narrow(_) => "narrow",
        Verdict::Silent => "silent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_narrow_paths_are_named() {
        let mut paths = Paths::default();
        let to = |last: u8| IpAddr::from([172, 31, 250, last]);
        paths.set("n2", to(12), Some(Verdict::Narrow(1400)));
        paths.set("n3", to(13), Some(Verdict::Whole));
        paths.set("n4", to(14), Some(Verdict::Silent));
        paths.set("n5", to(15), Some(Verdict::Narrow(1300)));
        paths.set("n5", to(15), None);
        let text = paths.metrics();
        for line in [
            "seaway_overlay_paths{carries=\"narrow\"} 1",
            "seaway_overlay_paths{carries=\"silent\"} 1",
            "seaway_overlay_paths{carries=\"whole\"} 1",
            "seaway_overlay_path_mtu_bytes{node=\"n2\",address=\"172.31.250.12\"} 1400",
        ] {
            assert!(text.lines().any(|is| is == line), "{line}: {text}");
        }
        assert!(!text.contains("n3") && !text.contains("n5"), "{text}");
        paths.set("n2", to(12), Some(Verdict::Whole));
        assert!(!paths.metrics().contains("path_mtu_bytes"));
    }
}
