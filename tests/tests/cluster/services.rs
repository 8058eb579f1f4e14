//! Services through kubectl and from pods.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use linux::NetNs;
use seaway_tests::cluster::Cluster;
use seaway_tests::wait_until;

use crate::pods::POD_TIMEOUT;

pub(crate) fn get_services(cluster: &Cluster) -> Result<()> {
    let text = cluster.kubectl(&["get", "svc,endpointslices", "-o", "wide"])?;
    for word in [
        "service/kubernetes",
        "service/web ",
        "NodePort",
        "80:30080/TCP",
        "ExternalName",
        "endpointslice.discovery.k8s.io/web-",
        "IPv4",
        "IPv6",
        "8080",
    ] {
        ensure!(text.contains(word), "no {word:?} in:\n{text}");
    }
    // Those of pods on their way out go first.
    wait_until("the endpoints to settle", POD_TIMEOUT, || {
        let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"])?;
        for slice in slices["items"].as_array().context("items")? {
            let endpoints = slice["endpoints"].as_array().map_or(0, Vec::len);
            ensure!(endpoints == 3, "a slice has {endpoints} endpoints: {slice}");
        }
        Ok(())
    })
}

const DUAL: &str = "
apiVersion: v1
kind: Service
metadata: { name: dual }
spec:
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv6, IPv4]
  selector: { app: web }
  ports: [{ port: 8081, targetPort: 8080 }]
";

pub(crate) fn dual_stack(cluster: &Cluster) -> Result<()> {
    cluster.apply(DUAL)?;
    let service = cluster.get(&["svc", "dual"])?;
    let ips: Vec<_> = service["spec"]["clusterIPs"]
        .as_array()
        .context("clusterIPs")?
        .iter()
        .filter_map(|ip| ip.as_str())
        .collect();
    ensure!(
        ips.len() == 2 && ips[0].contains(':') && ips[1].contains('.'),
        "clusterIPs are {ips:?}"
    );
    for ip in ips {
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_owned()
        };
        let script = format!(
            "for i in $(seq 60); do timeout 5 wget -qO- 'http://{host}:8081/cgi-bin/whoami' || exit 1; done"
        );
        let ask = || cluster.kubectl(&["exec", "client", "--", "sh", "-c", &script]);
        let text = wait_until("the dual-stack service", POD_TIMEOUT, ask)?;
        let servers: BTreeSet<_> = text.lines().filter_map(|l| l.split(' ').next()).collect();
        ensure!(servers.len() == 3, "{ip} was served by {servers:?}");
    }
    cluster.kubectl(&["delete", "svc", "dual"])?;
    Ok(())
}

pub(crate) fn names(cluster: &Cluster) -> Result<()> {
    let sh =
        |script: &str| cluster.kubectl_output(&["exec", "client", "--", "sh", "-c", script], "");
    let conf = sh("cat /etc/resolv.conf")?.text();
    ensure!(
        conf.contains("search default.svc.cluster.local svc.cluster.local cluster.local")
            && conf.contains("ndots:5"),
        "resolv.conf is {conf:?}"
    );
    let kubernetes = sh("nslookup kubernetes.default.svc.cluster.local")?.text();
    ensure!(kubernetes.contains("10.96.0.1"), "{kubernetes}");
    let nothing = sh("nslookup nothing.default.svc.cluster.local")?;
    ensure!(
        !nothing.status.success(),
        "a name that is not there resolved: {}",
        nothing.text()
    );
    Ok(())
}

const HOST_PORT: u16 = 18_080;

const HOST_PORT_POD: &str = "
apiVersion: v1
kind: Pod
metadata: { name: at-a-host-port }
spec:
  nodeName: node-2
  terminationGracePeriodSeconds: 0
  containers:
    - name: a
      image: seaway.local/sample:1
      ports: [{ containerPort: 8080, hostPort: 18080 }]
";

/// What the sample's page answers at `target`, asked from the calling thread's network namespace.
fn whoami(target: SocketAddr) -> Result<String> {
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET /cgi-bin/whoami HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A pod's hostPort, asked from outside the nodes, from its node and from another one, from a pod and from
/// itself; gone with the pod.
pub(crate) fn host_port(cluster: &Cluster) -> Result<()> {
    cluster.apply(HOST_PORT_POD)?;
    let pod = wait_until("the pod to run", POD_TIMEOUT, || {
        let pod = cluster.get(&["pod", "at-a-host-port"])?;
        ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
        Ok(pod)
    })?;
    let ips = pod["status"]["hostIPs"].as_array().context("hostIPs")?;
    let ips: Vec<IpAddr> = ips
        .iter()
        .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
        .collect();
    ensure!(ips.len() == 2, "the node has {ips:?}");
    let node = |name: &str| NetNs::open(cluster.dir().join("nodes").join(name).join("netns/self"));
    let (own, other) = (node("node-2")?, node("node-1")?);
    let served = |what: &str, ask: &dyn Fn() -> Result<String>| {
        wait_until(what, POD_TIMEOUT, || {
            let text = ask()?;
            ensure!(text.contains("at-a-host-port"), "{what}: {text}");
            Ok(())
        })
    };
    for ip in &ips {
        let target = SocketAddr::new(*ip, HOST_PORT);
        served("the host port from outside", &|| whoami(target))?;
        served("the host port from its node", &|| {
            own.run(|| whoami(target))?
        })?;
        served("the host port from another node", &|| {
            other.run(|| whoami(target))?
        })?;
        let url = format!("http://{target}/cgi-bin/whoami");
        for asker in ["client", "at-a-host-port"] {
            let exec = ["exec", asker, "--", "timeout", "5", "wget", "-qO-", &url];
            served(&format!("the host port from pod {asker}"), &|| {
                cluster.kubectl(&exec)
            })?;
        }
    }
    let loopback = SocketAddr::from(([127, 0, 0, 1], HOST_PORT));
    served("the host port at 127.0.0.1", &|| {
        own.run(|| whoami(loopback))?
    })?;
    cluster.kubectl(&["delete", "pod", "at-a-host-port"])?;
    for ip in ips {
        wait_until("the host port to go", POD_TIMEOUT, || {
            let answer = whoami(SocketAddr::new(ip, HOST_PORT));
            ensure!(answer.is_err(), "{ip} still answers");
            Ok(())
        })?;
    }
    Ok(())
}
