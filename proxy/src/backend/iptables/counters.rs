//! The kernel's counters with names that rules of this mode count into, where kernel and iptables have
//! them: kube-proxy's two metrics of this mode.

use std::fmt::Write as _;
use std::time::Duration;

use linux::iptables::Iptables;
use linux::nfacct::Counters;

use super::names;

/// A counter, and the metric that shows it.
struct Shown {
    counter: &'static str,
    metric: &'static str,
    help: &'static str,
}

const ALL: [Shown; 2] = [
    Shown {
        counter: names::COUNTER_INVALID,
        metric: "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
        help: "Packets dropped since conntrack could not place them",
    },
    Shown {
        counter: names::COUNTER_LOCALHOST,
        metric: "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
        help: "First packets of connections to node ports on loopback",
    },
];

/// How often and after which rest a counter is tried again that rules just taken away still hold:
/// nf_tables lets go of them a moment after its answer.
const TRIES: u32 = 20;
const REST: Duration = Duration::from_millis(5);

/// Makes the counters; false where the kernel has none, or `iptables` cannot count into them. Adds who
/// wrote, as [`Iptables::restore_as`] tells it, to `writers`.
pub fn ensure(iptables: &Iptables, writers: &mut Vec<Option<u32>>) -> bool {
    let mut make = || -> linux::Result<()> {
        let mut counters = Counters::open()?;
        for shown in &ALL {
            counters.ensure(shown.counter)?;
        }
        // Kernels have counters without the match, and the match may have no program: only a rule tells.
        let rule = format!(
            "*filter\n:{0} - [0:0]\n-A {0} -m nfacct --nfacct-name {1}\nCOMMIT\n",
            names::COUNTED,
            names::COUNTER_INVALID
        );
        let restored = iptables.restore_as(&rule);
        let gone = format!("*filter\n:{0} - [0:0]\n-X {0}\nCOMMIT\n", names::COUNTED);
        for writer in [restored?, iptables.restore_as(&gone)?] {
            writers.push(writer);
        }
        Ok(())
    };
    match make() {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!("no counters with names: {error}");
            remove();
            false
        }
    }
}

/// Takes the counters away; those that rules count into stay.
pub fn remove() {
    let Ok(mut counters) = Counters::open() else {
        return;
    };
    for shown in &ALL {
        for _ in 0..TRIES {
            match counters.ensure_no(shown.counter) {
                Ok(true) => break,
                Ok(false) => std::thread::sleep(REST),
                Err(error) => {
                    tracing::debug!("{error}");
                    break;
                }
            }
        }
    }
}

/// Text for Prometheus of those that are there.
pub fn metrics() -> String {
    let mut text = String::new();
    let Ok(mut counters) = Counters::open() else {
        return text;
    };
    for shown in &ALL {
        let Ok(Some(counter)) = counters.get(shown.counter) else {
            continue;
        };
        let (name, help, packets) = (shown.metric, shown.help, counter.packets);
        // Writing to a String cannot fail.
        let _written = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} counter\n{name} {packets}"
        );
    }
    text
}
