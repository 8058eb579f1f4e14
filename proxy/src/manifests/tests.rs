use super::*;

#[track_caller]
fn check(text: &str, objects: usize, expect: &[&str]) {
    let (found, complaints) = parse_documents(text);
    assert_eq!(complaints, expect);
    assert_eq!(found.len(), objects);
}

#[test]
fn documents_and_lists() {
    check("", 0, &[]);
    check("---\n# nothing\n---\n", 0, &[]);
    check(
        "kind: Service\nmetadata: {name: a}\n---\nkind: Pod\nmetadata: {name: b}\n",
        1,
        &[],
    );
    check(
        r#"{"kind": "List", "items": [{"kind": "Service", "metadata": {"name": "a"}}]}"#,
        1,
        &[],
    );
    check(
        "kind: ServiceList\nitems: [{metadata: {name: a}}, {metadata: {name: b}}]",
        2,
        &[],
    );
}

#[test]
fn a_bad_document_does_not_hide_others() {
    check(
        "kind: Service\nmetadata: {name: a}\nspec: {ports: [{port: x}]}\n---\nkind: Service\nmetadata: {name: b}\n",
        1,
        &[
            "document 1: Service \"a\": spec.ports[0].port: invalid type: string \"x\", expected i64",
        ],
    );
    check(
        "kind: Service\nmetadata: {}\n",
        0,
        &["document 1: Service \"\": metadata.name: is missing"],
    );
    check(
        "metadata: {name: x}\n",
        0,
        &["document 1:  \"x\": kind: is missing"],
    );
    let (found, complaints) = parse_documents("a: [\n---\nkind: Service\nmetadata: {name: b}\n");
    assert_eq!((found.len(), complaints.len()), (1, 1));
}

#[test]
fn defaults_of_the_api_server() {
    let text = "kind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nports: [{port: 80}]\n";
    let (found, _) = parse_documents(text);
    let Object::Slice(slice) = &found[0] else {
        panic!("no slice")
    };
    assert_eq!(slice.metadata.namespace, "default");
    assert_eq!(slice.ports[0].name.as_deref(), Some(""));
}
