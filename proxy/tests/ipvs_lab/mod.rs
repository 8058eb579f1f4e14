//! A lab whose proxy is in mode ipvs.

use linux::NetNs;
use linux::ipvs::Ipvs;

use crate::lab::Lab;

/// `None`, said aloud, where the kernel cannot.
pub(crate) fn ipvs_lab(test: &str) -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: needs root");
        return None;
    }
    match NetNs::anonymous().unwrap().run(Ipvs::open).unwrap() {
        Ok(_) => Some(Lab::new(test)?.with(&["--mode", "ipvs"])),
        Err(e) if e.is_not_found() => {
            println!("SKIPPED {test}: this kernel has no ip_vs");
            None
        }
        Err(e) => panic!("{e}"),
    }
}
