//! Kernel settings that the rules rely on, or that kube-proxy makes: which there should be is
//! decided here from what is there (pure), and made in [`ensure`].

use std::time::Duration;

use linux::sysctl;

use crate::backend::Mode;
use crate::config::Config;
use crate::config::file::Conntrack;
use crate::config::time::GoDuration;

/// kube-proxy's upper bound of entries that are asked for by the number of processors.
const ENTRIES_MAX: u64 = 1_048_576;

/// Entries for each bucket of the table, as the kernel itself has it.
const ENTRIES_PER_BUCKET: u64 = 4;

/// Ports that API servers give to node ports unless told otherwise.
const NODE_PORTS: (u16, u16) = (30_000, 32_767);

const MAX: &str = "net/netfilter/nf_conntrack_max";
const ESTABLISHED: &str = "net/netfilter/nf_conntrack_tcp_timeout_established";
const CLOSE_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
const UDP: &str = "net/netfilter/nf_conntrack_udp_timeout";
const UDP_STREAM: &str = "net/netfilter/nf_conntrack_udp_timeout_stream";
const PORT_RANGE: &str = "net/ipv4/ip_local_port_range";
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Needs {
    /// Node ports on 127.0.0.1.
    pub localhost: bool,
    /// Rules that packets between ports of one bridge must meet.
    pub bridged: bool,
    /// Connection tracking.
    pub conntrack: Conntrack,
    /// Processors.
    pub cores: u64,
}

impl Needs {
    /// What the flags ask for.
    pub fn of(config: &Config, localhost: bool) -> Self {
        let cores = std::thread::available_parallelism();
        Self {
            localhost,
            // Mode ebpf translates at sockets and interfaces.
            bridged: config.mode != Mode::Ebpf,
            conntrack: config.conntrack.clone(),
            cores: cores.map_or(1, |n| n.get() as u64),
        }
    }

    /// The number of entries that connection tracking should be able to hold; `None`: whatever it
    /// is.
    fn entries(&self) -> Option<u64> {
        let Conntrack {
            max_per_core, min, ..
        } = self.conntrack;
        let by_cores = u64::from(max_per_core) * self.cores;
        (max_per_core > 0).then(|| by_cores.max(min.into()).min(ENTRIES_MAX))
    }
}

/// A setting to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its file below `/proc/sys`.
    pub key: String,
    /// The value.
    pub value: String,
    /// What does not work without it.
    pub without: &'static str,
}

/// What is to be done, and what is to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Settings, in order.
    pub settings: Vec<Setting>,
    /// The number of buckets that connection tracking should have, where it has less.
    pub buckets: Option<u64>,
    /// Worth knowing.
    pub notes: Vec<String>,
    /// Worth a warning.
    pub warnings: Vec<String>,
}

/// Plans. `read` gives the value of a setting that there is, `buckets` the size of the table.
pub fn plan(needs: &Needs, read: impl Fn(&str) -> Option<String>, buckets: Option<u64>) -> Plan {
    let mut plan = Plan::default();
    let number = |key: &str| read(key)?.parse::<u64>().ok();
    plan_entries(needs, number(MAX), buckets, &mut plan);
    let mut want = |key: &str, value: &str, without| {
        if read(key).is_some_and(|is| is != value) {
            plan.settings.push(Setting {
                key: key.to_owned(),
                value: value.to_owned(),
                without,
            });
        }
    };
    let conntrack = &needs.conntrack;
    for (key, GoDuration(timeout)) in [
        (ESTABLISHED, conntrack.tcp_established_timeout),
        (CLOSE_WAIT, conntrack.tcp_close_wait_timeout),
        (UDP, conntrack.udp_timeout),
        (UDP_STREAM, conntrack.udp_stream_timeout),
    ] {
        if timeout > Duration::ZERO {
            let seconds = timeout.as_secs().max(1).to_string();
            want(key, &seconds, "tracked connections live as long as before");
        }
    }
    if conntrack.tcp_be_liberal {
        let without = "connections through asymmetric routes may hang";
        want(LIBERAL, "1", without);
    }
    if needs.localhost {
        let without = "node ports do not work on 127.0.0.1";
        want("net/ipv4/conf/all/route_localnet", "1", without);
    }
    // Replies between two pods on one bridge must pass the rules that translate them back.
    for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let key = format!("net/bridge/{key}");
        let without = "a pod may not reach services whose endpoint is on the same bridge";
        if needs.bridged && read(&key).is_none() {
            let text = format!("{key} is not there (no br_netfilter): {without}");
            plan.warnings.push(text);
        }
        want(&key, "1", without);
    }
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        if read(key).is_some_and(|value| value == "0") {
            let text = format!("{key} is 0: nothing is forwarded to endpoints on other machines");
            plan.warnings.push(text);
        }
    }
    let range = read(PORT_RANGE);
    let reserved = read(RESERVED).unwrap_or_default();
    if let Some(range) = range.as_deref().and_then(parse_range)
        && let Some(port) = unprotected(NODE_PORTS, range, &reserved)
    {
        let (low, high) = range;
        plan.warnings.push(format!(
            "{PORT_RANGE} is {low} {high}: a connection of this node may take a node port, such as {port}; set {RESERVED} to {}-{}",
            NODE_PORTS.0, NODE_PORTS.1
        ));
    }
    plan
}

fn plan_entries(needs: &Needs, is: Option<u64>, buckets: Option<u64>, plan: &mut Plan) {
    let (Some(wanted), Some(is)) = (needs.entries(), is) else {
        return;
    };
    if is < wanted {
        plan.settings.push(Setting {
            key: MAX.to_owned(),
            value: wanted.to_string(),
            without: "connections may be dropped when there are many",
        });
    } else if is > wanted {
        let text = format!("{MAX} stays {is}, which is more than the {wanted} asked for");
        plan.notes.push(text);
    }
    let needed = wanted / ENTRIES_PER_BUCKET;
    plan.buckets = buckets.filter(|is| *is < needed).map(|_| needed);
}

/// Reads two numbers.
fn parse_range(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_whitespace().map(str::parse);
    Some((words.next()?.ok()?, words.next()?.ok()?))
}

/// The first of `ports` that a connection of the node may take: within `range`, and not `reserved`
/// (numbers and ranges, separated by commas).
fn unprotected(ports: (u16, u16), range: (u16, u16), reserved: &str) -> Option<u16> {
    let reserved: Vec<(u16, u16)> = reserved
        .split(',')
        .filter_map(|part| {
            let (low, high) = part
                .trim()
                .split_once('-')
                .unwrap_or((part.trim(), part.trim()));
            Some((low.parse().ok()?, high.parse().ok()?))
        })
        .collect();
    let is_reserved = |port: u16| {
        reserved
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&port))
    };
    (ports.0.max(range.0)..=ports.1.min(range.1)).find(|port| !is_reserved(*port))
}

/// Makes the settings, in the calling thread's network namespace. Each that cannot be made is told with what will not work.
pub fn ensure(needs: &Needs) {
    let buckets = linux::conntrack::buckets().ok();
    let plan = plan(needs, |key| sysctl::read(key).ok(), buckets);
    for note in &plan.notes {
        tracing::info!("{note}");
    }
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    for Setting {
        key,
        value,
        without,
    } in &plan.settings
    {
        match sysctl::ensure(key, value) {
            Ok(true) => tracing::info!("{key} set to {value}"),
            Ok(false) => {}
            Err(error) => tracing::warn!("{error}; {without}"),
        }
    }
    if let Some(buckets) = plan.buckets {
        match linux::conntrack::set_buckets(buckets) {
            Ok(()) => tracing::info!("connection tracking has {buckets} buckets"),
            Err(error) => tracing::warn!("{error}; looking connections up may be slow"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A machine's settings: a fake `/proc/sys`.
    fn machine() -> BTreeMap<&'static str, &'static str> {
        [
            (MAX, "262144"),
            (ESTABLISHED, "432000"),
            (CLOSE_WAIT, "60"),
            (LIBERAL, "0"),
            (UDP, "30"),
            (UDP_STREAM, "120"),
            (PORT_RANGE, "32768\t60999"),
            (RESERVED, ""),
            ("net/bridge/bridge-nf-call-iptables", "1"),
            ("net/bridge/bridge-nf-call-ip6tables", "1"),
            ("net/ipv4/conf/all/route_localnet", "0"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ]
        .into()
    }

    fn needs() -> Needs {
        Needs {
            localhost: false,
            bridged: true,
            conntrack: Conntrack::default(),
            cores: 2,
        }
    }

    fn shown(plan: &Plan) -> Vec<String> {
        let settings = plan.settings.iter();
        settings
            .map(|s| format!("{}={}", s.key.rsplit('/').next().unwrap(), s.value))
            .collect()
    }

    #[track_caller]
    fn check(needs: &Needs, machine: &BTreeMap<&str, &str>, expect: &[&str]) -> Plan {
        let plan = plan(
            needs,
            |key| machine.get(key).map(|&v| v.to_owned()),
            Some(65_536),
        );
        assert_eq!(shown(&plan), expect);
        plan
    }

    const TIMES: [&str; 2] = [
        "nf_conntrack_tcp_timeout_established=86400",
        "nf_conntrack_tcp_timeout_close_wait=3600",
    ];

    /// The limit is the most of the least number and the processors' share, and never lowered.
    #[test]
    fn entries() {
        for (max_per_core, min, cores, is, expect) in [
            (32_768, 131_072, 2, "65536", Some("131072")),
            (32_768, 131_072, 8, "65536", Some("262144")),
            (32_768, 131_072, 128, "65536", Some("1048576")),
            (32_768, 131_072, 2, "131072", None),
            (32_768, 131_072, 2, "262144", None),
            (0, 131_072, 8, "1000", None),
            (1, 0, 1, "0", Some("1")),
        ] {
            let mut needs = needs();
            needs.cores = cores;
            needs.conntrack.max_per_core = max_per_core;
            needs.conntrack.min = min;
            let mut machine = machine();
            machine.insert(MAX, is);
            let set = expect.map(|value| format!("nf_conntrack_max={value}"));
            let expect: Vec<&str> = set.as_deref().into_iter().chain(TIMES).collect();
            let plan = check(&needs, &machine, &expect);
            let higher = max_per_core > 0 && is == "262144";
            assert_eq!(plan.notes.len(), usize::from(higher), "{:?}", plan.notes);
        }
    }

    #[test]
    fn buckets_are_a_quarter_of_the_entries() {
        let mut needs = needs();
        needs.cores = 16;
        let read = |key: &str| machine().get(key).map(|&v| v.to_owned());
        for (is, expect) in [
            (Some(65_536), Some(131_072)),
            (Some(131_072), None),
            (Some(262_144), None),
            (None, None),
        ] {
            assert_eq!(plan(&needs, read, is).buckets, expect);
        }
    }

    #[test]
    fn times_of_zero_leave_the_kernels() {
        let mut needs = needs();
        needs.conntrack.tcp_established_timeout = GoDuration::default();
        needs.conntrack.tcp_close_wait_timeout = GoDuration::default();
        check(&needs, &machine(), &[]);
        needs.conntrack.udp_timeout = GoDuration::seconds(10);
        needs.conntrack.udp_stream_timeout = GoDuration::seconds(120);
        check(&needs, &machine(), &["nf_conntrack_udp_timeout=10"]);
    }

    #[test]
    fn what_flags_ask_for_and_what_the_kernel_lacks() {
        let mut needs = needs();
        needs.localhost = true;
        needs.conntrack.tcp_be_liberal = true;
        let mut expect = TIMES.to_vec();
        expect.extend(["nf_conntrack_tcp_be_liberal=1", "route_localnet=1"]);
        let plan = check(&needs, &machine(), &expect);
        assert_eq!(plan.warnings, Vec::<String>::new());
        // Without connection tracking there is nothing to set, and a bridge has its own.
        let bare = [
            ("net/bridge/bridge-nf-call-iptables", "0"),
            ("net/ipv4/ip_forward", "0"),
        ];
        let plan = check(&needs, &bare.into(), &["bridge-nf-call-iptables=1"]);
        let [bridges, forwarding] = &plan.warnings[..] else {
            panic!("{:?}", plan.warnings);
        };
        let expect = "net/bridge/bridge-nf-call-ip6tables is not there (no br_netfilter): ";
        assert!(bridges.starts_with(expect), "{bridges}");
        assert!(forwarding.contains("ip_forward"), "{forwarding}");
        needs.bridged = false;
        let plan = check(&needs, &bare.into(), &["bridge-nf-call-iptables=1"]);
        assert_eq!(plan.warnings.len(), 1);
    }

    #[test]
    fn node_ports_that_connections_of_the_node_may_take() {
        for (range, reserved, expect) in [
            ((32_768, 60_999), "", None),
            ((1024, 65_535), "", Some(30_000)),
            ((31_000, 60_999), "", Some(31_000)),
            ((1024, 65_535), "30000-32767", None),
            ((1024, 65_535), "53, 30000-30999,31001-40000", Some(31_000)),
            ((1024, 29_999), "", None),
        ] {
            assert_eq!(
                unprotected(NODE_PORTS, range, reserved),
                expect,
                "{range:?} {reserved}"
            );
        }
        let mut machine = machine();
        machine.insert(PORT_RANGE, "1024\t65535");
        let plan = check(&needs(), &machine, &TIMES);
        assert!(
            plan.warnings[0].contains("such as 30000"),
            "{:?}",
            plan.warnings
        );
    }
}
