//! UDP clients while endpoints change, in whichever mode the lab's proxy is.

use super::talk::{ask_udp, udp_socket};
use super::{Lab, service};

/// A client that keeps its port keeps its conntrack entry, and must follow the endpoints all the same:
/// to others, to none and back, and over the end of the service.
pub(crate) fn clients_that_keep_their_ports_follow_the_endpoints(mut lab: Lab) {
    const P2: &[(&str, &str)] = &[("10.180.0.2", "node")];
    const P3: &[(&str, &str)] = &[("10.180.1.1", "other")];
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{name: udp, port: 80, protocol: UDP, nodePort: 30041}]}";
    let endpoints = |endpoints: &[(&str, &str)]| service("web", spec, endpoints);
    lab.write("web.yaml", &endpoints(&[]));
    lab.start();
    let clients = [
        (&lab.p1, "172.30.0.41:80"),
        (&lab.cli, "192.168.0.2:30041"),
        (&lab.node, "172.30.0.41:80"),
    ];
    let sockets = clients.each_ref().map(|(place, _)| place.run(udp_socket));
    let all_hear = |who: Option<&str>| {
        let mut heard = clients
            .iter()
            .zip(&sockets)
            .map(|((place, to), socket)| place.run(|| ask_udp(socket, to.parse().unwrap())));
        heard.all(|heard| heard.as_deref() == who)
    };
    // A flow to nowhere is tracked at first.
    assert!(!all_hear(Some("p2")));
    for (to, who) in [
        (P2, Some("p2")),
        (P3, Some("p3")),
        (&[][..], None),
        (P2, Some("p2")),
    ] {
        lab.write("web.yaml", &endpoints(to));
        lab.wait(who.unwrap_or("nobody"), |_| all_hear(who));
    }
    lab.remove("web.yaml");
    lab.wait("the service to go", |_| all_hear(None));
    lab.write("web.yaml", &endpoints(P3));
    lab.wait("p3 after deletion", |_| all_hear(Some("p3")));
}
