use std::sync::Arc;

use super::*;
use crate::kube_api::fake::FakeApi;
use crate::testing::pod;

#[tokio::test]
async fn volumes_are_made_updated_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let api = FakeApi::default();
    let set = |text: &str| {
        let data = BTreeMap::from([("k".to_owned(), text.as_bytes().to_vec())]);
        api.set(Kind::ConfigMap, "cm", Some(Arc::new(data)));
    };
    set("one");
    let p = pod(
        "p: {volumes: [{name: e, emptyDir: {}}, {name: c, configMap: {name: cm}},
         {name: t, projected: {sources: [{serviceAccountToken: {path: token}}]}}, {name: h, hostPath: {path: /proc, type: Directory}}]}",
    );
    let prepare = || prepare(&api, dir.path(), &p, downward::Facts::default());
    let volumes = prepare().await.unwrap();
    let text =
        |name: &str, file: &str| fs::read_to_string(volumes.paths[name].path.join(file)).unwrap();
    assert_eq!(text("c", "k"), "one");
    assert_eq!(text("t", "token"), "token-of-default");
    assert_eq!(volumes.paths["h"].path, Path::new("/proc"));
    assert!(volumes.paths["c"].read_only && !volumes.paths["e"].read_only);
    assert!(volumes.refresh_at.unwrap() > Timestamp::now());
    fs::write(volumes.paths["e"].path.join("mine"), "kept").unwrap();
    set("two");
    prepare().await.unwrap();
    assert_eq!(text("c", "k"), "two");
    assert_eq!(text("e", "mine"), "kept");
    remove(dir.path(), "uid-p").unwrap();
    assert!(!pod_dir(dir.path(), "uid-p").exists());
    let below = |m: &linux::mount::Mount| m.target.starts_with(dir.path());
    assert!(!linux::mount::mounts().unwrap().iter().any(below));
}

#[tokio::test]
async fn failures_name_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let api = FakeApi::default();
    for (volume, error) in [
        ("configMap: {name: no}", "configmap \"no\" not found"),
        (
            "hostPath: {path: /proc, type: Socket}",
            "hostPath type check failed: /proc is not a Socket",
        ),
        (
            "nfs: {server: a, path: /b}",
            "this kind of volume is not supported",
        ),
    ] {
        let p = pod(&format!("p: {{volumes: [{{name: v, {volume}}}]}}"));
        let result = prepare(&api, dir.path(), &p, downward::Facts::default()).await;
        let expect = format!("MountVolume.SetUp failed for volume \"v\" : {error}");
        assert_eq!(result.unwrap_err(), expect);
    }
}
