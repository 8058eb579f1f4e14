//! What the host tells the guest: a file of the folder that both see.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Lane;

/// File of the orders.
const ORDERS: &str = "orders";
/// Standard output of the command.
pub(super) const OUT: &str = "out";
/// Standard error of the command.
pub(super) const ERR: &str = "err";
/// The command's exit code, once it has ended.
pub(super) const CODE: &str = "code";

/// Everything the guest must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Orders {
    /// Which lane it runs in.
    pub(super) lane: Lane,
    /// Folder with a folder of modules for each kernel.
    pub(super) modules: PathBuf,
    /// A folder that is written through.
    pub(super) share: Option<PathBuf>,
    /// Working directory.
    pub(super) cwd: PathBuf,
    /// Seconds after which the command is ended.
    pub(super) timeout: u64,
    /// br_netfilter is not loaded.
    pub(super) bare_bridges: bool,
    /// Variables of the command.
    pub(super) env: Vec<(String, String)>,
    /// Program and arguments.
    pub(super) command: Vec<String>,
}

impl Orders {
    /// Writes them into `dir`. Fields end with a zero byte, which no path, variable or argument
    /// can have.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let mut text = String::new();
        let mut field = |key: &str, value: &str| {
            for part in [key, "=", value, "\0"] {
                text.push_str(part);
            }
        };
        field("lane", self.lane.name());
        field("modules", &self.modules.to_string_lossy());
        if let Some(share) = &self.share {
            field("share", &share.to_string_lossy());
        }
        field("cwd", &self.cwd.to_string_lossy());
        field("timeout", &self.timeout.to_string());
        field("bare-bridges", &self.bare_bridges.to_string());
        for (key, value) in &self.env {
            field("env", &format!("{key}={value}"));
        }
        for word in &self.command {
            field("word", word);
        }
        let path = dir.join(ORDERS);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Reads them from `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(ORDERS);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is broken", path.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut orders = Self {
            lane: Lane::Tcg,
            modules: PathBuf::new(),
            share: None,
            cwd: "/".into(),
            timeout: 0,
            bare_bridges: false,
            env: Vec::new(),
            command: Vec::new(),
        };
        for field in text.split_terminator('\0') {
            let (key, value) = field.split_once('=')?;
            match key {
                "lane" if value == Lane::Uml.name() => orders.lane = Lane::Uml,
                "lane" => {}
                "modules" => orders.modules = value.into(),
                "share" => orders.share = Some(value.into()),
                "cwd" => orders.cwd = value.into(),
                "timeout" => orders.timeout = value.parse().ok()?,
                "bare-bridges" => orders.bare_bridges = value.parse().ok()?,
                "env" => {
                    let (key, value) = value.split_once('=')?;
                    orders.env.push((key.to_owned(), value.to_owned()));
                }
                "word" => orders.command.push(value.to_owned()),
                _ => return None,
            }
        }
        (!orders.command.is_empty()).then_some(orders)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_written() {
        let dir = std::env::temp_dir().join(format!("seaway-orders-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let orders = Orders {
            lane: Lane::Uml,
            modules: "/lib/mo=dules".into(),
            share: Some("/a b".into()),
            cwd: "/tmp".into(),
            timeout: 7,
            bare_bridges: true,
            env: vec![("A".into(), "b=c\nd".into())],
            command: vec!["sh".into(), "-c".into(), "echo \"x\" = y".into()],
        };
        orders.write(&dir).unwrap();
        assert_eq!(Orders::read(&dir).unwrap(), orders);
        std::fs::remove_dir_all(dir).unwrap();
        assert_eq!(Orders::parse("lane=uml\0"), None);
        assert_eq!(Orders::parse("nonsense"), None);
    }
}
