//! What `init` writes, and that writing it again changes nothing.

use std::collections::BTreeMap;
use std::fs;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::*;

fn request() -> Request {
    Request {
        server: Some("https://172.31.250.1:6443".into()),
        default_server: "https://unused".into(),
        names: vec!["172.31.250.1".into(), "FD00::1".into(), "10.96.0.1".into()],
        nodes: vec![Node {
            name: "n1".into(),
            ips: vec!["172.31.250.11".parse().unwrap()],
        }],
    }
}

fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(snapshot(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

fn subject(path: &Path) -> (String, Vec<String>) {
    subject_of(&CertificateDer::from_pem_file(path).unwrap()).unwrap()
}

#[test]
fn init_writes_every_file_once() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &request()).unwrap();
    let first = snapshot(dir.path());
    let names: Vec<String> = first
        .keys()
        .map(|path| path.strip_prefix(dir.path()).unwrap().display().to_string())
        .collect();
    assert_eq!(
        names.join(" "),
        "admin.kubeconfig nodes/n1/ca.crt nodes/n1/kubelet.crt nodes/n1/kubelet.key \
         nodes/n1/kubelet.kubeconfig nodes/n1/overlay.kubeconfig nodes/n1/proxy.kubeconfig \
         pki/apiserver.crt pki/apiserver.key pki/ca.crt pki/ca.key pki/kubelet-client.crt \
         pki/kubelet-client.key pki/sa.key pki/sa.pub"
    );
    init(dir.path(), &request()).unwrap();
    assert_eq!(first, snapshot(dir.path()));
    // `run` knows less than `init` did, and must not take anything back.
    let less = Request {
        default_server: "https://other".into(),
        ..Request::default()
    };
    init(dir.path(), &less).unwrap();
    assert_eq!(first, snapshot(dir.path()));
    let node = subject(&dir.path().join("nodes/n1/kubelet.crt"));
    assert_eq!(node, ("system:node:n1".into(), vec!["system:nodes".into()]));
}

#[test]
fn a_new_name_renews_only_the_server_and_keeps_its_old_names() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &request()).unwrap();
    let before = snapshot(dir.path());
    let mut more = request();
    more.names = vec!["api.example".into()];
    init(dir.path(), &more).unwrap();
    let after = snapshot(dir.path());
    let changed: Vec<_> = before
        .keys()
        .filter(|path| before[*path] != after[*path])
        .collect();
    let cert = dir.path().join("pki/apiserver.crt");
    assert_eq!(changed, [&cert, &dir.path().join("pki/apiserver.key")]);
    let names = cert::facts(&after[&cert]).unwrap().names;
    for name in [
        "api.example",
        "172.31.250.1",
        "fd00::1",
        "kubernetes.default.svc",
    ] {
        assert!(names.contains(&name.to_owned()), "{name} in {names:?}");
    }
}

#[test]
fn a_new_server_address_rewrites_the_kubeconfigs() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &request()).unwrap();
    let moved = Request {
        server: Some("https://[fd00::1]:6443".into()),
        ..request()
    };
    init(dir.path(), &moved).unwrap();
    let text = fs::read_to_string(dir.path().join("admin.kubeconfig")).unwrap();
    assert!(text.contains("server: https://[fd00::1]:6443\n"));
}

#[test]
fn a_broken_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &request()).unwrap();
    fs::write(dir.path().join("pki/ca.key"), "no key").unwrap();
    let message = init(dir.path(), &request()).unwrap_err().to_string();
    assert!(message.contains("pki/ca.key: "), "{message}");
}
