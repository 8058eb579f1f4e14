//! Rows of services, endpoints and ingresses.

use serde_json::Value;

use super::cells::{Object, first_of, none_if_empty, scalar};

/// Addresses and ports shown before `+ N more...`.
const SHOWN: usize = 3;

pub(super) fn service(o: &Object<'_>) -> Vec<Value> {
    let ports: Vec<String> = o
        .list("/spec/ports")
        .iter()
        .map(|port| {
            let number = &port["port"];
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            match port["nodePort"].as_i64() {
                Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    vec![
        o.name().into(),
        o.text("/spec/type").into(),
        o.text_or("/spec/clusterIP", "<none>").into(),
        external_ip(o).into(),
        none_if_empty(ports.join(",")).into(),
        o.age().into(),
        o.labels("/spec/selector").into(),
    ]
}

fn external_ip(o: &Object<'_>) -> String {
    let external: Vec<String> = o.list("/spec/externalIPs").iter().map(scalar).collect();
    match o.text("/spec/type") {
        "ClusterIP" | "NodePort" => none_if_empty(external.join(",")),
        "LoadBalancer" => {
            let mut all = load_balancer(o);
            all.extend(external);
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        "ExternalName" => o.text("/spec/externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn load_balancer(o: &Object<'_>) -> Vec<String> {
    let mut all: Vec<String> = o
        .list("/status/loadBalancer/ingress")
        .iter()
        .filter_map(|i| {
            i["ip"]
                .as_str()
                .filter(|t| !t.is_empty())
                .or(i["hostname"].as_str())
        })
        .map(str::to_owned)
        .collect();
    all.sort();
    all.dedup();
    all
}

pub(super) fn endpoints(o: &Object<'_>) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in o.list("/subsets") {
        let of = |key: &str| subset[key].as_array().map_or(&[][..], Vec::as_slice);
        if of("ports").is_empty() {
            all.extend(of("addresses").iter().map(|a| scalar(&a["ip"])));
        }
        for port in of("ports") {
            for address in of("addresses") {
                let ip = scalar(&address["ip"]);
                let host = if ip.contains(':') {
                    format!("[{ip}]")
                } else {
                    ip
                };
                all.push(format!("{host}:{}", port["port"]));
            }
        }
    }
    o.named(vec![none_if_empty(first_of(&all, SHOWN)).into()])
}

pub(super) fn endpoint_slice(o: &Object<'_>) -> Vec<Value> {
    let ports: Vec<String> = o
        .list("/ports")
        .iter()
        .map(|port| match (&port["port"], &port["name"]) {
            (Value::Number(number), _) => number.to_string(),
            (_, Value::String(name)) => name.clone(),
            _ => "*".to_owned(),
        })
        .collect();
    let addresses: Vec<String> = o
        .list("/endpoints")
        .iter()
        .flat_map(|e| e["addresses"].as_array().map_or(&[][..], Vec::as_slice))
        .map(scalar)
        .collect();
    let unset = |text: String| {
        if text.is_empty() {
            "<unset>".to_owned()
        } else {
            text
        }
    };
    o.named(vec![
        o.text("/addressType").into(),
        unset(first_of(&ports, SHOWN)).into(),
        unset(first_of(&addresses, SHOWN)).into(),
    ])
}

pub(super) fn ingress(o: &Object<'_>) -> Vec<Value> {
    let rules = o.list("/spec/rules");
    let hosts: Vec<String> = rules
        .iter()
        .map(|r| scalar(&r["host"]))
        .filter(|h| !h.is_empty())
        .collect();
    let hosts = if hosts.is_empty() {
        "*".to_owned()
    } else {
        first_of(&hosts, SHOWN)
    };
    let class = match o.text("/spec/ingressClassName") {
        "" => o.text_or(
            "/metadata/annotations/kubernetes.io~1ingress.class",
            "<none>",
        ),
        class => class,
    };
    let ports = if o.list("/spec/tls").is_empty() {
        "80"
    } else {
        "80, 443"
    };
    o.named(vec![
        class.into(),
        hosts.into(),
        load_balancer(o).join(",").into(),
        ports.into(),
    ])
}

pub(super) fn ingress_class(o: &Object<'_>) -> Vec<Value> {
    let parameters = match o.text("/spec/parameters/name") {
        "" => "<none>".to_owned(),
        name => match o.text("/spec/parameters/apiGroup") {
            "" => format!("{}/{name}", o.text("/spec/parameters/kind")),
            group => format!("{}.{group}/{name}", o.text("/spec/parameters/kind")),
        },
    };
    o.named(vec![o.text("/spec/controller").into(), parameters.into()])
}

pub(super) fn network_policy(o: &Object<'_>) -> Vec<Value> {
    o.named(vec![o.selector("/spec/podSelector").into()])
}

pub(super) fn service_cidr(o: &Object<'_>) -> Vec<Value> {
    let cidrs: Vec<String> = o.list("/spec/cidrs").iter().map(scalar).collect();
    o.named(vec![cidrs.join(",").into()])
}

pub(super) fn ip_address(o: &Object<'_>) -> Vec<Value> {
    let parent = |name: &str| o.text(&format!("/spec/parentRef/{name}"));
    let reference: Vec<&str> = ["resource", "namespace", "name"]
        .iter()
        .map(|n| parent(n))
        .filter(|t| !t.is_empty())
        .collect();
    let reference = match parent("group") {
        "" => reference.join("/"),
        group => reference.join("/").replacen('/', &format!(".{group}/"), 1),
    };
    o.named(vec![reference.into()])
}
