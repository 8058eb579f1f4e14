//! Names of what is in the table.

use std::sync::Arc;

use api::cidr::Family;
use sha2::{Digest, Sha256};

use crate::parse::{Direction, Key, PodSet, Protocol};
use crate::ranges::Range;

/// The table.
pub const TABLE: &str = "seaway-policy";

/// Entered by packets that pass through.
pub const FORWARD: &str = "forward";
/// Entered by packets that this node sends: its own, and those that IPVS sends on.
pub const OUTPUT: &str = "output";

/// Entered by frames that come to a bridge.
pub const PREROUTING: &str = "prerouting";

/// The longest name of a chain that stays well readable; the kernel's limit is 255 bytes.
const NAME_MAX: usize = 120;

/// `4` or `6`.
pub fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// What stands once for each family.
pub fn of(word: &str, family: Family) -> String {
    format!("{word}{}", digit(family))
}

/// What stands once for each direction and family: `ingress-pods4`.
pub fn of_direction(direction: Direction, word: &str, family: Family) -> String {
    format!("{direction}-{word}{}", digit(family))
}

/// The first hexadecimal digits of a text's SHA-256.
pub fn digest(text: &str, digits: usize) -> String {
    let hash = Sha256::digest(text.as_bytes());
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.get(..digits).unwrap_or(&hex).to_owned()
}

/// The chain of a group: pods with the same policies.
pub fn group_chain(direction: Direction, family: Family, group: &[Key]) -> String {
    let names: Vec<String> = group.iter().map(Key::to_string).collect();
    format!(
        "{direction}{}-{}",
        digit(family),
        digest(&names.join(" "), 16)
    )
}

/// The chain of a policy. Its namespace and name can be read, and the digest tells long ones apart.
pub fn policy_chain(direction: Direction, family: Family, key: &Key) -> String {
    let text = key.to_string();
    let digest = digest(&text, 8);
    let mut name = format!("{direction}{}-{digest}-{text}", digit(family));
    name.truncate(NAME_MAX);
    name
}

/// The addresses of pods.
pub fn pods(set: &PodSet, family: Family) -> Arc<str> {
    format!("pods{}-{}", digit(family), digest(set.identity(), 16)).into()
}

/// Addresses and ports that have a name.
pub fn named(protocol: Protocol, name: &str, family: Family) -> Arc<str> {
    let what = digest(&format!("{protocol} {name}"), 16);
    format!("named{}-{what}", digit(family)).into()
}

/// Addresses of `ipBlock`.
pub fn nets(ranges: &[Range], family: Family) -> Arc<str> {
    format!(
        "nets{}-{}",
        digit(family),
        digest(&format!("{ranges:?}"), 16)
    )
    .into()
}

/// Ports.
pub fn ports(ranges: &[Range]) -> Arc<str> {
    format!("ports-{}", digest(&format!("{ranges:?}"), 16)).into()
}
