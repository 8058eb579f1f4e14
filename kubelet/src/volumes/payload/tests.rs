use super::*;
use crate::testing::pod;

struct Fixed(downward::Facts);

impl Lookup for Fixed {
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        let data = [("a", "1"), ("b", "2")];
        let data = data.map(|(k, v)| (k.to_owned(), v.as_bytes().to_vec()));
        (name == "cm").then(|| BTreeMap::from(data))
    }
    fn secret(&self, _: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        None
    }
    fn facts(&self) -> &downward::Facts {
        &self.0
    }
}

/// `path=text:mode` of each file of the pod's only volume.
fn files(volume: &str) -> Result<String, String> {
    let p = pod(&format!("p: {{volumes: [{{name: v, {volume}}}]}}"));
    let volume = &pod::spec(&p).volumes.as_ref().unwrap()[0];
    let (sources, mode) = sources(volume).unwrap();
    let tokens = BTreeMap::from([("token".to_owned(), "T".to_owned())]);
    let lookup = Fixed(downward::Facts::default());
    let files = payload(&p, &sources, mode, &lookup, &tokens).map_err(|e| e.to_string())?;
    let show = |(path, f): (&String, &FileData)| {
        format!("{path}={}:{:o}", String::from_utf8_lossy(&f.bytes), f.mode)
    };
    Ok(files.iter().map(show).collect::<Vec<_>>().join(" "))
}

#[test]
fn rows() {
    for (volume, expect) in [
        ("configMap: {name: cm}", "a=1:644 b=2:644"),
        (
            "configMap: {name: cm, defaultMode: 256, items: [{key: b, path: x/y}]}",
            "x/y=2:400",
        ),
        ("configMap: {name: no, optional: true}", ""),
        (
            "downwardAPI: {items: [{path: n, fieldRef: {fieldPath: metadata.name}}]}",
            "n=p:644",
        ),
        (
            "projected: {sources: [{serviceAccountToken: {path: token}}, {configMap: {name: cm, items: [{key: a, path: ca, mode: 288}]}}]}",
            "ca=1:440 token=T:644",
        ),
    ] {
        assert_eq!(files(volume).as_deref(), Ok(expect), "{volume}");
    }
    for (volume, error) in [
        ("configMap: {name: no}", "configmap \"no\" not found"),
        ("secret: {secretName: s}", "secret \"s\" not found"),
        (
            "configMap: {name: cm, items: [{key: z, path: z}]}",
            "configmap \"cm\" has no key \"z\"",
        ),
        (
            "configMap: {name: cm, items: [{key: a, path: \"../x\"}]}",
            "path \"../x\" must be relative and stay in the volume",
        ),
    ] {
        assert_eq!(files(volume).unwrap_err(), error, "{volume}");
    }
}

#[test]
fn references_are_found_everywhere() {
    let p = pod(
        "p: {volumes: [{name: v, projected: {sources: [{secret: {name: s1}}]}}], containers: [{name: c, image: i,
         envFrom: [{configMapRef: {name: c1}}], env: [{name: A, valueFrom: {secretKeyRef: {name: s2, key: k}}}]}]}",
    );
    let expect = [
        (Kind::ConfigMap, "c1".to_owned()),
        (Kind::Secret, "s1".to_owned()),
        (Kind::Secret, "s2".to_owned()),
    ];
    assert_eq!(references(&p), expect);
}
