//! Every row of every case file in the lab.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use api::cidr::{Family, parse_ip};
use linux::iptables::Iptables;
use proxy::backend::Mode;
use proxy::model::Protocol;
use serde_json::json;

use super::group::{Endpoint, Job, args, endpoints_of, groups, is, marker, node};
use super::lab::{FENCE, FENCE_PORT, Lab, STRANGERS, both, mapped};
use super::probe::{Answer, Probe, has_sctp, is_tracked, scaled};
use super::serve::{Listen, Servers};
use super::settle::wait_for_what_goes;
use super::site::Site;
use crate::cases::{Row, Setting};

/// How long programming a case may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections made in a row at least for each endpoint that can be chosen, and at most.
const TRIES_MIN: usize = 6;
const TRIES_MAX: usize = 60;

/// Addresses of markers.
static MARKER: AtomicU16 = AtomicU16::new(0);

/// What a mode was asked, in all.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) rows: BTreeMap<Family, usize>,
    pub(crate) sctp: usize,
    pub(crate) labs: usize,
    /// Packets translated by XDP.
    pub(crate) before_stack: u64,
    pub(crate) failures: Vec<String>,
}

impl Count {
    fn fail(&mut self, line: String) {
        println!("{line}");
        self.failures.push(line);
    }
}

/// A way to run the proxy.
pub(crate) struct Way {
    pub(crate) mode: Mode,
    /// Flags of its own.
    pub(crate) flags: &'static [&'static str],
    /// Prepares the node and those around it.
    pub(crate) prepare: fn(&mut Lab),
}

/// Runs all files.
pub(crate) fn run(way: &Way) -> Count {
    let mut count = Count::default();
    for jobs in groups() {
        count.labs += 1;
        run_group(way, &jobs, &mut count);
    }
    count
}

fn run_group(way: &Way, jobs: &[Job], count: &mut Count) {
    let mut settings: BTreeMap<Family, Setting> = BTreeMap::new();
    for job in jobs {
        settings.extend(job.families.iter().map(|f| (f.0, f.1.clone())));
    }
    let settings: Vec<(Family, Setting)> = settings.into_iter().collect();
    let mut lab = Lab::new(&settings);
    (way.prepare)(&mut lab);
    let mut args = args(way.mode, &settings, &lab.manifests());
    args.extend(way.flags.iter().map(|flag| (*flag).to_owned()));
    if way.mode == Mode::Ebpf {
        args.extend(lab.group_sockets());
    }
    let families: Vec<Family> = settings.iter().map(|(family, _)| *family).collect();
    let fence = both(FENCE, &families)
        .into_iter()
        .map(|ip| (SocketAddr::new(ip, FENCE_PORT), Protocol::Tcp));
    let _fence = Servers::start(&lab.rem, fence);
    for (i, job) in jobs.iter().enumerate() {
        let mut runner = Runner {
            way,
            lab: &mut lab,
            families: &families,
            job,
            started: i > 0,
            args: &args,
        };
        runner.run(count);
    }
    count.before_stack += lab.translated_before_stack();
}

/// One case.
struct Runner<'a> {
    way: &'a Way,
    lab: &'a mut Lab,
    /// All of the lab.
    families: &'a [Family],
    job: &'a Job,
    started: bool,
    args: &'a [String],
}

impl Runner<'_> {
    fn run(&mut self, count: &mut Count) {
        let mut endpoints = BTreeSet::new();
        let mut rows = Vec::new();
        for (_, _, objects, own) in &self.job.families {
            endpoints.extend(objects.iter().flat_map(endpoints_of));
            rows.extend(own);
        }
        let sources: BTreeSet<IpAddr> = rows.iter().map(|row| row.source).collect();
        let remembered = rows.iter().filter_map(|row| {
            let address = row.remembers?;
            Some(Endpoint {
                ip: address.ip(),
                port: address.port(),
                protocol: row.protocol,
                local: false,
            })
        });
        endpoints.extend(remembered);
        let servers = self.place(&endpoints, &sources);
        self.program(None);
        let _others = self.listen_elsewhere(&rows);
        let mode = self.way.mode;
        for (family, setting, objects, rows) in &self.job.families {
            let sticky = objects
                .iter()
                .any(|o| o["spec"]["sessionAffinity"] == "ClientIP");
            for row in rows {
                // Mode ebpf does not translate SCTP.
                let can = || mode != Mode::Ebpf && has_sctp();
                if row.protocol == Protocol::Sctp && !can() {
                    count.sctp += 1;
                    continue;
                }
                let got = if sticky {
                    self.sticky_row(row, *family)
                } else {
                    self.row(row, setting)
                };
                *count.rows.entry(*family).or_insert(0) += 1;
                if got != row.expect(mode) {
                    count.fail(format!(
                        "{} {family}: {}: got {got:?}",
                        self.job.name, row.text
                    ));
                    let log = self.lab.log();
                    let last: Vec<&str> = log.lines().rev().take(20).collect();
                    println!("last of the log, newest first:\n{}", last.join("\n"));
                }
            }
            self.check_localnet_rule(*family, count);
        }
        drop(servers);
        self.clear(&endpoints);
    }

    /// The rule that keeps martians from node ports on loopback, where the mode has that.
    fn check_localnet_rule(&self, family: Family, count: &mut Count) {
        let Some(expect) = self.job.localnet_rule else {
            return;
        };
        if self.way.mode != Mode::Iptables {
            return;
        }
        let of = match family {
            Family::V4 => linux::iptables::Family::V4,
            Family::V6 => linux::iptables::Family::V6,
        };
        let save = move || Iptables::detect(of).unwrap().save(Some("filter")).unwrap();
        let found = self.lab.node.run(save).contains("-A KUBE-FIREWALL ");
        if found != (expect && family == Family::V4) {
            count.fail(format!(
                "{} {family}: rule against martians: {found}",
                self.job.name
            ));
        }
    }

    /// Brings the endpoints to where they belong, and serves there.
    fn place(
        &mut self,
        endpoints: &BTreeSet<Endpoint>,
        sources: &BTreeSet<IpAddr>,
    ) -> Vec<Servers> {
        let mut by_site: BTreeMap<&'static str, Vec<Listen>> = BTreeMap::new();
        for endpoint in endpoints {
            let ip = endpoint.ip;
            let pod = self.lab.pods.iter().find(|(own, _)| is(own, ip));
            let pod = pod.filter(|_| endpoint.local || sources.contains(&ip));
            let site = match pod {
                Some((own, _)) => own,
                None if endpoint.local => {
                    self.lab.loc.add_ips("lo", &[ip]);
                    self.lab.endpoint_route(ip, true);
                    "loc"
                }
                None => {
                    self.lab.rem.add_ips("lo", &[ip]);
                    self.lab.endpoint_route(ip, false);
                    "rem"
                }
            };
            let listen = (SocketAddr::new(ip, endpoint.port), endpoint.protocol);
            by_site.entry(site).or_default().push(listen);
        }
        let start = |(site, listen): (&str, Vec<Listen>)| {
            let site = match site {
                "loc" => &self.lab.loc,
                "rem" => &self.lab.rem,
                pod => self
                    .lab
                    .pods
                    .iter()
                    .find(|(own, _)| *own == pod)
                    .map(|(_, s)| s)
                    .unwrap(),
            };
            Servers::start(site, listen)
        };
        by_site.into_iter().map(start).collect()
    }

    /// Takes the endpoints' addresses away again.
    fn clear(&mut self, endpoints: &BTreeSet<Endpoint>) {
        for ip in endpoints.iter().map(|e| e.ip) {
            self.lab.loc.del_ips("lo", &[ip]);
            self.lab.rem.del_ips("lo", &[ip]);
            let pod = self.lab.pods.iter().position(|(own, _)| is(own, ip));
            if let Some(pod) = pod {
                self.lab.pod_route(ip, pod);
            }
        }
    }

    /// Whoever is reached at a row's own destination: no service was. On the node, or beyond it.
    fn listen_elsewhere(&mut self, rows: &[&Row]) -> [Servers; 2] {
        let dns: Vec<IpAddr> = self.job.families.iter().flat_map(|f| f.1.dns()).collect();
        let is_own =
            |ip: IpAddr| ip.is_loopback() || self.lab.own.contains(&ip) || dns.contains(&ip);
        let listen = |own: bool| -> BTreeSet<Listen> {
            let to = rows.iter().map(|row| (row.destination, row.protocol));
            to.filter(|(to, _)| is_own(to.ip()) == own).collect()
        };
        let (here, there) = (listen(true), listen(false));
        let ips: Vec<IpAddr> = there.iter().map(|(to, _)| to.ip()).collect();
        self.lab.void.add_ips("lo", &ips);
        [
            Servers::start(&self.lab.node, here),
            Servers::start(&self.lab.void, there),
        ]
    }

    /// Gives the proxy the case's objects (all slices with `only` this endpoint, when given), and
    /// waits until they are programmed.
    fn program(&mut self, only: Option<IpAddr>) {
        let mut items = vec![node(&self.job.families)];
        for (_, _, objects, _) in &self.job.families {
            items.extend(
                objects
                    .iter()
                    .filter(|o| o["kind"] != "Node")
                    .map(|object| {
                        let mut object = object.clone();
                        if let Some(ip) = only.filter(|_| object["kind"] == "EndpointSlice") {
                            object["endpoints"] = json!([{ "addresses": [ip] }]);
                        }
                        object
                    }),
            );
        }
        let mut vips = Vec::new();
        // No earlier marker may stand for this one.
        let [high, low] = MARKER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        for family in self.families {
            // Above all others: addresses come in their order, and after all that is behind them.
            let ip = mapped(&format!("223.255.{high}.{low}"), *family);
            vips.push(SocketAddr::new(parse_ip(&ip).unwrap(), FENCE_PORT));
            items.extend(marker(*family, &ip));
        }
        let ips: Vec<IpAddr> = vips.iter().map(SocketAddr::ip).collect();
        self.lab.void.add_ips("lo", &ips);
        self.lab.feed(&json!({ "kind": "List", "items": items }));
        if !self.started {
            self.lab.start(self.args);
            self.started = true;
        }
        for vip in &vips {
            self.wait_for(*vip);
        }
        if self.way.mode == Mode::Ipvs {
            wait_for_what_goes(&self.lab.node, &vips);
        }
    }

    fn wait_for(&self, vip: SocketAddr) {
        let deadline = Instant::now() + scaled(PATIENCE);
        let family = Family::of(vip.ip());
        let of_node = || self.lab.own.iter().find(|ip| Family::of(**ip) == family);
        // IPVS serves the node itself already before the address is there, and with it all others.
        // A connection that was on its way when it came is lost: not long is waited for that.
        let (site, source, fence) = if self.way.mode == Mode::Ipvs {
            let (ip, pod) = &self.lab.pods[0];
            (
                pod,
                parse_ip(&mapped(ip, family)).unwrap(),
                Some(fence(family)),
            )
        } else {
            (&self.lab.node, *of_node().unwrap(), None)
        };
        loop {
            let probe = Probe {
                source: SocketAddr::new(source, self.lab.ports.next()),
                to: vip,
                protocol: Protocol::Tcp,
                fence,
                asks: false,
            };
            let answer = site.run(move || probe.run());
            if matches!(answer, Answer::Reached(who, _) if who != vip) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{}: not programmed: {answer:?}\n{}",
                self.job.name,
                self.lab.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn row(&mut self, row: &Row, setting: &Setting) -> BTreeSet<String> {
        let source = row.source;
        let on_node = source.is_loopback() || setting.ips().contains(&source);
        let pod = self.lab.pods.iter().position(|(own, _)| is(own, source));
        let site = match pod {
            Some(pod) => Place::Pod(pod),
            None if is("203.0.113.2", source) => Place::Client,
            None if is("203.0.113.130", source) => Place::Blocked,
            None => Place::Node,
        };
        // A balancer's address as a source: the node has it, as with a balancer on the node.
        let lent = matches!(site, Place::Node) && !on_node;
        if lent {
            self.lab.node.add_ips("lo", &[source]);
        }
        let expect = row.expect(self.way.mode);
        let probe = self.probe(row, &expect, setting);
        // Round robin takes turns: one connection more than endpoints shows a stranger.
        let each = if self.way.mode == Mode::Ipvs {
            1
        } else {
            TRIES_MIN
        };
        let least = each * (expect.len() + 1);
        let most = TRIES_MAX * expect.len();
        // Where sockets are translated, one that is bound to loopback can reach nothing else.
        let bind = if self.way.mode == Mode::Ebpf && source.is_loopback() {
            unspecified(source)
        } else {
            source
        };
        let ports = self.lab.ports.clone();
        let asked = self.site(site).run(move || {
            let mut answers = Vec::new();
            let mut last = probe;
            let single = probe.fence.is_some();
            for n in 1..=most {
                last = Probe {
                    source: SocketAddr::new(bind, ports.next()),
                    ..probe
                };
                let answer = last.run();
                let odd = !matches!(answer, Answer::Reached(..));
                if !answers.contains(&answer) {
                    answers.push(answer);
                }
                if odd || single || (n >= least && answers.len() >= expect.len()) {
                    break;
                }
            }
            (answers, last)
        });
        let fates = self.fates(asked, row);
        if lent {
            self.lab.node.del_ips("lo", &[source]);
        }
        fates
    }

    fn probe(&self, row: &Row, expect: &BTreeSet<String>, setting: &Setting) -> Probe {
        let family = Family::of(row.source);
        Probe {
            source: SocketAddr::new(row.source, 0),
            to: row.destination,
            protocol: row.protocol,
            fence: expect.contains("DROP").then(|| fence(family)),
            asks: row.destination.port() == 53 && setting.dns().contains(&row.destination.ip()),
        }
    }

    /// A client stays with its endpoint, so each of many clients is asked a few times.
    fn sticky_row(&mut self, row: &Row, family: Family) -> BTreeSet<String> {
        let clients: Vec<IpAddr> = (1..=STRANGERS)
            .map(|i| parse_ip(&mapped(&format!("10.0.1.{i}"), family)).unwrap())
            .collect();
        self.lab.pods[0].1.add_ips("eth0", &clients);
        for ip in &clients {
            self.lab.pod_route(*ip, 0);
        }
        if let Some(endpoint) = row.remembers {
            self.program(Some(endpoint.ip()));
            for client in &clients {
                let fates = self.ask_once(row, *client);
                assert_eq!(
                    fates,
                    BTreeSet::from([format!("{}:{}", endpoint.ip(), endpoint.port())])
                );
            }
            self.program(None);
        }
        let mut all = BTreeSet::new();
        for client in &clients {
            let first = self.ask_once(row, *client);
            for _ in 0..3 {
                assert_eq!(
                    self.ask_once(row, *client),
                    first,
                    "{client} does not stay: {}",
                    row.text
                );
            }
            all.extend(first);
        }
        all
    }

    fn ask_once(&self, row: &Row, client: IpAddr) -> BTreeSet<String> {
        let probe = Probe {
            source: SocketAddr::new(client, self.lab.ports.next()),
            to: row.destination,
            protocol: row.protocol,
            fence: None,
            asks: false,
        };
        let answer = self.lab.pods[0].1.run(move || probe.run());
        self.fates((vec![answer], probe), row)
    }

    fn site(&self, place: Place) -> &Site {
        match place {
            Place::Node => &self.lab.node,
            Place::Pod(i) => &self.lab.pods[i].1,
            Place::Client => &self.lab.cli,
            Place::Blocked => &self.lab.bad,
        }
    }

    /// Answers as the tracer's words.
    fn fates(&self, (answers, last): (Vec<Answer>, Probe), row: &Row) -> BTreeSet<String> {
        let fate = |answer: &Answer| match answer {
            Answer::Reached(who, _) if *who == row.destination => "NONE".to_owned(),
            Answer::Reached(who, peer) if *peer == last.source.ip() => {
                format!("{}:{}", who.ip(), who.port())
            }
            Answer::Reached(who, _)
                if self.way.mode == Mode::Ebpf && last.source.ip().is_unspecified() =>
            {
                format!("{}:{}", who.ip(), who.port())
            }
            Answer::Reached(who, peer) if self.lab.own.contains(peer) => {
                format!("{}:{}/m", who.ip(), who.port())
            }
            Answer::Reached(who, peer) => format!("{who} as {peer}"),
            Answer::Other => "NONE".to_owned(),
            Answer::Refused => "REJECT".to_owned(),
            Answer::Silent => {
                let tracked = self
                    .lab
                    .node
                    .run(move || is_tracked(last.source, last.protocol));
                if tracked {
                    "forwarded, but no answer"
                } else {
                    "DROP"
                }
                .to_owned()
            }
            Answer::Failed(why) => why.clone(),
        };
        answers.iter().map(fate).collect()
    }
}

/// Who sends.
#[derive(Debug, Clone, Copy)]
enum Place {
    Node,
    Pod(usize),
    Client,
    Blocked,
}

fn unspecified(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    }
}

/// Who always answers.
fn fence(family: Family) -> SocketAddr {
    SocketAddr::new(parse_ip(&mapped(FENCE, family)).unwrap(), FENCE_PORT)
}
