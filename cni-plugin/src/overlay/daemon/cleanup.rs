//! Taking away what the daemon made.

use std::path::PathBuf;

use linux::Host;

use crate::overlay::firewall::Firewall;
use crate::overlay::model::Settings;
use crate::overlay::{files, observe};

/// Takes the files away that let the runtime start pods; gives back which were there.
///
/// # Errors
/// One that cannot be deleted.
pub fn hold_pods(settings: &Settings) -> std::io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for path in pod_files(settings) {
        if files::remove(&path)? {
            removed.push(path);
        }
    }
    Ok(removed)
}

fn pod_files(settings: &Settings) -> impl Iterator<Item = PathBuf> {
    let conflist = settings.cni_conf_dir.join(files::CONFLIST);
    std::iter::once(conflist).chain(settings.subnet_file.clone())
}

/// Removes everything of ours from this node: devices with all on them, routes, chains, the CNI
/// configuration.
///
/// # Errors
/// Everything that could not be removed, one in a line.
pub fn cleanup(settings: &Settings) -> Result<(), String> {
    let mut failed = Vec::new();
    // No new pods first.
    for path in pod_files(settings) {
        failed.extend(files::remove(&path).err().map(|e| e.to_string()));
    }
    match linux::Kernel::open() {
        Ok(mut host) => {
            let left = observe::left_behind(&mut host, settings).unwrap_or_default();
            for name in left.iter().chain(&settings.devices()) {
                failed.extend(host.ensure_no_link(name).err().map(|e| e.to_string()));
            }
            for route in observe::routes(&mut host).unwrap_or_default() {
                failed.extend(host.ensure_no_route(&route).err().map(|e| e.to_string()));
            }
        }
        Err(error) => failed.push(error.to_string()),
    }
    if settings.masquerade {
        let firewall = Firewall::new(&settings.cluster_cidrs, settings.masquerader);
        let removed = firewall.and_then(|mut firewall| firewall.remove());
        failed.extend(removed.err().map(|e| e.to_string()));
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(failed.join("\n"))
    }
}
