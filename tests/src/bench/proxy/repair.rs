//! How long what somebody else does to the table of mode nftables lasts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use linux::nftables::{
    Batch, DataType, Element, Family, Monitor, Nftables, Notice, Set, Subject, TableRef, concat,
};

use super::lab::{Lab, VIP};
use crate::bench::ms;

/// Edits measured: in turn an element that is deleted and a chain whose rules are.
const EDITS: usize = 40;
/// A repair takes at most this.
const TIMEOUT: Duration = Duration::from_secs(30);
/// From one look at the notifications to the next.
const LOOK: Duration = Duration::from_micros(50);
/// A chain of ours, which every packet that arrives passes.
const CHAIN: &str = "prerouting";

/// Milliseconds from before each edit until the kernel has ours again.
///
/// # Errors
/// What was taken away does not come back.
pub(super) fn run(lab: &Lab) -> Result<Vec<f64>> {
    lab.on_node(|| {
        let mut nft = Nftables::open()?;
        let monitor = Monitor::open()?;
        monitor.ignore(&[nft.port()])?;
        let table = TableRef::new(Family::Ipv4, "seaway-proxy");
        let fields = [DataType::Ipv4, DataType::Protocol, DataType::Port];
        let services = Set::map("services", fields, [DataType::Mark]);
        let ip: std::net::Ipv4Addr = VIP.parse()?;
        let key = concat(&[&ip.octets(), &[6], &80_u16.to_be_bytes()]);
        let ours = nft.element(&table, &services, &key)?;
        let ours = ours.context("the service is not in the table")?;
        let rules = nft.rules(&table)?.len();
        let mut samples = Vec::new();
        for i in 0..EDITS {
            let mut batch = Batch::new();
            let of_element = i % 2 == 0;
            if of_element {
                batch.delete_elements(&table, &services, [&Element::new(key.clone())]);
            } else {
                batch.flush_chain(&table, CHAIN);
            }
            let start = Instant::now();
            nft.commit(&batch)?;
            wait(&monitor, of_element)?;
            samples.push(ms(start.elapsed()));
            let found = nft.element(&table, &services, &key)?;
            if found.as_ref() != Some(&ours) || nft.rules(&table)?.len() != rules {
                bail!("the repair is none: {found:?}");
            }
        }
        Ok(samples)
    })
}

/// Waits for the end of the transaction that makes elements, or rules.
fn wait(monitor: &Monitor, of_elements: bool) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let (mut made, mut done) = (false, false);
    while !done {
        monitor.drain(|seen| match seen {
            Notice::Edit(edit) if !edit.deletes => {
                made |= match edit.subject {
                    Subject::Elements(_) => of_elements,
                    Subject::Chain => !of_elements,
                    Subject::Table | Subject::Set => false,
                };
            }
            Notice::Done(_) => done |= made,
            Notice::Edit(_) | Notice::Lost => {}
        });
        if Instant::now() > deadline {
            bail!("an edit was not repaired");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
