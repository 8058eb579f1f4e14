//! One network namespace of the lab, with a thread that lives in it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use ipnetwork::IpNetwork;
use linux::addr::Addr;
use linux::link::{LinkChange, NewVeth};
use linux::mac::Mac;
use linux::neigh::Neigh;
use linux::route::Route;
use linux::{Host, Kernel, NetNs};

type Job = Box<dyn FnOnce() + Send>;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A namespace.
pub(crate) struct Site {
    /// Its door.
    pub(crate) kernel: Kernel,
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
}

impl Site {
    /// Makes one.
    pub(crate) fn new(name: &str) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = format!("/run/seaway-test/{}-t{number}-{name}", std::process::id());
        let path = PathBuf::from(path);
        let netns = NetNs::create(&path).unwrap();
        let mut kernel = Kernel::open_in(NetNs::open(&path).unwrap()).unwrap();
        kernel.set_link("lo", &LinkChange::up()).unwrap();
        for (key, value) in [
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            // Refusals are what is counted here.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
            // Link-local addresses take seconds to come up, and all others are given.
            ("net/ipv6/conf/default/addr_gen_mode", "1"),
        ] {
            kernel.set_sysctl(key, value).unwrap();
        }
        // A limit of each namespace since Linux 6.13, of the machine before.
        drop(kernel.set_sysctl("net/ipv4/icmp_msgs_per_sec", "1000000"));
        drop(kernel.set_sysctl("net/ipv4/icmp_msgs_burst", "1000000"));
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            netns.enter_for_good().unwrap();
            for job in inbox {
                job();
            }
        });
        Self { kernel, path, jobs }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in there, on its thread.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answers) = mpsc::channel();
        let job = move || drop(answer.send(work()));
        self.jobs.send(Box::new(job)).unwrap();
        answers.recv().unwrap()
    }

    /// Sets a link up, with host addresses.
    pub(crate) fn up(&mut self, link: &str, ips: &[IpAddr]) {
        self.kernel.set_link(link, &LinkChange::up()).unwrap();
        self.add_ips(link, ips);
    }

    /// Adds host addresses.
    pub(crate) fn add_ips(&mut self, link: &str, ips: &[IpAddr]) {
        for ip in ips {
            let added = self
                .kernel
                .ensure_addr(link, &Addr::new(IpNetwork::from(*ip)));
            added.unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
        }
    }

    /// Takes host addresses away.
    pub(crate) fn del_ips(&mut self, link: &str, ips: &[IpAddr]) {
        for ip in ips {
            self.kernel
                .ensure_no_addr(link, IpNetwork::from(*ip))
                .unwrap();
        }
    }

    /// A link's hardware address.
    pub(crate) fn mac(&mut self, link: &str) -> Mac {
        self.kernel.link(link).unwrap().unwrap().mac.unwrap()
    }

    /// A route to hosts that are on a link, and their hardware address, so that none is asked for.
    pub(crate) fn on_link(&mut self, link: &str, ips: &[IpAddr], mac: Mac) {
        for ip in ips {
            let route = Route::to(IpNetwork::from(*ip)).dev(link);
            self.kernel.replace_route(&route).unwrap();
            let neigh = Neigh::permanent(*ip, mac);
            self.kernel.replace_neigh(link, &neigh).unwrap();
        }
    }

    /// A route through a gateway.
    pub(crate) fn via(&mut self, net: IpNetwork, gateway: IpAddr, link: &str) {
        let route = Route::to(net).via(gateway).dev(link).onlink();
        self.kernel.replace_route(&route).unwrap();
    }

    /// Default routes through gateways on a link.
    pub(crate) fn default_via(&mut self, link: &str, gateways: &[IpAddr], mac: Mac) {
        self.on_link(link, gateways, mac);
        for gateway in gateways {
            let all = if gateway.is_ipv4() {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            self.via(all.parse().unwrap(), *gateway, link);
        }
    }

    /// A cable to another namespace, whose end is `eth0`.
    pub(crate) fn cable(&mut self, name: &str, master: Option<&str>, peer: &Self) {
        let veth = NewVeth {
            name: name.into(),
            master: master.map(Into::into),
            peer_name: "eth0".into(),
            peer_netns: Some(peer.kernel.netns()),
            ..NewVeth::default()
        };
        self.kernel.add_veth(&veth).unwrap();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(NetNs::remove(&self.path));
    }
}
