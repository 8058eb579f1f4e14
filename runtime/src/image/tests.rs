//! Tests of names, unpacking, loading and the store. Unpacking needs root (owners, whiteouts).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::build::Archive;
use super::{Image, ImageConfig, ImageStore, normalize, unpack};

macro_rules! needs_root {
    ($name:literal) => {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED {}: needs root", $name);
            return;
        }
    };
}

#[test]
fn names_are_made_full() {
    let hex = "0123456789abcdef".repeat(4);
    let digest = format!("busybox@sha256:{hex}");
    let digest_full = format!("docker.io/library/busybox@sha256:{hex}");
    for (name, full) in [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("me/app", "docker.io/me/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/me/app:2", "docker.io/me/app:2"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        ("seaway.local/sample:1", "seaway.local/sample:1"),
        (
            "r.example:5000/a/b/c:T_1.x-y",
            "r.example:5000/a/b/c:T_1.x-y",
        ),
        (&digest, &digest_full),
        (&digest.replace('@', ":1@"), &digest_full),
    ] {
        assert_eq!(normalize(name).unwrap(), full, "{name}");
        assert_eq!(normalize(full).unwrap(), full, "again {name}");
    }
    for bad in [
        "",
        "UPPER",
        "a//b",
        "a:",
        "a:-x",
        "-a",
        "a b",
        "a@sha256:12",
        "a/",
        "/a",
        "a:x/y:",
    ] {
        assert!(normalize(bad).is_err(), "{bad:?}");
    }
}

/// One entry of a layer.
fn add(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, mode: u32, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(7);
    header.set_gid(8);
    header.set_size(content.len() as u64);
    // Written raw, since the builder refuses what leads out.
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

fn add_link(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, target: &str) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mode(0o777);
    tar.append_link(&mut header, path, target).unwrap();
}

fn unpacked(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> std::io::Result<(tempfile::TempDir, u64)> {
    let mut tar = Builder::new(Vec::new());
    fill(&mut tar);
    let bytes = tar.into_inner().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let size = unpack::layer(&mut bytes.as_slice(), dir.path())?;
    Ok((dir, size))
}

fn is_whiteout(path: &Path) -> bool {
    let meta = path.symlink_metadata().unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value).is_ok_and(|len| len == 1)
}

#[test]
fn a_layer_unpacks_with_owners_modes_and_links() {
    needs_root!("a_layer_unpacks_with_owners_modes_and_links");
    let (dir, size) = unpacked(|tar| {
        add(tar, "./", EntryType::Directory, 0o755, b"");
        add(tar, "bin/", EntryType::Directory, 0o711, b"");
        add(tar, "bin/tool", EntryType::Regular, 0o4755, b"12345");
        add_link(tar, "bin/hard", EntryType::Link, "bin/tool");
        add_link(tar, "bin/soft", EntryType::Symlink, "/bin/tool");
        add(tar, "deep/er/file", EntryType::Regular, 0o600, b"x");
        add(tar, "pipe", EntryType::Fifo, 0o622, b"");
    })
    .unwrap();
    let meta = |path: &str| dir.path().join(path).symlink_metadata().unwrap();
    assert_eq!(size, 6);
    assert_eq!(meta("bin/tool").mode() & 0o7777, 0o4755);
    assert_eq!((meta("bin/tool").uid(), meta("bin/tool").gid()), (7, 8));
    assert_eq!(meta("bin").mode() & 0o7777, 0o711);
    assert_eq!(meta("bin/hard").ino(), meta("bin/tool").ino());
    assert_eq!(
        fs::read_link(dir.path().join("bin/soft")).unwrap(),
        Path::new("/bin/tool")
    );
    assert_eq!(meta("deep").mode() & 0o7777, 0o755);
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!(
        (meta("pipe").mode() & 0o7777, meta("pipe").uid()),
        (0o622, 7)
    );
}

#[test]
fn whiteouts_take_overlayfs_form() {
    needs_root!("whiteouts_take_overlayfs_form");
    let (dir, _) = unpacked(|tar| {
        add(tar, "etc/.wh.gone", EntryType::Regular, 0o644, b"");
        add(tar, "var/.wh..wh..opq", EntryType::Regular, 0o644, b"");
        add(tar, "var/kept", EntryType::Regular, 0o644, b"");
        // Hidden below and brought anew by the layer itself, in both orders.
        add(tar, ".wh.first", EntryType::Regular, 0o644, b"");
        add(tar, "first", EntryType::Regular, 0o644, b"new");
        add(tar, "second", EntryType::Regular, 0o644, b"new");
        add(tar, ".wh.second", EntryType::Regular, 0o644, b"");
        add(tar, ".wh.dir", EntryType::Regular, 0o644, b"");
        add(tar, "dir/", EntryType::Directory, 0o755, b"");
        add(tar, ".wh..wh.plnk", EntryType::Regular, 0o644, b"");
    })
    .unwrap();
    let at = |path: &str| dir.path().join(path);
    assert!(is_whiteout(&at("etc/gone")) && !is_opaque(&at("etc")));
    assert!(is_opaque(&at("var")) && at("var/kept").exists());
    assert_eq!(fs::read(at("first")).unwrap(), b"new");
    assert_eq!(fs::read(at("second")).unwrap(), b"new");
    assert!(is_opaque(&at("dir")));
    assert!(!at(".wh..wh.plnk").exists());
}

#[test]
fn layers_cannot_lead_out() {
    needs_root!("layers_cannot_lead_out");
    let refused =
        |fill: fn(&mut Builder<Vec<u8>>)| unpacked(fill).map(drop).unwrap_err().to_string();
    let why = refused(|tar| add(tar, "../evil", EntryType::Regular, 0o644, b""));
    assert!(why.contains("leads out of the layer"), "{why}");
    let why = refused(|tar| {
        add_link(tar, "etc", EntryType::Symlink, "/etc");
        add(tar, "etc/seaway-test-evil", EntryType::Regular, 0o644, b"");
    });
    assert!(why.contains("leads out of the layer"), "{why}");
    let why = refused(|tar| {
        add_link(tar, "up", EntryType::Symlink, "../..");
        add(tar, "up/.wh.etc", EntryType::Regular, 0o644, b"");
    });
    assert!(why.contains("leads out of the layer"), "{why}");
    let why = refused(|tar| add_link(tar, "x", EntryType::Link, "../../../../../../etc/passwd"));
    assert!(!why.is_empty());
    assert!(!Path::new("/etc/seaway-test-evil").exists());
    // Absolute paths mean the layer's own root.
    let (dir, _) = unpacked(|tar| add(tar, "/abs", EntryType::Regular, 0o644, b"")).unwrap();
    assert!(dir.path().join("abs").exists());
}

/// A store and an image archive of one file.
fn store_and_archive(name: &str, content: &str) -> (tempfile::TempDir, ImageStore, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("store")).unwrap();
    let archive = dir.path().join("image.tar");
    let config = ImageConfig {
        entrypoint: vec!["/bin/x".to_owned()],
        cmd: vec!["arg".to_owned()],
        env: vec![("A".to_owned(), "b=c".to_owned())],
        workdir: "/srv".to_owned(),
        user: "web".to_owned(),
        exposed_ports: vec!["80/tcp".to_owned()],
        stop_signal: Some("SIGQUIT".to_owned()),
    };
    Archive::new(name)
        .config(config)
        .file("/bin/x", content, 0o755)
        .write(&archive)
        .unwrap();
    (dir, store, archive)
}

#[test]
fn images_load_resolve_and_go() {
    needs_root!("images_load_resolve_and_go");
    let (dir, store, archive) = store_and_archive("app:1", "one");
    let image = store.load(&archive).unwrap().remove(0);
    assert_eq!(image.names, ["docker.io/library/app:1"]);
    assert_eq!(image.size_bytes, 3);
    let config = &image.config;
    assert_eq!(
        (config.env[0].1.as_str(), config.workdir.as_str()),
        ("b=c", "/srv")
    );
    assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
    let short = &image.id["sha256:".len()..][..12];
    for name in ["app:1", "docker.io/library/app:1", &image.id, short] {
        assert_eq!(
            store.resolve(name).unwrap().as_ref(),
            Some(&image),
            "{name}"
        );
    }
    assert_eq!(store.resolve("app:2").unwrap(), None);
    assert!(store.resolve("APP").is_err());
    let layer = store.layer_dirs(&image).remove(0);
    assert_eq!(fs::read_to_string(layer.join("bin/x")).unwrap(), "one");

    // Loading again unpacks nothing again.
    let before = fs::metadata(layer.join("bin/x")).unwrap().ino();
    store.load(&archive).unwrap();
    assert_eq!(fs::metadata(layer.join("bin/x")).unwrap().ino(), before);

    // The name moves to a newer image; the older one stays without it.
    Archive::new("app:1")
        .file("/bin/x", "two!", 0o755)
        .write(&archive)
        .unwrap();
    let newer = store.load(&archive).unwrap().remove(0);
    assert_eq!(store.resolve("app:1").unwrap().unwrap().id, newer.id);
    let older = store.resolve(&image.id).unwrap().unwrap();
    assert_eq!(
        older,
        Image {
            names: Vec::new(),
            ..image.clone()
        }
    );
    assert_eq!(store.list().unwrap().len(), 2);

    store.remove(&image.id).unwrap();
    assert!(!layer.exists());
    store.remove("app:1").unwrap();
    store.remove("app:1").unwrap();
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(
        fs::read_dir(dir.path().join("store/layers"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn archives_may_be_compressed_and_layouts_directories() {
    needs_root!("archives_may_be_compressed_and_layouts_directories");
    let (dir, store, archive) = store_and_archive("app", "x");
    let id = store.load(&archive).unwrap().remove(0).id;
    let plain = fs::read(&archive).unwrap();

    let gzip = dir.path().join("image.tgz");
    let mut encoder =
        flate2::write::GzEncoder::new(File::create(&gzip).unwrap(), Default::default());
    encoder.write_all(&plain).unwrap();
    encoder.finish().unwrap();
    let zst = dir.path().join("image.tar.zst");
    fs::write(&zst, zstd::encode_all(plain.as_slice(), 1).unwrap()).unwrap();
    let layout = dir.path().join("layout");
    tar::Archive::new(plain.as_slice()).unpack(&layout).unwrap();
    for path in [gzip, zst, layout] {
        store.remove(&id).unwrap();
        assert_eq!(
            store.load(&path).unwrap().remove(0).id,
            id,
            "{}",
            path.display()
        );
    }
    assert_eq!(
        fs::read_dir(dir.path().join("store/tmp")).unwrap().count(),
        0
    );
}

/// From one file of an archive to those that take its place.
type Change = fn(&str, Vec<u8>) -> Vec<(String, Vec<u8>)>;

/// Takes an archive apart, changes its files and puts it together.
fn rewrite(archive: &Path, change: impl Fn(&str, Vec<u8>) -> Vec<(String, Vec<u8>)>) {
    let mut from = tar::Archive::new(File::open(archive).unwrap());
    let mut files = Vec::new();
    for entry in from.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.extend(change(&path, bytes));
    }
    let mut to = Builder::new(File::create(archive).unwrap());
    for (path, bytes) in files {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        to.append_data(&mut header, path, bytes.as_slice()).unwrap();
    }
    to.finish().unwrap();
}

fn hex_digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[test]
fn docker_archives_load() {
    needs_root!("docker_archives_load");
    let (_dir, store, archive) = store_and_archive("app", "docker");
    let id = store.load(&archive).unwrap().remove(0).id;
    store.remove(&id).unwrap();
    // The same files as `docker save` lays them out, with a compressed layer.
    rewrite(&archive, |path, bytes| {
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(json) if json.get("rootfs").is_some() => {
                let config = format!("{}.json", hex_digest(&bytes));
                let manifest = json!([{ "Config": config, "RepoTags": ["a:1", "b:2"], "Layers": ["l/layer.tar"] }]);
                vec![
                    (config, bytes),
                    (
                        "manifest.json".to_owned(),
                        manifest.to_string().into_bytes(),
                    ),
                ]
            }
            Err(_) if path.starts_with("blobs/") => {
                vec![(
                    "l/layer.tar".to_owned(),
                    zstd::encode_all(bytes.as_slice(), 1).unwrap(),
                )]
            }
            _ => Vec::new(),
        }
    });
    let image = store.load(&archive).unwrap().remove(0);
    assert_eq!(image.id, id);
    assert_eq!(
        image.names,
        ["docker.io/library/a:1", "docker.io/library/b:2"]
    );
}

#[test]
fn broken_images_are_refused_and_leave_nothing() {
    needs_root!("broken_images_are_refused_and_leave_nothing");
    let check = |change: Change, expect: &str| {
        let (dir, store, archive) = store_and_archive("app", "needle");
        rewrite(&archive, change);
        let error = store.load(&archive).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
        assert_eq!(store.list().unwrap(), []);
        for sub in ["layers", "tmp"] {
            assert_eq!(
                fs::read_dir(dir.path().join("store").join(sub))
                    .unwrap()
                    .count(),
                0
            );
        }
    };
    fn tampered(path: &str, mut bytes: Vec<u8>) -> Vec<(String, Vec<u8>)> {
        if serde_json::from_slice::<Value>(&bytes).is_err() {
            let at = bytes.windows(2).position(|w| w == b"ne").unwrap();
            bytes[at] = b'm';
        }
        vec![(path.to_owned(), bytes)]
    }
    check(tampered, "has digest sha256:");
    check(
        |path, bytes| {
            if path == "index.json" {
                Vec::new()
            } else {
                vec![(path.to_owned(), bytes)]
            }
        },
        "neither an OCI layout (index.json) nor a docker archive (manifest.json)",
    );
    check(
        |path, bytes| {
            let broken = path == "index.json";
            vec![(path.to_owned(), if broken { b"{".to_vec() } else { bytes })]
        },
        "index.json is malformed",
    );
    check(
        |path, bytes| {
            if serde_json::from_slice::<Value>(&bytes).is_err() {
                return Vec::new();
            }
            vec![(path.to_owned(), bytes)]
        },
        "it has no file blobs/sha256/",
    );
    let (_dir, store, archive) = store_and_archive("app", "x");
    fs::write(&archive, b"not an archive").unwrap();
    assert!(
        store
            .load(&archive)
            .unwrap_err()
            .to_string()
            .contains("not a tar archive")
    );
    fs::write(&archive, "a line of text\n".repeat(100)).unwrap();
    let told = store.load(&archive).unwrap_err().to_string();
    assert!(told.contains("not a tar archive"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(store.load(Path::new("/nowhere/at/all")).is_err());
}

#[test]
fn loads_of_one_image_at_once_agree() {
    needs_root!("loads_of_one_image_at_once_agree");
    let (dir, store, archive) = store_and_archive("app", "x");
    std::thread::scope(|scope| {
        let loads: Vec<_> = (0..4)
            .map(|_| {
                let store = ImageStore::open(&dir.path().join("store")).unwrap();
                let archive = &archive;
                scope.spawn(move || store.load(archive).unwrap().remove(0).id)
            })
            .collect();
        let ids: Vec<_> = loads.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(ids.iter().all(|id| *id == ids[0]));
    });
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(
        fs::read_dir(dir.path().join("store/tmp")).unwrap().count(),
        0
    );
}

#[test]
fn what_a_killed_load_left_is_cleared() {
    needs_root!("what_a_killed_load_left_is_cleared");
    let (dir, store, archive) = store_and_archive("app", "x");
    let left = dir.path().join("store/tmp/left/fs");
    fs::create_dir_all(&left).unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o500)).unwrap();
    store.load(&archive).unwrap();
    assert!(!left.exists());
}
