//! The iptables form, for kernels without nf_tables and for who asks for it: chains of ours, with a
//! few rules a pod, each with its owner as the comment. Pure: what `iptables-save` printed goes in,
//! what `iptables-restore` reads comes out.

use std::net::IpAddr;

use linux::iptables::Family;

use super::{Entries, Forward, Masquerade, Tag, Whose};

/// Translates host ports.
const HOSTPORTS: &str = "SEAWAY-HOSTPORTS";
/// Masquerades those who use host ports.
const HOSTPORTS_MASQ: &str = "SEAWAY-HP-MASQ";
/// Masquerades what leaves pods.
const MASQ: &str = "SEAWAY-IP-MASQ";

/// Our chains with the calls to them.
const CHAINS: [(&str, &[&str]); 3] = [
    (
        HOSTPORTS,
        &[
            "PREROUTING -m addrtype --dst-type LOCAL",
            "OUTPUT -m addrtype --dst-type LOCAL",
        ],
    ),
    (HOSTPORTS_MASQ, &["POSTROUTING"]),
    (MASQ, &["POSTROUTING"]),
];

/// What `iptables-save -t nat` shows of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    chains: Vec<String>,
    /// Whose, and the line from `-A` on.
    lines: Vec<(Tag, String)>,
}

impl Rules {
    /// Reads the text.
    pub fn parse(text: &str) -> Self {
        let mut rules = Self::default();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix(':').and_then(|l| l.split(' ').next()) {
                if CHAINS.iter().any(|(chain, _)| *chain == name) {
                    rules.chains.push(name.to_owned());
                }
            } else if line.starts_with("-A SEAWAY-")
                && let Some(tag) = comment_of(line).and_then(Tag::parse)
            {
                rules.lines.push((tag, line.to_owned()));
            }
        }
        rules
    }

    /// The text that removes these entries; none when there are none.
    pub fn text_to_remove(&self, whose: &Whose) -> Option<String> {
        let meant = self.lines.iter().filter(|(tag, _)| whose.holds(tag));
        let lines: String = meant.map(|(_, line)| removal(line)).collect();
        (!lines.is_empty()).then(|| format!("*nat\n{lines}COMMIT\n"))
    }

    /// The text that makes `entries` of one family in place of what their owner has; none when
    /// there are none.
    pub fn text_to_put(&self, entries: &Entries, family: Family) -> Option<String> {
        let wanted = lines(entries, family);
        if wanted.is_empty() {
            return None;
        }
        let mut text = "*nat\n".to_owned();
        for (chain, calls) in CHAINS {
            if self.chains.iter().any(|there| there == chain) {
                continue;
            }
            text.push_str(&format!(":{chain} - [0:0]\n"));
            for call in calls {
                let comment = "-m comment --comment \"pods of seaway-cni\"";
                // In front: a host port of a pod is the pod's whatever else stands there.
                text.push_str(&format!("-I {call} {comment} -j {chain}\n"));
            }
        }
        let own = Whose::One(entries.tag.clone());
        for (_, line) in self.lines.iter().filter(|(tag, _)| own.holds(tag)) {
            text.push_str(&removal(line));
        }
        for line in wanted {
            text.push_str(&format!("-A {line}\n"));
        }
        text.push_str("COMMIT\n");
        Some(text)
    }

    /// How many rules the owner has, and how many it should have.
    pub fn count(&self, entries: &Entries, family: Family) -> (usize, usize) {
        let own = Whose::One(entries.tag.clone());
        let there = self.lines.iter().filter(|(tag, _)| own.holds(tag)).count();
        (there, lines(entries, family).len())
    }
}

fn removal(line: &str) -> String {
    format!("-D{}\n", line.strip_prefix("-A").unwrap_or(line))
}

/// The comment of a saved rule.
fn comment_of(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("--comment \"")?;
    rest.split('"').next()
}

/// The rules of one family, each from its chain's name on.
fn lines(entries: &Entries, family: Family) -> Vec<String> {
    let v6 = family == Family::V6;
    let tag = format!("-m comment --comment \"{}\"", entries.tag);
    let options = &entries.options;
    let more = options.conditions[usize::from(v6)].join(" ");
    let of_family = |f: &&Forward| f.to.is_ipv6() == v6;
    let forwards: Vec<&Forward> = entries.forwards.iter().filter(of_family).collect();
    let mut all = Vec::new();
    for forward in &forwards {
        let (protocol, port) = (forward.protocol.name(), forward.host_port);
        let at = forward
            .host_ip
            .map(|ip| format!(" -d {ip}"))
            .unwrap_or_default();
        let matches = format!("{HOSTPORTS} -p {protocol}{at} --dport {port} {more}");
        let matches = matches.trim_end();
        if let Some(chain) = &options.mark_chain {
            let mark = |source: &str| format!("{matches}{source} {tag} -j {chain}");
            if options.masq_all {
                all.push(mark(""));
            } else if options.snat {
                all.push(mark(&format!(" -s {}", forward.to)));
                all.extend((!v6).then(|| mark(" -s 127.0.0.0/8")));
            }
        }
        let to = std::net::SocketAddr::new(forward.to, forward.to_port);
        all.push(format!("{matches} {tag} -j DNAT --to-destination {to}"));
    }
    if options.mark_chain.is_none() {
        all.extend(masquerades_of_forwards(entries, &forwards, &tag));
    }
    let leaving = entries.masquerades.iter().filter(|m| m.pod.is_ipv6() == v6);
    for Masquerade { pod, network, .. } in leaving {
        let multicast = if v6 { "ff00::/8" } else { "224.0.0.0/4" };
        let stays = [
            format!("{}/{}", network.network(), network.prefix()),
            multicast.to_owned(),
        ];
        all.extend(
            stays
                .iter()
                .map(|dst| format!("{MASQ} -s {pod} -d {dst} {tag} -j RETURN")),
        );
        all.push(format!(
            "{MASQ} -s {pod} {tag} -j MASQUERADE --random-fully"
        ));
    }
    all
}

fn masquerades_of_forwards(entries: &Entries, forwards: &[&Forward], tag: &str) -> Vec<String> {
    let masquerade =
        |matches: String| format!("{HOSTPORTS_MASQ} {matches} {tag} -j MASQUERADE --random-fully");
    let mut all = Vec::new();
    if entries.options.masq_all {
        for Forward {
            protocol,
            to,
            to_port,
            ..
        } in forwards
        {
            let target = format!("-d {to} -p {} --dport {to_port}", protocol.name());
            all.push(masquerade(format!("{target} -m conntrack --ctstate DNAT")));
        }
    } else if entries.options.snat {
        let mut pods: Vec<IpAddr> = forwards.iter().map(|f| f.to).collect();
        pods.dedup();
        for pod in pods {
            all.push(masquerade(format!("-s {pod} -d {pod}")));
            all.extend(
                pod.is_ipv4()
                    .then(|| masquerade(format!("-s 127.0.0.0/8 -d {pod}"))),
            );
        }
    }
    all
}
