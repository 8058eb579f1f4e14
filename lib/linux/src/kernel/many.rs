//! Many replacements at once.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as M;

use super::Kernel;
use crate::error::Result;
use crate::host::Replacement;
use crate::{fdb, neigh, route};

impl Kernel {
    /// As [`crate::Host::replace_many`].
    pub(super) fn make_many(&mut self, entries: &[Replacement<'_>]) -> Vec<usize> {
        let all = 0..entries.len();
        let mut messages = Vec::with_capacity(entries.len());
        for entry in entries {
            match self.replacement(entry) {
                Ok(message) => messages.push((message, NLM_F_CREATE | NLM_F_REPLACE)),
                // No such link: the single functions look again.
                Err(_) => return all.collect(),
            }
        }
        let op = format_args!("set {} entries", entries.len());
        self.netlink
            .change_many(op, messages)
            .unwrap_or_else(|_again| all.collect())
    }

    /// One of many replacements as a message.
    fn replacement(&mut self, entry: &Replacement<'_>) -> Result<M> {
        Ok(match entry {
            Replacement::Neigh(link, neigh) => {
                M::NewNeighbour(neigh::message(self.index(link)?, neigh))
            }
            Replacement::Fdb(link, entry) => {
                M::NewNeighbour(fdb::message(self.index(link)?, entry))
            }
            Replacement::Route(route) => {
                let oif = route.dev.as_ref().map(|dev| self.index(dev)).transpose()?;
                M::NewRoute(route::message(route, oif))
            }
        })
    }
}
