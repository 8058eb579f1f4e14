//! The CNI configuration of this node. While it is not there, the runtime starts no pods; so it is
//! written last, and whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::model::{Conflist, Settings};

/// The file's name. Runtimes take the first by name.
pub const FILE: &str = "10-seaway.conflist";

/// The bridge that joins the pods of a node.
const BRIDGE: &str = "cni0";

/// The text of the file.
pub fn render(settings: &Settings, conflist: &Conflist) -> String {
    let ranges: Vec<_> = conflist
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
            "mtu": conflist.mtu,
            "ipam": {
                "type": "seaway",
                "ranges": ranges,
                "dataDir": settings.cni_state_dir,
            },
        }],
    });
    format!("{whole:#}\n")
}

/// Writes the file if it does not have this text already; true when it was written.
///
/// # Errors
/// The directory cannot be made or written to.
pub fn write(settings: &Settings, text: &str) -> io::Result<bool> {
    let dir = &settings.cni_conf_dir;
    let path = dir.join(FILE);
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    let fail = |e: io::Error| io::Error::new(e.kind(), format!("write {}: {e}", path.display()));
    fs::create_dir_all(dir).map_err(fail)?;
    // A name that no runtime reads.
    let temporary = dir.join(format!(".{FILE}.tmp"));
    let replace = || -> io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    replace().map_err(fail)?;
    Ok(true)
}

/// Removes the file; true when it was there.
///
/// # Errors
/// It cannot be deleted.
pub fn remove(dir: &Path) -> io::Result<bool> {
    let path = dir.join(FILE);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io::Error::new(
            e.kind(),
            format!("delete {}: {e}", path.display()),
        )),
    }
}
