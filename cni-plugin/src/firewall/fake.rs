//! A firewall in memory, whose changes count and fail with those of the pretended kernel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use linux::Result;
use linux::fake::FakeKernel;

use super::{Entries, Firewall, Forward, Tag, Whose};

/// Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct FakeFirewall {
    kernel: FakeKernel,
    entries: Arc<Mutex<BTreeMap<Tag, Entries>>>,
}

impl FakeFirewall {
    pub(crate) fn new(kernel: &FakeKernel) -> Self {
        Self {
            kernel: kernel.clone(),
            entries: Arc::default(),
        }
    }

    /// What is there, a line an attachment.
    pub(crate) fn dump(&self) -> Vec<String> {
        self.entries
            .lock()
            .unwrap()
            .values()
            .map(ToString::to_string)
            .collect()
    }
}

impl Firewall for FakeFirewall {
    fn put(&mut self, entries: &Entries) -> Result<()> {
        self.kernel.step(&format!("make {entries}"))?;
        self.entries
            .lock()
            .unwrap()
            .insert(entries.tag.clone(), entries.clone());
        Ok(())
    }

    fn remove(&mut self, whose: &Whose) -> Result<()> {
        let mut entries = self.entries.lock().unwrap();
        if entries.keys().any(|tag| whose.holds(tag)) {
            self.kernel.step("remove entries")?;
            entries.retain(|tag, _| !whose.holds(tag));
        }
        Ok(())
    }

    fn missing(&mut self, entries: &Entries) -> Result<Vec<String>> {
        let there = self.entries.lock().unwrap().get(&entries.tag) == Some(entries);
        Ok(if there {
            vec![]
        } else {
            vec!["entries are missing".into()]
        })
    }

    fn forget_udp(&mut self, _ports: &[Forward]) -> Result<()> {
        self.kernel.step("forget UDP connections")
    }
}
