//! What the daemon writes for others: the CNI configuration of this node, and flannel's
//! `subnet.env`. While the first is not there, the runtime starts no pods; so it is written last, and
//! each whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use api::cidr::{Family, nth_host};
use serde_json::json;

use super::model::{Pods, Settings};

/// The name of the CNI configuration. Runtimes take the first by name.
pub const CONFLIST: &str = "10-seaway.conflist";

/// The bridge that joins the pods of a node.
pub const BRIDGE: &str = "cni0";

/// The text of the CNI configuration.
pub fn conflist(settings: &Settings, pods: &Pods) -> String {
    let ranges: Vec<_> = pods
        .subnets
        .iter()
        .map(|subnet| json!([{ "subnet": subnet.to_string() }]))
        .collect();
    let whole = json!({
        // The newest that every runtime in use understands; newer ones choose from the list.
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "seaway",
        "plugins": [{
            "type": "seaway-cni",
            "bridge": BRIDGE,
            "isGateway": true,
            "isDefaultGateway": true,
            "hairpinMode": true,
            "mtu": pods.mtu,
            "capabilities": { "portMappings": true, "bandwidth": true },
            "ipam": {
                "type": "seaway",
                "ranges": ranges,
                "dataDir": settings.cni_state_dir,
            },
        }],
    });
    format!("{whole:#}\n")
}

/// The text of `subnet.env`, as flannel's plugin reads it: the networks of all pods, and this node's
/// by their first address.
pub fn subnet_env(settings: &Settings, pods: &Pods) -> String {
    let mut text = String::new();
    for (family, prefix) in [(Family::V4, "FLANNEL"), (Family::V6, "FLANNEL_IPV6")] {
        let is_of = |net: &&ipnetwork::IpNetwork| Family::of_net(net) == family;
        let Some(subnet) = pods.subnets.iter().find(is_of) else {
            continue;
        };
        let all: Vec<String> = settings
            .cluster_cidrs
            .iter()
            .filter(is_of)
            .map(ToString::to_string)
            .collect();
        let first = nth_host(subnet, 1).unwrap_or(subnet.ip());
        let (all, length) = (all.join(","), subnet.prefix());
        text += &format!("{prefix}_NETWORK={all}\n");
        text += &format!("{prefix}_SUBNET={first}/{length}\n");
    }
    text += &format!("FLANNEL_MTU={}\n", pods.mtu);
    text += &format!("FLANNEL_IPMASQ={}\n", settings.masquerade);
    text
}

/// The files with their texts, in the order in which they are written.
pub fn all(settings: &Settings, pods: &Pods) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    if let Some(path) = &settings.subnet_file {
        files.push((path.clone(), subnet_env(settings, pods)));
    }
    files.push((
        settings.cni_conf_dir.join(CONFLIST),
        conflist(settings, pods),
    ));
    files
}

/// Writes a file if it does not have this text already; true when it was written.
///
/// # Errors
/// The directory cannot be made or written to.
pub fn write(path: &Path, text: &str) -> io::Result<bool> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    let fail = |e: io::Error| io::Error::new(e.kind(), format!("write {}: {e}", path.display()));
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(fail)?;
    // A name that no runtime reads.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.tmp"));
    let replace = || -> io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    replace().map_err(fail)?;
    Ok(true)
}

/// Removes a file; true when it was there.
///
/// # Errors
/// It cannot be deleted.
pub fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io::Error::new(
            e.kind(),
            format!("delete {}: {e}", path.display()),
        )),
    }
}
