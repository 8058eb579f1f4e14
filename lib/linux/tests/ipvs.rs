//! The real load balancer of the kernel, where there is one, in a namespace of the test's own.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

use std::net::SocketAddr;
use std::time::Duration;

use linux::ipvs::{
    Command, Destination, Ipvs, Options, Protocol, Scheduler, Server, ServerId, Timeouts,
};
use linux::link::LinkChange;
use linux::{Host, Kernel, NetNs};

/// Runs `work` in a namespace of its own; says why where it cannot.
fn with_ipvs(test: &str, work: impl FnOnce(&mut Ipvs) + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: needs root");
        return;
    }
    let netns = NetNs::anonymous().unwrap();
    // Without any local route the kernel takes no address for a destination.
    let up = || Kernel::open().unwrap().set_link("lo", &LinkChange::up());
    netns.run(up).unwrap().unwrap();
    let opened = netns.run(Ipvs::open).unwrap();
    match opened {
        Ok(mut ipvs) => netns.run(|| work(&mut ipvs)).unwrap(),
        Err(e) if e.is_not_found() => println!("SKIPPED {test}: this kernel has no ip_vs"),
        Err(e) => panic!("{e}"),
    }
}

fn tcp(to: &str) -> ServerId {
    let to: SocketAddr = to.parse().unwrap();
    ServerId::Address {
        protocol: Protocol::Tcp,
        ip: to.ip(),
        port: to.port(),
    }
}

fn server(id: ServerId, scheduler: Scheduler) -> Server {
    Server {
        id,
        scheduler: Some(scheduler),
        options: Options::default(),
        persistence: None,
    }
}

fn weights(ipvs: &mut Ipvs, id: ServerId) -> Vec<(String, u32)> {
    let mut all: Vec<(String, u32)> = ipvs
        .destinations(id)
        .unwrap()
        .iter()
        .map(
            |Destination {
                 address, weight, ..
             }| (address.to_string(), *weight),
        )
        .collect();
    all.sort();
    all
}

#[test]
fn servers_and_destinations_come_and_go() {
    with_ipvs("servers_and_destinations_come_and_go", |ipvs| {
        assert_eq!(ipvs.servers().unwrap(), []);
        let marks = [false, true].map(|ipv6| ServerId::Mark { ipv6, mark: 77 });
        let v4 = tcp("10.96.0.1:80");
        let v6 = tcp("[fd00::1]:80");
        let mut wanted = vec![server(v4, Scheduler::Rr), server(v6, Scheduler::Wlc)];
        wanted.extend(marks.map(|id| server(id, Scheduler::Mh)));
        wanted[0].persistence = Some(10800);
        wanted[2].options.hash_port = true;
        let add: Vec<Command> = wanted.iter().cloned().map(Command::AddServer).collect();
        assert_eq!(ipvs.apply(&add).unwrap().len(), 0);
        let mut found = ipvs.servers().unwrap();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);

        let one: SocketAddr = "10.244.0.5:8080".parse().unwrap();
        let two: SocketAddr = "10.244.0.6:8080".parse().unwrap();
        let change = [
            Command::AddDestination(v4, one, 1),
            Command::AddDestination(v4, one, 1),
            Command::AddDestination(v4, two, 1),
            Command::AddDestination(marks[0], two, 1),
            Command::AddDestination(v6, "[fd00:1::5]:8080".parse().unwrap(), 1),
            Command::SetDestination(v4, one, 0),
        ];
        let refused = ipvs.apply(&change).unwrap();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].0 == 1 && refused[0].1.is_exists(), "{refused:?}");
        let expect = [("10.244.0.5:8080", 0), ("10.244.0.6:8080", 1)];
        assert_eq!(weights(ipvs, v4), expect.map(|(to, n)| (to.to_owned(), n)));
        assert_eq!(weights(ipvs, v6), [("[fd00:1::5]:8080".to_owned(), 1)]);
        assert_eq!(weights(ipvs, marks[0]), [("10.244.0.6:8080".to_owned(), 1)]);

        let refused = ipvs
            .apply(&[
                Command::DeleteDestination(v4, one),
                Command::DeleteDestination(v4, one),
                Command::DeleteServer(tcp("10.96.0.9:80")),
                Command::DeleteServer(v6),
            ])
            .unwrap();
        let numbers: Vec<usize> = refused.iter().map(|(i, _)| *i).collect();
        assert_eq!(numbers, [1, 2]);
        assert!(refused.iter().all(|(_, e)| e.is_not_found()), "{refused:?}");
        assert_eq!(weights(ipvs, v4), [("10.244.0.6:8080".to_owned(), 1)]);
        assert_eq!(ipvs.servers().unwrap().len(), 3);
    });
}

/// Each alone, with each of its flags and with all of them, in both families.
#[test]
fn every_scheduler_is_accepted_with_its_flags() {
    with_ipvs("every_scheduler_is_accepted_with_its_flags", |ipvs| {
        for scheduler in Scheduler::ALL {
            let flags = scheduler.flags();
            let mut choices: Vec<&[&str]> = vec![&[]];
            choices.extend(flags.chunks(1));
            choices.extend((flags.len() > 1).then_some(flags));
            for (flags, to) in choices
                .iter()
                .flat_map(|flags| ["10.96.1.1:81", "[fd00::1:1]:81"].map(|to| (flags, to)))
            {
                let mut wanted = server(tcp(to), scheduler);
                for flag in *flags {
                    assert!(wanted.options.add_flag(scheduler, flag));
                }
                let refused = ipvs.apply(&[Command::AddServer(wanted.clone())]).unwrap();
                assert!(refused.is_empty(), "{scheduler:?} {flags:?}: {refused:?}");
                assert_eq!(ipvs.servers().unwrap(), std::slice::from_ref(&wanted));
                ipvs.apply(&[Command::DeleteServer(wanted.id)]).unwrap();
            }
            println!(
                "COUNTED scheduler {} with flags {flags:?}",
                scheduler.name()
            );
        }
    });
}

#[test]
fn time_outs_are_kept_where_zero() {
    with_ipvs("time_outs_are_kept_where_zero", |ipvs| {
        let before = ipvs.timeouts().unwrap();
        let wanted = Timeouts {
            udp: Duration::from_secs(77),
            ..Timeouts::default()
        };
        ipvs.set_timeouts(&wanted).unwrap();
        let expect = Timeouts {
            udp: Duration::from_secs(77),
            ..before
        };
        assert_eq!(ipvs.timeouts().unwrap(), expect);
    });
}

#[test]
fn many_destinations_are_listed() {
    with_ipvs("many_destinations_are_listed", |ipvs| {
        let servers = 100_u8;
        let each = 1000_u16;
        let id = |n: u8| tcp(&format!("10.96.2.{n}:80"));
        let mut commands = Vec::new();
        for n in 0..servers {
            commands.push(Command::AddServer(server(id(n), Scheduler::Rr)));
            for port in 1..=each {
                let to = SocketAddr::new([10, 244, 0, n].into(), port);
                commands.push(Command::AddDestination(id(n), to, 1));
            }
        }
        assert_eq!(ipvs.apply(&commands).unwrap().len(), 0);
        let found = ipvs.servers().unwrap();
        assert_eq!(found.len(), usize::from(servers));
        let total: usize = found
            .iter()
            .map(|server| ipvs.destinations(server.id).unwrap().len())
            .sum();
        assert_eq!(total, usize::from(servers) * usize::from(each));
    });
}

#[test]
fn a_dummy_device_holds_addresses() {
    with_ipvs("a_dummy_device_holds_addresses", |_| {
        let mut kernel = Kernel::open().unwrap();
        kernel.add_dummy("kube-ipvs0").unwrap();
        assert!(kernel.add_dummy("kube-ipvs0").unwrap_err().is_exists());
        let nets = ["10.96.0.1/32", "fd00::1/128"].map(|net| net.parse().unwrap());
        let failed = kernel
            .change_addrs("kube-ipvs0", &nets.map(|net| (net, true)))
            .unwrap();
        assert!(failed.is_empty(), "{failed:?}");
        let held = kernel.all_addrs().unwrap();
        for net in nets {
            assert!(
                held.iter()
                    .any(|(link, addr)| link == "kube-ipvs0" && addr.net == net),
                "{held:?}"
            );
        }
    });
}
