//! Namespaces of the real kernel.

use super::*;

/// Says so and is true when the test cannot run.
fn skipped(name: &str) -> bool {
    let skip = !nix::unistd::geteuid().is_root();
    if skip {
        println!("SKIPPED {name}: needs root");
    }
    skip
}

#[test]
fn a_new_namespace_is_another_one() {
    if skipped("a_new_namespace_is_another_one") {
        return;
    }
    let ours = NetNs::current().unwrap();
    let other = NetNs::anonymous().unwrap();
    assert_ne!(ours, other);
    assert_eq!(other.run(NetNs::current).unwrap().unwrap(), other);
    assert_eq!(
        NetNs::current().unwrap(),
        ours,
        "the calling thread has not moved"
    );
    assert_eq!(NetNs::open(other.path()).unwrap(), other);
}

#[test]
fn create_and_remove() {
    if skipped("create_and_remove") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("seaway-netns-{}", std::process::id()));
    let path = dir.join("sub/pod");
    let made = NetNs::create(&path).unwrap();
    assert_eq!(NetNs::open(&path).unwrap(), made);
    assert!(NetNs::create(&path).unwrap_err().is_exists());
    NetNs::remove(&path).unwrap();
    assert!(!path.exists());
    NetNs::remove(&path).unwrap();
    // A file that a reboot has left.
    fs::write(&path, "").unwrap();
    let error = NetNs::open(&path).unwrap_err();
    assert!(
        error.to_string().ends_with("the file is not a namespace"),
        "{error}"
    );
    NetNs::create(&path).unwrap();
    NetNs::remove(&path).unwrap();
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_panic_inside_is_an_error() {
    if skipped("a_panic_inside_is_an_error") {
        return;
    }
    let netns = NetNs::anonymous().unwrap();
    let error = netns.run(|| panic!("on purpose")).unwrap_err();
    assert!(
        error.to_string().ends_with("the work in there panicked"),
        "{error}"
    );
}
