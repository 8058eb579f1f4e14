//! The cluster with its proxies in mode ipvs, on a kernel that has it: `seaway up` proves the sample,
//! `seaway down` ends it. `cargo xtask test --only vm` runs this in a guest.

use seaway_tests::cluster::Cluster;

/// What `up` proves in every mode.
const FACTS_MIN: usize = 14;

#[test]
fn up_in_mode_ipvs_proves_the_sample() {
    if let Err(missing) = linux::ipvs::Ipvs::open() {
        println!("SKIPPED up_in_mode_ipvs_proves_the_sample: {missing}");
        return;
    }
    let cluster = Cluster::start_with("ipvs", 249, 16445, &["--proxy-mode", "ipvs"]).unwrap();
    println!("{}", cluster.said);
    let facts = cluster
        .said
        .lines()
        .filter(|l| l.trim_start().starts_with("ok "));
    assert!(facts.count() >= FACTS_MIN);
    for node in 1..=3 {
        let log = cluster
            .dir()
            .join(format!("nodes/node-{node}/logs/proxy.log"));
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains("mode ipvs"), "{log}");
    }
    cluster.seaway("down").unwrap();
    assert!(!cluster.dir().exists());
}
