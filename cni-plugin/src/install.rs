//! `seaway-cni install`: puts the plugin, names of others that it answers to, and a configuration
//! where a runtime looks for them. A file appears whole or not at all (written aside, then renamed),
//! and the configuration last: while it is not there, the runtime starts no pods.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use api::cni::ConfList;

use crate::role::Role;

/// The plugin's name in the directory.
const PROGRAM: &str = "seaway-cni";

/// What to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The directory of plugins.
    pub bin_dir: PathBuf,
    /// The directory of configurations.
    pub conf_dir: PathBuf,
    /// A configuration list to install; none: whoever runs the node writes it.
    pub conf: Option<PathBuf>,
    /// More names that the plugin is to be found by.
    pub names: Vec<Role>,
    /// Replace files of these names that are not ours.
    pub force: bool,
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}: {why}", path.display())]
pub struct InstallError {
    op: &'static str,
    path: PathBuf,
    why: String,
}

fn fail<E: ToString>(op: &'static str, path: &Path) -> impl FnOnce(E) -> InstallError {
    move |why| InstallError {
        op,
        path: path.to_owned(),
        why: why.to_string(),
    }
}

/// Installs; tells what is there afterwards, a path a line.
///
/// # Errors
/// The first step that failed. What was there before still is.
pub fn install(install: &Install, own: &Path) -> Result<Vec<PathBuf>, InstallError> {
    // A configuration that no runtime would take is found out before anything is done.
    let conf = match &install.conf {
        None => None,
        Some(path) => {
            let text = fs::read_to_string(path).map_err(fail("read", path))?;
            ConfList::parse(&text).map_err(fail("read", path))?;
            let name = path.file_name().and_then(|n| n.to_str());
            let named = name.filter(|n| {
                [".conflist", ".conf", ".json"]
                    .iter()
                    .any(|e| n.ends_with(e))
            });
            let why = "its name must end in .conflist, .conf or .json, or no runtime reads it";
            let name = named.ok_or_else(|| fail("read", path)(why))?;
            Some((install.conf_dir.join(name), text))
        }
    };
    let mut dirs = vec![&install.bin_dir];
    dirs.extend(conf.as_ref().map(|_| &install.conf_dir));
    for dir in dirs {
        fs::create_dir_all(dir).map_err(fail("make directory", dir))?;
    }
    let mut done = Vec::new();
    let program = install.bin_dir.join(PROGRAM);
    let bytes = fs::read(own).map_err(fail("read", own))?;
    put(&program, &bytes, 0o755).map_err(fail("write", &program))?;
    done.push(program);
    for role in install.names.iter().filter(|role| **role != Role::Seaway) {
        let path = install.bin_dir.join(role.name());
        if !install.force && is_foreign(&path) {
            let why = "another plugin is there; --force replaces it";
            return Err(fail("write", &path)(why));
        }
        link(&path).map_err(fail("link", &path))?;
        done.push(path);
    }
    if let Some((path, text)) = conf {
        put(&path, text.as_bytes(), 0o644).map_err(fail("write", &path))?;
        done.push(path);
    }
    Ok(done)
}

/// Whether something is there that is not our link.
fn is_foreign(path: &Path) -> bool {
    match fs::read_link(path) {
        Ok(target) => target != Path::new(PROGRAM),
        Err(_no_link) => path.exists(),
    }
}

/// A name that neither a runtime nor a person takes for the file.
fn aside(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let aside = aside(path);
    let write = || -> io::Result<()> {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&aside)))
}

/// Links the name to the plugin beside it.
fn link(path: &Path) -> io::Result<()> {
    let aside = aside(path);
    drop(fs::remove_file(&aside));
    symlink(PROGRAM, &aside)?;
    fs::rename(&aside, path).inspect_err(|_| drop(fs::remove_file(&aside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(dir: &Path) -> Install {
        Install {
            bin_dir: dir.join("bin"),
            conf_dir: dir.join("net.d"),
            conf: None,
            names: Vec::new(),
            force: false,
        }
    }

    #[test]
    fn program_first_configuration_last_and_nothing_besides() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::write(&own, "program").unwrap();
        let conf = dir.path().join("10-x.conflist");
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"seaway-cni"}]}"#;
        fs::write(&conf, text).unwrap();
        let install_all = Install {
            conf: Some(conf),
            names: vec![Role::Flannel, Role::Loopback],
            ..plan(dir.path())
        };
        for _twice in 0..2 {
            let done = install(&install_all, &own).unwrap();
            assert_eq!(done.len(), 4);
            assert!(
                done[0].ends_with("bin/seaway-cni") && done[3].ends_with("net.d/10-x.conflist")
            );
        }
        let mut names: Vec<_> = fs::read_dir(dir.path().join("bin"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["flannel", "loopback", "seaway-cni"]);
        assert_eq!(
            fs::read_to_string(dir.path().join("bin/flannel")).unwrap(),
            "program"
        );
        assert_eq!(fs::read_dir(dir.path().join("net.d")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_ours_is_not_replaced_and_a_bad_configuration_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::write(&own, "program").unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        let foreign = dir.path().join("bin/bridge");
        fs::write(&foreign, "another").unwrap();
        let mut wish = Install {
            names: vec![Role::Bridge],
            ..plan(dir.path())
        };
        let error = install(&wish, &own).unwrap_err().to_string();
        assert!(
            error.ends_with("another plugin is there; --force replaces it"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&foreign).unwrap(), "another");
        wish.force = true;
        install(&wish, &own).unwrap();
        assert_eq!(fs::read_to_string(&foreign).unwrap(), "program");

        let bad = dir.path().join("bad.conflist");
        fs::write(&bad, "{}").unwrap();
        let fresh = tempfile::tempdir().unwrap();
        let wish = Install {
            conf: Some(bad),
            ..plan(fresh.path())
        };
        install(&wish, &own).unwrap_err();
        assert_eq!(fs::read_dir(fresh.path()).unwrap().count(), 0);
    }
}
