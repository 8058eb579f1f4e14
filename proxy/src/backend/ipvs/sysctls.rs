//! Kernel settings that this mode needs, by kernel.

use api::cidr::Family;
use linux::{Host, Result};

use super::Options;

/// A kernel's version, without its patch level.
pub type Version = (u32, u32);

/// Reads a release such as `6.12.95+deb12-cloud-amd64`.
pub fn version(release: &str) -> Option<Version> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Kernels in which a client's port that comes again costs a second (kubernetes/kubernetes#81775):
/// before, the setting is not there; after, the kernel does right by itself.
const REUSE_DELAYS: std::ops::RangeInclusive<Version> = (4, 1)..=(5, 8);

/// Settings and their values for one family.
pub fn wanted(
    family: Family,
    options: &Options,
    kernel: Option<Version>,
) -> Vec<(&'static str, &'static str)> {
    let mut all = vec![
        // Masquerading and the connection states of our rules need it.
        ("net/ipv4/vs/conntrack", "1"),
        // A connection to a destination that is gone begins anew with the next packet.
        ("net/ipv4/vs/expire_nodest_conn", "1"),
        // A client does not stay with a destination of weight 0.
        ("net/ipv4/vs/expire_quiescent_template", "1"),
    ];
    if kernel.is_some_and(|kernel| REUSE_DELAYS.contains(&kernel)) {
        all.push(("net/ipv4/vs/conn_reuse_mode", "0"));
    }
    match family {
        Family::V4 => {
            all.push(("net/ipv4/ip_forward", "1"));
            if options.strict_arp {
                all.push(("net/ipv4/conf/all/arp_ignore", "1"));
                all.push(("net/ipv4/conf/all/arp_announce", "2"));
            }
        }
        Family::V6 => all.push(("net/ipv6/conf/all/forwarding", "1")),
    }
    all
}

/// Makes the settings of one family that are not as they should be.
///
/// # Errors
/// The kernel's refusal.
pub fn ensure(host: &mut impl Host, family: Family, options: &Options) -> Result<()> {
    let release = host.sysctl("kernel/osrelease")?;
    for (key, value) in wanted(family, options, version(&release)) {
        host.ensure_sysctl(key, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use linux::fake::{FakeHost, FakeKernel};

    use super::*;

    #[test]
    fn by_kernel() {
        let has = |release: &str, key: &str| {
            let options = Options::default();
            let all = wanted(Family::V4, &options, version(release));
            all.iter().any(|(of, _)| *of == key)
        };
        let reuse = "net/ipv4/vs/conn_reuse_mode";
        for (release, expect) in [
            ("3.10.0-1160.el7", false),
            ("4.0.9", false),
            ("4.1.0", true),
            ("4.19.0-27-amd64", true),
            ("5.8.18", true),
            ("5.9.0", false),
            ("6.12.95+deb12-cloud-amd64", false),
            ("nonsense", false),
        ] {
            assert_eq!(has(release, reuse), expect, "{release}");
            assert!(has(release, "net/ipv4/vs/conntrack"));
            assert!(!has(release, "net/ipv4/conf/all/arp_ignore"));
        }
        let strict = Options {
            strict_arp: true,
            ..Options::default()
        };
        let all = wanted(Family::V4, &strict, None);
        assert!(all.contains(&("net/ipv4/conf/all/arp_ignore", "1")));
        assert!(all.contains(&("net/ipv4/conf/all/arp_announce", "2")));
    }

    /// A kernel of `release` as it is before anybody has set anything.
    fn kernel(release: &str) -> FakeHost {
        let host = FakeKernel::new().add_netns();
        host.preset_sysctl("kernel/osrelease", release);
        for key in [
            "conntrack",
            "expire_nodest_conn",
            "expire_quiescent_template",
        ] {
            host.preset_sysctl(&format!("net/ipv4/vs/{key}"), "0");
        }
        // Not there before 4.1.
        if version(release) >= Some((4, 1)) {
            host.preset_sysctl("net/ipv4/vs/conn_reuse_mode", "1");
        }
        host
    }

    #[test]
    fn in_the_kernel() {
        let strict = Options {
            strict_arp: true,
            ..Options::default()
        };
        for (release, reuse) in [
            ("3.10.0-1160.el7", None),
            ("4.19.0-27-amd64", Some("0")),
            ("5.8.18", Some("0")),
            ("5.9.0", Some("1")),
            ("6.12.95+deb12-cloud-amd64", Some("1")),
        ] {
            for (options, arp) in [
                (Options::default(), ["0", "0"]),
                (strict.clone(), ["1", "2"]),
            ] {
                let mut host = kernel(release);
                for family in Family::BOTH {
                    ensure(&mut host, family, &options).unwrap();
                    // Again: nothing is left to do.
                    ensure(&mut host, family, &options).unwrap();
                }
                let mut read = |key: &str| host.sysctl(&format!("net/{key}")).ok();
                for key in [
                    "conntrack",
                    "expire_nodest_conn",
                    "expire_quiescent_template",
                ] {
                    assert_eq!(
                        read(&format!("ipv4/vs/{key}")).as_deref(),
                        Some("1"),
                        "{key}"
                    );
                }
                let found = read("ipv4/vs/conn_reuse_mode");
                assert_eq!(found.as_deref(), reuse, "{release}");
                let found = ["arp_ignore", "arp_announce"]
                    .map(|key| read(&format!("ipv4/conf/all/{key}")).unwrap());
                assert_eq!(found, arp);
                assert_eq!(read("ipv4/ip_forward").as_deref(), Some("1"));
                assert_eq!(read("ipv6/conf/all/forwarding").as_deref(), Some("1"));
            }
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut host = FakeKernel::new().add_netns();
        host.preset_sysctl("kernel/osrelease", "6.1.0");
        let error = ensure(&mut host, Family::V4, &Options::default()).unwrap_err();
        assert!(
            error.to_string().contains("net/ipv4/vs/conntrack"),
            "{error}"
        );
    }
}
