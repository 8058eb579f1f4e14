//! Images: `seaway image load`, and the sample image that `up` makes by itself.

use std::path::Path;

use anyhow::{Context, Result, bail};
use linux::exec::{Exec, which};
use runtime::image::build::Archive;
use runtime::{Image, ImageConfig, ImageStore};

use crate::layout::Layout;
use crate::say;

/// The name under which the sample's manifests ask for it.
const SAMPLE: &str = "seaway.local/sample:1";

/// Loads an archive or a layout directory into the store that all nodes share.
pub(crate) fn load(layout: &Layout, path: &Path) -> Result<()> {
    for image in store(layout)?.load(path)? {
        say(&format!("loaded {}", title(&image)));
    }
    Ok(())
}

/// Lists what the store has.
pub(crate) fn list(layout: &Layout) -> Result<()> {
    for image in store(layout)?.list()? {
        say(&format!(
            "{}  {:.1} MB",
            title(&image),
            megabytes(image.size_bytes)
        ));
    }
    Ok(())
}

fn title(image: &Image) -> String {
    let id = image.id.trim_start_matches("sha256:");
    format!("{}  {}", id.get(..12).unwrap_or(id), image.names.join(" "))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "one digit after the point is shown"
)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn store(layout: &Layout) -> Result<ImageStore> {
    Ok(ImageStore::open(&layout.images_dir())?)
}

/// Makes the sample image from this machine's static busybox and loads it.
pub(crate) fn load_sample(layout: &Layout) -> Result<()> {
    let Some(busybox) = which("busybox") else {
        bail!("busybox is missing; please run: apt-get install busybox-static");
    };
    let config = ImageConfig {
        cmd: vec!["/bin/serve".into()],
        env: vec![("PATH".into(), "/bin".into())],
        workdir: "/".into(),
        exposed_ports: vec!["8080/tcp".into()],
        ..ImageConfig::default()
    };
    let mut image = Archive::new(SAMPLE)
        .config(config)
        .copy("bin/busybox", &busybox, 0o755)
        .file("bin/serve", include_str!("../sample-image/serve"), 0o755)
        .file("bin/rest", include_str!("../sample-image/rest"), 0o755)
        .file("www/index.html", "Seaway\n", 0o644)
        .file(
            "www/cgi-bin/whoami",
            include_str!("../sample-image/whoami"),
            0o755,
        )
        .file(
            "etc/passwd",
            "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
            0o644,
        )
        .file("etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644)
        .file("etc/nsswitch.conf", "hosts: files dns\n", 0o644)
        .dir("tmp", 0o1777)
        .dir("var/log", 0o755);
    let applets = Exec::new(&busybox).arg("--list").run()?.text();
    for applet in applets.lines().filter(|a| *a != "busybox") {
        image = image.link(&format!("bin/{applet}"), "busybox");
    }
    let archive = layout.dir().join("sample.tar");
    image.write(&archive)?;
    store(layout)?
        .load(&archive)
        .with_context(|| format!("load {}", archive.display()))?;
    std::fs::remove_file(&archive)?;
    Ok(())
}
