//! Capabilities by name.

use super::Host;
use crate::error::{Error, Result};
use crate::types::Security;

/// Names by number (`include/uapi/linux/capability.h`), without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability there is a name for.
pub(super) const ALL_KNOWN: u64 = (1 << NAMES.len()) - 1;

/// What containers have by default, as with containerd and Docker.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The set of a container, as OCI names in the order of their numbers. What the machine cannot give
/// is left out, since asking for it would fail.
pub(super) fn effective(security: &Security, host: &Host) -> Result<Vec<String>> {
    let mut set = 0;
    if security.privileged {
        set = ALL_KNOWN;
    } else {
        for name in DEFAULT {
            set |= bits("security", name)?;
        }
        // As in Docker: what is dropped by ALL can be given back by name, and the reverse.
        let all = |names: &[String]| names.iter().any(|n| n.eq_ignore_ascii_case("ALL"));
        if all(&security.add_caps) {
            set = ALL_KNOWN;
        }
        if all(&security.drop_caps) {
            set = 0;
        }
        for name in security
            .add_caps
            .iter()
            .filter(|n| !n.eq_ignore_ascii_case("ALL"))
        {
            set |= bits("security.add_caps", name)?;
        }
        for name in security
            .drop_caps
            .iter()
            .filter(|n| !n.eq_ignore_ascii_case("ALL"))
        {
            set &= !bits("security.drop_caps", name)?;
        }
    }
    set &= host.caps;
    let named = NAMES
        .iter()
        .enumerate()
        .filter(|(number, _)| set & (1 << number) != 0);
    Ok(named.map(|(_, name)| format!("CAP_{name}")).collect())
}

fn bits(field: &str, name: &str) -> Result<u64> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match NAMES.iter().position(|known| *known == bare) {
        Some(number) => Ok(1 << number),
        None => Err(Error::invalid(
            field,
            format!("there is no capability {name:?}"),
        )),
    }
}
