//! Rules of iptables and of nftables.

use super::*;

const NAT: &str = "# Generated
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:SEAWAY-POSTRTG - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -m comment --comment \"seaway masquerade\" -j SEAWAY-POSTRTG
-A SEAWAY-POSTRTG -j RETURN
COMMIT
";

#[test]
fn chains_of_iptables() {
    let cidrs = settings("/x".into()).cluster_cidrs;
    let chains = firewall::chains(linux::iptables::Family::V4, &cidrs);
    let [nat, forward] = chains.as_slice() else {
        panic!()
    };
    // Nothing there yet.
    expect![[r#"
        *nat
        :SEAWAY-POSTRTG - [0:0]
        -A SEAWAY-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
        -A SEAWAY-POSTRTG -s 10.244.0.0/16 -d 10.244.0.0/16 -j RETURN
        -A SEAWAY-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
        -A POSTROUTING -m comment --comment "seaway masquerade" -j SEAWAY-POSTRTG
        COMMIT
    "#]]
    .assert_eq(&firewall::text(nat, &Saved::of(nat, ""), None).unwrap());
    let good = ["-A SEAWAY-POSTRTG -j RETURN".to_owned()];
    // As it was left; then with changed rules, without its call, called twice.
    let of = |text: &str| firewall::text(nat, &Saved::of(nat, text), Some(&good));
    assert_eq!(of(NAT), None);
    assert!(of(&NAT.replace("-j RETURN", "-j ACCEPT")).is_some());
    let call = NAT.lines().find(|l| l.contains("seaway masq")).unwrap();
    let uncalled = of(&NAT.replace(call, "")).unwrap();
    assert!(uncalled.contains(call), "{uncalled}");
    let twice = of(&NAT.replace(call, &format!("{call}\n{call}"))).unwrap();
    assert!(
        twice.contains(&call.replace("-A ", "-D ")) && !twice.contains(call),
        "{twice}"
    );
    // FORWARD lets pass already, or not.
    let closed = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
    let of = |text: &str| firewall::text(forward, &Saved::of(forward, text), None);
    assert_eq!(of(&closed.replace("DROP", "ACCEPT")), None);
    expect![[r#"
        *filter
        :SEAWAY-FWD - [0:0]
        -A SEAWAY-FWD -s 10.244.0.0/16 -j ACCEPT
        -A SEAWAY-FWD -d 10.244.0.0/16 -j ACCEPT
        -A FORWARD -m comment --comment "seaway pods" -j SEAWAY-FWD
        COMMIT
    "#]]
    .assert_eq(&of(closed).unwrap());
    expect![[r#"
        *nat
        :SEAWAY-POSTRTG - [0:0]
        -D POSTROUTING -m comment --comment "seaway masquerade" -j SEAWAY-POSTRTG
        -X SEAWAY-POSTRTG
        COMMIT
    "#]]
    .assert_eq(&firewall::text_to_remove(nat, &Saved::of(nat, NAT)).unwrap());
    assert_eq!(firewall::text_to_remove(nat, &Saved::of(nat, "")), None);
    let v6 = firewall::chains(linux::iptables::Family::V6, &cidrs);
    assert!(
        v6[0]
            .rules
            .last()
            .unwrap()
            .contains("! -d ff00::/8 -j MASQUERADE")
    );
    assert!(firewall::chains(linux::iptables::Family::V6, &cidrs[..1]).is_empty());
}

#[test]
fn the_table_of_nftables() {
    let cidrs = settings("/x".into()).cluster_cidrs;
    let plan = nft::plan(Family::V4, &cidrs).unwrap();
    expect![[r#"
        table ip seaway-overlay
        meta bitwise cmp immediate: the proxy masquerades this itself #25d902a8ea21a171
        payload bitwise cmp payload bitwise cmp immediate: 10.244.0.0/16 to 10.244.0.0/16 stays within #431b6469be34bb22
        payload bitwise cmp payload bitwise cmp masq: 10.244.0.0/16 leaves #4f4b35a1359d698a
    "#]].assert_eq(&plan.words());
    let v6 = nft::plan(Family::V6, &cidrs).unwrap();
    expect![[r#"
        table ip6 seaway-overlay
        meta bitwise cmp immediate: the proxy masquerades this itself #25d902a8ea21a171
        payload bitwise cmp payload bitwise cmp immediate: fd00:10:244::/56 to fd00:10:244::/56 stays within #ba991c599757a656
        payload bitwise cmp payload bitwise cmp masq: fd00:10:244::/56 leaves #4488a5e7c4bb0808
    "#]].assert_eq(&v6.words());
    assert_eq!(nft::plan(Family::V6, &cidrs[..1]), None);
    // As it was made, and not.
    let listed = |rules: &[linux::nftables::Rule]| -> Vec<linux::nftables::ListedRule> {
        let rules = rules.iter();
        let listed = rules.map(|rule| linux::nftables::ListedRule {
            chain: "postrouting".into(),
            handle: 7,
            comment: rule.comment.clone(),
        });
        listed.collect()
    };
    let chain = linux::nftables::ListedChain {
        name: "postrouting".into(),
        is_base: true,
        drops: false,
    };
    let chains = std::slice::from_ref(&chain);
    assert!(plan.is_there(chains, &listed(&plan.rules)));
    assert!(!plan.is_there(&[], &listed(&plan.rules)));
    assert!(!plan.is_there(chains, &listed(&plan.rules[1..])));
    assert!(!plan.is_there(chains, &listed(&v6.rules)));
    let closed = linux::nftables::ListedChain {
        drops: true,
        ..chain.clone()
    };
    assert!(!plan.is_there(&[closed], &listed(&plan.rules)));
}
