//! Rules as `iptables-restore` reads them.

use std::fmt::{self, Display, Formatter, Write as _};

use super::diff::Change;
use super::rule::{ChainName, ChainRef, Hook, Match, Rule, Table, Target};

/// The kernel's limit of a comment (`XT_MAX_COMMENT_LEN`), less the final zero.
const COMMENT_MAX: usize = 255;

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let inverted = |not: &bool| if *not { "! " } else { "" };
        match self {
            Self::Source { net, not } => write!(f, "{}-s {net}", inverted(not)),
            Self::Destination { net, not } => write!(f, "{}-d {net}", inverted(not)),
            Self::Protocol(protocol) => write!(f, "-p {protocol}"),
            Self::Ports(protocol, low, high) => {
                write!(f, "-p {protocol} -m {protocol} --dport {low}")?;
                if high > low {
                    write!(f, ":{high}")?;
                }
                Ok(())
            }
            Self::SourceIsLocal => f.write_str("-m addrtype --src-type LOCAL"),
            Self::DestinationIsLocal => f.write_str("-m addrtype --dst-type LOCAL"),
            Self::Marked { bit, not } => {
                write!(f, "-m mark {}--mark {bit:#x}/{bit:#x}", inverted(not))
            }
            Self::StateNew => f.write_str("-m conntrack --ctstate NEW"),
            Self::StateInvalid => f.write_str("-m conntrack --ctstate INVALID"),
            Self::StateEstablished => f.write_str("-m conntrack --ctstate RELATED,ESTABLISHED"),
            Self::StateForeign => f.write_str("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"),
            Self::FirstDestination(net) => write!(f, "-m conntrack --ctorigdst {net}"),
            Self::Counted(counter) => write!(f, "-m nfacct --nfacct-name {counter}"),
            Self::OneOf(n) => {
                let probability = 1.0 / f64::from((*n).max(1));
                write!(
                    f,
                    "-m statistic --mode random --probability {probability:.10}"
                )
            }
            Self::Seen { list, seconds } => {
                write!(
                    f,
                    "-m recent --name {list} --rcheck --seconds {seconds} --reap"
                )
            }
            Self::Remember { list } => write!(f, "-m recent --name {list} --set"),
            Self::Arrived {
                interface,
                prefix,
                not,
            } => {
                let plus = if *prefix { "+" } else { "" };
                write!(f, "{}-i {interface}{plus}", inverted(not))
            }
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "-j {chain}"),
            Self::Return => f.write_str("-j RETURN"),
            Self::Continue => Ok(()),
            Self::Accept => f.write_str("-j ACCEPT"),
            Self::Drop => f.write_str("-j DROP"),
            Self::Reject { tcp_reset: false } => f.write_str("-j REJECT"),
            Self::Reject { tcp_reset: true } => f.write_str("-j REJECT --reject-with tcp-reset"),
            Self::SetMark(bit) => write!(f, "-j MARK --or-mark {bit:#x}"),
            Self::FlipMark(bit) => write!(f, "-j MARK --xor-mark {bit:#x}"),
            Self::Masquerade { random_fully } => {
                f.write_str("-j MASQUERADE")?;
                if *random_fully {
                    f.write_str(" --random-fully")?;
                }
                Ok(())
            }
            Self::Dnat { ip, port } => {
                let to = std::net::SocketAddr::new(*ip, *port);
                write!(f, "-j DNAT --to-destination {to}")
            }
        }
    }
}

impl Display for Rule {
    /// Without `-A` and chain.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(comment) = &self.comment {
            write!(f, "-m comment --comment \"{}\" ", Quoted(comment))?;
        }
        for each in &self.matches {
            write!(f, "{each} ")?;
        }
        write!(f, "{}", self.target)
    }
}

/// Text within quotation marks, cut to the kernel's limit. Names of objects cannot contain what
/// would end it; names in manifest files could.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut room = COMMENT_MAX;
        for letter in self.0.chars() {
            let letter = match letter {
                '"' | '\\' | '\n' | '\r' | '\0' => '?',
                letter => letter,
            };
            if letter.len_utf8() > room {
                break;
            }
            room -= letter.len_utf8();
            f.write_char(letter)?;
        }
        Ok(())
    }
}

/// The text that makes `change` real, one transaction for each table.
pub fn render(change: &Change) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let mut body = String::new();
        render_table(change, table, &mut body);
        if !body.is_empty() {
            text.push('*');
            text.push_str(table.name());
            text.push('\n');
            text.push_str(&body);
            text.push_str("COMMIT\n");
        }
    }
    text
}

fn render_table(change: &Change, table: Table, text: &mut String) {
    let written = || {
        change
            .write
            .iter()
            .filter(|(chain, _)| chain.table == table)
    };
    let deleted = || change.delete.iter().filter(|chain| chain.table == table);
    // Declaring a chain makes it, or empties it; within the transaction nobody sees it empty.
    for name in written()
        .map(|(chain, _)| &chain.name)
        .chain(deleted().map(|c| &c.name))
    {
        line(text, format_args!(":{name} - [0:0]"));
    }
    for (chain, rules) in written() {
        for rule in rules {
            line(text, format_args!("-A {} {rule}", chain.name));
        }
    }
    for hook in change.hooks.iter().filter(|hook| hook.chain.table == table) {
        line(text, format_args!("-I {} {}", hook.chain.name, hook.rule));
    }
    for unhook in change.unhook.iter().filter(|(of, _)| *of == table) {
        line(text, format_args!("{}", unhook.1));
    }
    for chain in deleted() {
        line(text, format_args!("-X {}", chain.name));
    }
}

fn line(text: &mut String, what: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _written = writeln!(text, "{what}");
}

/// Chains and hooks for people and golden files: sorted, one rule a line.
pub fn listing<'a>(
    chains: impl IntoIterator<Item = (&'a ChainRef, &'a [Rule])>,
    hooks: &[Hook],
) -> String {
    let mut text = String::new();
    let mut last: Option<Table> = None;
    for (chain, rules) in chains {
        if last != Some(chain.table) {
            last = Some(chain.table);
            line(&mut text, format_args!("*{}", chain.table.name()));
            for hook in hooks.iter().filter(|hook| hook.chain.table == chain.table) {
                line(
                    &mut text,
                    format_args!("-I {} {}", hook.chain.name, hook.rule),
                );
            }
        }
        line(&mut text, format_args!(":{}", chain.name));
        for rule in rules {
            line(&mut text, format_args!("-A {} {rule}", chain.name));
        }
    }
    text
}

/// `-D` of a rule as `iptables-save` printed it.
pub fn unhook(saved: &str) -> Option<String> {
    saved.strip_prefix("-A ").map(|rest| format!("-D {rest}"))
}

/// The line that a hook into `target` ends with in what `iptables-save` prints.
pub fn hook_suffix(target: &ChainName) -> String {
    format!("-j {target}")
}
