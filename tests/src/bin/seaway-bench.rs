//! The benchmark program behind `cargo xtask bench`.

#![expect(clippy::print_stdout, reason = "figures go to standard output")]

use anyhow::{Result, bail};
use seaway_tests::bench::{Figure, cluster, cni, ebpf, ipvs, overlay, proxy};

type Bench = (&'static str, fn() -> Result<Vec<Figure>>);

const BENCHES: &[Bench] = &[
    ("cni", cni::run),
    ("overlay", overlay::run),
    ("proxy", proxy::run),
    ("ebpf", ebpf::run),
    ("ebpf-start", ebpf::first_starts),
    ("ebpf-xdp", ebpf::before_stack),
    ("ipvs", ipvs::run),
    ("cluster", cluster::run),
];

fn main() -> Result<()> {
    let mut args: Vec<_> = std::env::args().skip(1).collect();
    let json = args.iter().any(|a| a == "--json");
    args.retain(|a| a != "--json");
    let wanted = args.first();
    if let Some(name) = wanted.filter(|w| BENCHES.iter().all(|(name, _)| name != w)) {
        let names: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        bail!("no benchmark {name}; there are: {}", names.join(", "));
    }
    if !json {
        println!("{}", Figure::head());
    }
    for (_, run) in BENCHES
        .iter()
        // With a hyphen: a part of another one.
        .filter(|(name, _)| wanted.map_or(!name.contains('-'), |w| w == name))
    {
        for figure in run()? {
            println!(
                "{}",
                if json {
                    figure.json().to_string()
                } else {
                    figure.line()
                }
            );
        }
    }
    Ok(())
}
