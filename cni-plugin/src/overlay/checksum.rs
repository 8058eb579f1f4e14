//! Kernels that spoil checksums inside VXLAN. Pure.
//!
//! UDP encapsulated packets that were masqueraded with random ports left the host with a wrong
//! checksum when the device was to fill it in, and were dropped by the receiver: connections through
//! a service hung for 63 seconds (kubernetes#88986, flannel#1279). Mended by "netfilter: nat: never
//! update the UDP checksum when it's 0" in Linux 5.7, and in 5.6.13, 5.4.41 and 4.19.123.

/// Whether a kernel of this release (`uname -r`) spoils checksums. What cannot be read does not.
pub fn is_broken_by_kernel(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        return false;
    };
    let patch = numbers.next().unwrap_or(0);
    match (major, minor) {
        (5, 6) => patch < 13,
        (5, 4) => patch < 41,
        (4, 19) => patch < 123,
        version => version < (5, 7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (release, broken) in [
            ("6.1.0-13-amd64", false),
            ("6.18.3", false),
            ("5.10.0", false),
            ("5.7.0-rc1", false),
            ("5.6.13", false),
            ("5.6.12-arch1-1", true),
            ("5.5.19", true),
            ("5.4.41", false),
            ("5.4.40", true),
            ("5.4", true),
            ("5.0.0-23-generic", true),
            ("4.19.123", false),
            ("4.19.0-9-amd64", true),
            ("4.18.0-193.el8.x86_64", true),
            ("3.10.0", true),
            ("", false),
            ("custom", false),
        ] {
            assert_eq!(is_broken_by_kernel(release), broken, "{release}");
        }
    }
}
