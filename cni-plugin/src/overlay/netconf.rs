//! Flannel's network configuration (`net-conf.json`, or the etcd key `config`). Pure.

use std::net::IpAddr;
use std::path::PathBuf;

use api::cidr::{Family, parse_cidr, parse_ip};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use super::backend::{Backend, HostGw, VXLAN_PORT, Vxlan, WireGuard, WireGuardMode};

/// Where this node's WireGuard key is unless said otherwise.
pub const WIREGUARD_KEY_FILE: &str = "/var/lib/seaway/overlay/wireguard.key";

/// Port of WireGuard, as flannel has it.
pub const WIREGUARD_PORT: u16 = 51820;
/// The same for the device that carries IPv6 pods.
pub const WIREGUARD_PORT_V6: u16 = 51821;

/// A network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    /// Networks of all pods, of the families that are on.
    pub networks: Vec<IpNetwork>,
    /// How the networks of nodes are cut out of them, by family.
    pub cuts: Vec<Cut>,
    /// Rules in nftables are wanted. Without it they are chosen by what the kernel has.
    pub nftables: bool,
    /// How packets get from node to node.
    pub backend: Backend,
}

/// How the networks of nodes are cut out of one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The whole.
    pub whole: IpNetwork,
    /// Length of a node's network.
    pub length: u8,
    /// The first that is given away, and the last.
    pub range: (IpAddr, IpAddr),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
struct Raw {
    #[serde(default = "yes")]
    enableipv4: bool,
    #[serde(default)]
    enableipv6: bool,
    #[serde(default)]
    enablenftables: bool,
    #[serde(default)]
    network: String,
    #[serde(default)]
    networks: Vec<String>,
    #[serde(default)]
    ipv6network: String,
    #[serde(default)]
    ipv6networks: Vec<String>,
    #[serde(default)]
    subnetlen: u8,
    #[serde(default)]
    subnetmin: String,
    #[serde(default)]
    subnetmax: String,
    #[serde(default)]
    ipv6subnetlen: u8,
    #[serde(default)]
    ipv6subnetmin: String,
    #[serde(default)]
    ipv6subnetmax: String,
    backend: Option<Value>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
struct RawVxlan {
    #[serde(default = "one")]
    vni: u32,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    gbp: bool,
    #[serde(default)]
    learning: bool,
    #[serde(default)]
    directrouting: bool,
    #[serde(default)]
    mtu: u32,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
struct RawHostGw {
    #[serde(default)]
    mtu: u32,
}

#[derive(Debug, Deserialize)]
struct RawWireGuard {
    #[serde(default)]
    listenport: u16,
    #[serde(default)]
    listenportv6: u16,
    #[serde(default)]
    psk: String,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    persistentkeepaliveinterval: u16,
    #[serde(default)]
    mtu: u32,
}

/// Reads a configuration. Names are taken in any case, as flannel takes them.
///
/// # Errors
/// What is wrong, with the field's name.
pub fn parse(text: &str) -> Result<NetConf, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut raw: Raw = serde_json::from_value(lower(value)).map_err(|e| e.to_string())?;
    let backend = raw.backend.take().ok_or(
        "Backend: missing, which means \"udp\" to flannel; say vxlan, host-gw or wireguard",
    )?;
    let backend = backend_of(lower(backend))?;
    let mut conf = NetConf {
        networks: Vec::new(),
        cuts: Vec::new(),
        nftables: raw.enablenftables,
        backend,
    };
    if raw.enableipv4 {
        let names = ["Network", "SubnetLen", "SubnetMin", "SubnetMax"];
        let texts = [&raw.subnetmin, &raw.subnetmax];
        let all = (&raw.network, &raw.networks);
        add(&mut conf, Family::V4, names, all, raw.subnetlen, texts)?;
    }
    if raw.enableipv6 {
        let names = [
            "IPv6Network",
            "IPv6SubnetLen",
            "IPv6SubnetMin",
            "IPv6SubnetMax",
        ];
        let texts = [&raw.ipv6subnetmin, &raw.ipv6subnetmax];
        let all = (&raw.ipv6network, &raw.ipv6networks);
        add(&mut conf, Family::V6, names, all, raw.ipv6subnetlen, texts)?;
    }
    if conf.networks.is_empty() {
        return Err("EnableIPv4 and EnableIPv6: both are off".to_owned());
    }
    Ok(conf)
}

/// With the names of an object in lower case.
fn lower(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(name, value)| (name.to_lowercase(), value))
            .collect(),
        other => other,
    }
}

fn backend_of(value: Value) -> Result<Backend, String> {
    let kind = value.get("type").and_then(Value::as_str);
    let kind = kind.unwrap_or_default().to_owned();
    let broken = |e: serde_json::Error| format!("Backend: {e}");
    match kind.to_lowercase().as_str() {
        "vxlan" => {
            let raw: RawVxlan = serde_json::from_value(value).map_err(broken)?;
            if raw.vni == 0 || raw.vni >= 1 << 24 {
                return Err(format!("Backend.VNI: {} is not in 1..16777216", raw.vni));
            }
            Ok(Backend::Vxlan(Vxlan {
                vni: raw.vni,
                port: Some(raw.port).filter(|p| *p > 0).unwrap_or(VXLAN_PORT),
                gbp: raw.gbp,
                learning: raw.learning,
                direct_routing: raw.directrouting,
                mtu: Some(raw.mtu).filter(|mtu| *mtu > 0),
            }))
        }
        "host-gw" => {
            let raw: RawHostGw = serde_json::from_value(value).map_err(broken)?;
            let mtu = Some(raw.mtu).filter(|mtu| *mtu > 0);
            Ok(Backend::HostGw(HostGw { mtu }))
        }
        "wireguard" => wireguard(serde_json::from_value(value).map_err(broken)?),
        _ => Err(format!(
            "Backend.Type: {kind:?} is not supported; vxlan, host-gw and wireguard are"
        )),
    }
}

fn wireguard(raw: RawWireGuard) -> Result<Backend, String> {
    let mode = match raw.mode.to_lowercase().as_str() {
        "" | "separate" => WireGuardMode::Separate,
        "auto" => WireGuardMode::Auto,
        "ipv4" => WireGuardMode::V4,
        "ipv6" => WireGuardMode::V6,
        _ => {
            let mode = raw.mode;
            return Err(format!(
                "Backend.Mode: {mode:?} is not separate, auto, ipv4 or ipv6"
            ));
        }
    };
    let psk = match raw.psk.as_str() {
        "" => None,
        // The secret itself is not repeated.
        text => Some(text.parse().map_err(|e| format!("Backend.PSK: {e}"))?),
    };
    let or = |port: u16, other| Some(port).filter(|p| *p > 0).unwrap_or(other);
    Ok(Backend::WireGuard(WireGuard {
        port: or(raw.listenport, WIREGUARD_PORT),
        port_v6: or(raw.listenportv6, WIREGUARD_PORT_V6),
        psk,
        mode,
        keepalive: raw.persistentkeepaliveinterval,
        mtu: Some(raw.mtu).filter(|mtu| *mtu > 0),
        key_file: PathBuf::from(WIREGUARD_KEY_FILE),
        private: None,
        public: None,
    }))
}

/// Adds the networks of a family.
fn add(
    conf: &mut NetConf,
    family: Family,
    names: [&str; 4],
    (first, all): (&String, &Vec<String>),
    length: u8,
    [min, max]: [&String; 2],
) -> Result<(), String> {
    let [network, ..] = names;
    let texts = if all.is_empty() {
        std::slice::from_ref(first)
    } else {
        all.as_slice()
    };
    let from = conf.networks.len();
    for text in texts {
        if text.is_empty() {
            return Err(format!("{network}: missing"));
        }
        let net = parse_cidr(text).map_err(|e| format!("{network}: {e}"))?;
        if Family::of_net(&net) != family {
            return Err(format!("{network}: {net} is not {family}"));
        }
        conf.networks.push(net);
    }
    let whole = conf.networks[from];
    conf.cuts.push(cut(whole, names, length, min, max)?);
    Ok(())
}

/// The rules are flannel's (`subnet.CheckNetworkConfig`): at least four networks of at least four
/// addresses, the first of which is left out unless it is asked for.
fn cut(
    whole: IpNetwork,
    [network, len_name, min_name, max_name]: [&str; 4],
    length: u8,
    min: &str,
    max: &str,
) -> Result<Cut, String> {
    let family = Family::of_net(&whole);
    let bits = family.bits();
    let usual = match family {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    let least = whole.prefix() + 2;
    if least > bits - 2 {
        return Err(format!("{network}: {whole} is too small"));
    }
    let length = match length {
        0 => usual.max(least),
        given if (least..=bits - 2).contains(&given) => given,
        given => {
            let most = bits - 2;
            return Err(format!("{len_name}: {given} is not in {least}..={most}"));
        }
    };
    let step = 1_u128 << (bits - length);
    let base = number(whole.network());
    let size = 1_u128.checked_shl(u32::from(bits - whole.prefix()));
    let last = base + (size.unwrap_or(0).wrapping_sub(step));
    let bound = |name: &str, text: &str, usual: u128| {
        if text.is_empty() {
            return Ok(address(family, usual));
        }
        let ip = parse_ip(text).filter(|ip| whole.contains(*ip));
        let ip = ip.ok_or_else(|| format!("{name}: {text:?} is not in {whole}"))?;
        if !number(ip).is_multiple_of(step) {
            return Err(format!("{name}: {ip} is not the start of a /{length}"));
        }
        Ok(ip)
    };
    let range = (
        bound(min_name, min, base + step)?,
        bound(max_name, max, last)?,
    );
    if range.0 > range.1 {
        return Err(format!("{min_name}: {} is above {max_name}", range.0));
    }
    Ok(Cut {
        whole,
        length,
        range,
    })
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        // A number of this family fits.
        Family::V4 => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}

impl Cut {
    /// All networks that may be given to nodes, in order.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        let Self { length, range, .. } = *self;
        let family = Family::of(range.0);
        let step = 1_u128 << (family.bits() - length);
        let (first, last) = (number(range.0), number(range.1));
        let count = (last - first) / step + 1;
        (0..count).filter_map(move |i| {
            let ip = address(family, first + i * step);
            IpNetwork::new(ip, length).ok()
        })
    }

    /// Whether a network is one of these.
    pub fn has(&self, net: &IpNetwork) -> bool {
        net.prefix() == self.length
            && Family::of_net(net) == Family::of(self.range.0)
            && (self.range.0..=self.range.1).contains(&net.network())
    }
}

#[cfg(test)]
mod tests;
