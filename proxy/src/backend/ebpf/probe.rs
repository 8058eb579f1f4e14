//! What the mode needs of the machine, found out by trial (`bpf(2)` loads and makes small things, and
//! keeps none), never by the kernel's version. [`probe`] asks, [`Support::of`] judges, pure.

use std::fmt;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use linux::NetNs;
use linux::netlink::Netlink;
use nix::errno::Errno;

use super::{Attach, Place, links, node};

/// Helpers, with their names.
type Helpers = &'static [(BpfHelper, &'static str)];

/// Types of programs, with the helpers that the programs call.
const PROGRAMS: [(ProgramType, &str, Helpers); 2] = [
    (
        ProgramType::CgroupSockAddr,
        "cgroup_sock_addr",
        &[
            (BpfHelper::BPF_FUNC_map_lookup_elem, "map_lookup_elem"),
            (BpfHelper::BPF_FUNC_map_update_elem, "map_update_elem"),
            (BpfHelper::BPF_FUNC_ktime_get_ns, "ktime_get_ns"),
            (BpfHelper::BPF_FUNC_get_prandom_u32, "get_prandom_u32"),
            (BpfHelper::BPF_FUNC_get_socket_cookie, "get_socket_cookie"),
            (BpfHelper::BPF_FUNC_get_netns_cookie, "get_netns_cookie"),
            (BpfHelper::BPF_FUNC_set_retval, "set_retval"),
        ],
    ),
    (
        ProgramType::SchedClassifier,
        "sched_cls",
        &[
            (BpfHelper::BPF_FUNC_map_lookup_elem, "map_lookup_elem"),
            (BpfHelper::BPF_FUNC_map_update_elem, "map_update_elem"),
            (BpfHelper::BPF_FUNC_ktime_get_ns, "ktime_get_ns"),
            (BpfHelper::BPF_FUNC_get_prandom_u32, "get_prandom_u32"),
            (BpfHelper::BPF_FUNC_skb_load_bytes, "skb_load_bytes"),
            (BpfHelper::BPF_FUNC_skb_store_bytes, "skb_store_bytes"),
            (BpfHelper::BPF_FUNC_l3_csum_replace, "l3_csum_replace"),
            (BpfHelper::BPF_FUNC_l4_csum_replace, "l4_csum_replace"),
            (BpfHelper::BPF_FUNC_csum_diff, "csum_diff"),
            (BpfHelper::BPF_FUNC_csum_update, "csum_update"),
        ],
    ),
];

/// Types of maps.
const MAPS: [(MapType, &str); 6] = [
    (MapType::Array, "array"),
    (MapType::PerCpuArray, "percpu_array"),
    (MapType::Hash, "hash"),
    (MapType::LruHash, "lru_hash"),
    (MapType::LruPerCpuHash, "lru_percpu_hash"),
    (MapType::LpmTrie, "lpm_trie"),
];

/// Something that the mode needs, or that without it does less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// A type of maps.
    Map(&'static str),
    /// A type of programs.
    Program(&'static str),
    /// A helper for a type of programs.
    Helper(&'static str, &'static str),
    /// A control group of version 2 to attach to.
    ControlGroup,
    /// A file system to pin to.
    BpfFs,
    /// A way to attach to interfaces.
    Interfaces(Option<Attach>),
    /// Cookies of network namespaces, by which pods are told from the node.
    NetnsCookie,
    /// The kernel's own description (BTF). Only pods' addresses at sockets need it.
    Btf,
}

impl Need {
    /// Without it the mode serves all the same, but for what the log then says.
    fn is_optional(&self) -> bool {
        *self == Self::Btf
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(name) => write!(f, "maps of type {name}"),
            Self::Program(name) => write!(f, "programs of type {name}"),
            Self::Helper(name, program) => write!(f, "helper bpf_{name} for {program}"),
            Self::ControlGroup => write!(f, "cgroup v2"),
            Self::BpfFs => write!(f, "file system bpf"),
            Self::Interfaces(None) => write!(f, "TCX (Linux 6.6) or clsact"),
            Self::Interfaces(Some(Attach::Tcx)) => write!(f, "TCX (Linux 6.6)"),
            Self::Interfaces(Some(Attach::Clsact)) => write!(f, "clsact"),
            Self::NetnsCookie => write!(f, "cookies of network namespaces (Linux 5.14)"),
            Self::Btf => write!(
                f,
                "BTF (/sys/kernel/btf/vmlinux): pods cannot be told by address at their sockets"
            ),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is there.
    There,
    /// It is not, and perhaps more about that.
    Missing(String),
    /// This process may not ask.
    Forbidden,
}

/// Whether the mode works on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Support {
    /// All that is missing, for people.
    pub missing: Vec<String>,
    /// What it does without.
    pub limits: Vec<String>,
}

impl Support {
    /// Judges what was found. A helper says nothing where its type of programs is missing, and what a
    /// process may not ask is one thing missing, the right to.
    pub fn of(found: &[(Need, Found)]) -> Self {
        let mut support = Self::default();
        if found.iter().any(|(_, found)| *found == Found::Forbidden) {
            let right = "the right to load programs (CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN)";
            support.missing.push(right.to_owned());
        }
        let is_there = |program| {
            let need = Need::Program(program);
            let mut of_program = found.iter().filter(|(n, _)| *n == need);
            of_program.all(|(_, found)| *found == Found::There)
        };
        for (need, found) in found {
            let Found::Missing(why) = found else { continue };
            if matches!(need, Need::Helper(_, program) if !is_there(program)) {
                continue;
            }
            let text = if why.is_empty() {
                need.to_string()
            } else {
                format!("{need} ({why})")
            };
            if need.is_optional() {
                support.limits.push(text);
            } else {
                support.missing.push(text);
            }
        }
        support
    }

    /// Why a mode that was chosen by itself is not this one.
    pub fn why_not_chosen(&self) -> String {
        if self.missing.is_empty() {
            let mut text = "works here, too, for who asks for it: --mode ebpf".to_owned();
            if !self.limits.is_empty() {
                text += &format!("; without {}", self.limits.join(", "));
            }
            return text;
        }
        format!("does not work here: {}", self.lacks())
    }

    /// All that is missing.
    pub fn lacks(&self) -> String {
        format!("missing: {}", self.missing.join("; "))
    }
}

/// Asks for everything, and leaves nothing behind.
pub fn probe(place: &Place) -> Support {
    let mut found = Vec::new();
    for (kind, name) in MAPS {
        let answer = is_map_supported(kind).map_err(|e| e.io_error);
        found.push((Need::Map(name), judge(answer)));
    }
    for (kind, program, helpers) in PROGRAMS {
        let answer = is_program_supported(kind).map_err(of_program);
        found.push((Need::Program(program), judge(answer)));
        for (helper, name) in helpers {
            let answer = is_helper_supported(kind, *helper).map_err(of_program);
            found.push((Need::Helper(name, program), judge(answer)));
        }
    }
    let group = links::cgroup(place.cgroup.as_deref());
    found.push((
        Need::ControlGroup,
        group.map_or_else(|e| Found::Missing(e.to_string()), |_| Found::There),
    ));
    found.push((Need::BpfFs, there(has_bpffs())));
    found.push((
        Need::Interfaces(place.attach),
        there(has_attach(place.attach)),
    ));
    let cookie = linux::bpf::netns_cookie();
    found.push((Need::NetnsCookie, there(cookie.is_ok())));
    found.push((Need::Btf, there(node::has_btf())));
    Support::of(&found)
}

fn of_program(error: aya::programs::ProgramError) -> std::io::Error {
    match error {
        aya::programs::ProgramError::SyscallError(error) => error.io_error,
        error => std::io::Error::other(error),
    }
}

fn judge(answer: std::io::Result<bool>) -> Found {
    match answer {
        Ok(is_there) => there(is_there),
        Err(e) if e.raw_os_error() == Some(Errno::EPERM as i32) => Found::Forbidden,
        Err(e) => Found::Missing(e.to_string()),
    }
}

fn there(is_there: bool) -> Found {
    if is_there {
        Found::There
    } else {
        Found::Missing(String::new())
    }
}

fn has_bpffs() -> bool {
    let kinds = std::fs::read_to_string(Path::new("/proc/filesystems")).unwrap_or_default();
    kinds
        .lines()
        .any(|line| line.split_whitespace().last() == Some("bpf"))
}

/// Whether programs can be attached to interfaces. For `clsact` a network namespace is made, and the
/// discipline in it.
fn has_attach(asked: Option<Attach>) -> bool {
    let clsact = || {
        let add = || linux::tc_bpf::ensure_clsact(&mut Netlink::open()?, "lo", 1);
        NetNs::anonymous()
            .and_then(|netns| netns.run(add))
            .is_ok_and(|added| added.is_ok())
    };
    match asked {
        Some(Attach::Tcx) => linux::bpf::has_tcx(),
        Some(Attach::Clsact) => clsact(),
        None => linux::bpf::has_tcx() || clsact(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::object::OBJECT;
    use super::*;

    #[test]
    fn everything_that_is_missing_is_told() {
        let missing = || Found::Missing(String::new());
        let program = || Need::Program("sched_cls");
        let helper = || Need::Helper("csum_diff", "sched_cls");
        type Row<'a> = (&'a [(Need, Found)], &'a [&'a str], &'a [&'a str]);
        let all: &[Row<'_>] = &[
            (
                &[(program(), Found::There), (helper(), Found::There)],
                &[],
                &[],
            ),
            (
                &[
                    (Need::Map("lpm_trie"), missing()),
                    (program(), Found::There),
                    (helper(), missing()),
                    (Need::ControlGroup, Found::Missing("not mounted".to_owned())),
                    (Need::Interfaces(None), missing()),
                ],
                &[
                    "maps of type lpm_trie",
                    "helper bpf_csum_diff for sched_cls",
                    "cgroup v2 (not mounted)",
                    "TCX (Linux 6.6) or clsact",
                ],
                &[],
            ),
            // Its helpers say nothing then.
            (
                &[(program(), missing()), (helper(), missing())],
                &["programs of type sched_cls"],
                &[],
            ),
            // One right, however many questions; what needs none is told beside it.
            (
                &[
                    (Need::Map("hash"), Found::Forbidden),
                    (program(), Found::Forbidden),
                    (helper(), Found::Forbidden),
                    (Need::BpfFs, missing()),
                ],
                &[
                    "the right to load programs (CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN)",
                    "file system bpf",
                ],
                &[],
            ),
            (
                &[(Need::Btf, missing())],
                &[],
                &["BTF (/sys/kernel/btf/vmlinux): pods cannot be told by address at their sockets"],
            ),
        ];
        for (found, missing, limits) in all {
            let support = Support::of(found);
            assert_eq!(support.missing, *missing, "{found:?}");
            assert_eq!(support.limits, *limits, "{found:?}");
            let why = support.why_not_chosen();
            assert_eq!(why.contains("--mode ebpf"), missing.is_empty(), "{why}");
            for text in missing.iter().chain(limits.iter()) {
                assert!(why.contains(text), "{why}");
            }
        }
    }

    /// The kernel cannot be asked for what is not in the list.
    #[test]
    fn every_helper_that_the_programs_call_is_asked_for() {
        // `probe_read_kernel`: the programs do without (`reads_kernel`). XDP's: that program is tried
        // where it is asked for, and the others do without it.
        let mut known = BTreeSet::from([
            BpfHelper::BPF_FUNC_probe_read_kernel as u32,
            BpfHelper::BPF_FUNC_xdp_adjust_meta as u32,
            BpfHelper::BPF_FUNC_xdp_get_buff_len as u32,
            BpfHelper::BPF_FUNC_xdp_load_bytes as u32,
            BpfHelper::BPF_FUNC_xdp_store_bytes as u32,
        ]);
        for (_, _, helpers) in PROGRAMS {
            known.extend(helpers.iter().map(|(helper, _)| *helper as u32));
        }
        // A call of a helper: opcode 0x85, no registers, no offset (`linux/bpf.h`).
        let calls = OBJECT.chunks_exact(8).filter(|i| i[..4] == [0x85, 0, 0, 0]);
        let called: BTreeSet<u32> = calls
            .map(|i| u32::from_le_bytes([i[4], i[5], i[6], i[7]]))
            .collect();
        assert_eq!(called, known);
    }
}
