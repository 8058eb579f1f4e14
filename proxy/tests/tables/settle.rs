//! When everything of a case is in the kernel, in mode ipvs: what comes is there before the marker's
//! address, but what goes goes after it, and virtual servers wait for their last connection.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use api::cidr::Family;
use linux::ipvs::Ipvs;
use linux::patience::scaled;
use proxy::backend::ipvs::filter::{self, Filter};
use proxy::backend::ipvs::sets::{Element, SetId};

use super::lab::FENCE_PORT;
use super::site::Site;

/// How long connections may end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until no virtual server is left that only drains, and no earlier marker than `markers` is in the sets. Entries that go
/// are the last that is written, so all else has gone before.
#[track_caller]
pub(crate) fn wait_for_what_goes(node: &Site, markers: &[SocketAddr]) {
    let deadline = Instant::now() + scaled(PATIENCE);
    let families: BTreeSet<Family> = markers.iter().map(|to| Family::of(to.ip())).collect();
    // Opened once, since a filter is looked for by making a table.
    let (mut filters, mut ipvs) = node.run(move || {
        let open = |family: &Family| filter::open(*family).unwrap();
        let filters: Vec<Box<dyn Filter>> = families.iter().map(open).collect();
        (filters, Ipvs::open().unwrap())
    });
    while let Some(left) = left(&mut filters, &mut ipvs, markers) {
        assert!(Instant::now() < deadline, "{left}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What is still to go, if anything.
fn left(
    filters: &mut [Box<dyn Filter>],
    ipvs: &mut Ipvs,
    markers: &[SocketAddr],
) -> Option<String> {
    for filter in filters {
        for (set, element) in filter.entries().unwrap() {
            if let (SetId::Frontends, Element::Key(key)) = (set, element)
                && key.port == FENCE_PORT
                && !markers.contains(&SocketAddr::new(key.ip, key.port))
            {
                return Some(format!("{key:?} stays in the set"));
            }
        }
    }
    for server in ipvs.servers().unwrap() {
        // Behind a server that stays, those that drain get no new connection.
        let all = ipvs.destinations(server.id).unwrap();
        if !all.is_empty() && all.iter().all(|to| to.weight == 0) {
            return Some(format!("{} is there for {all:?}", server.id));
        }
    }
    None
}
