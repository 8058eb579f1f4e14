//! Services through kubectl and from pods.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
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
    let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"])?;
    for slice in slices["items"].as_array().context("items")? {
        let endpoints = slice["endpoints"].as_array().map_or(0, Vec::len);
        ensure!(endpoints == 3, "a slice has {endpoints} endpoints: {slice}");
    }
    Ok(())
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
