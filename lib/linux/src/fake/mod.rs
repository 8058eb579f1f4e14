//! A host in memory that really applies changes, as far as plans can see them, and fails at step N
//! on request. For tests.
//!
//! What it leaves out: routes that the kernel makes for itself (connected networks, local
//! addresses), and everything that happens by time.

mod host;
mod world;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::netns::NsRef;
use world::World;

/// Several network namespaces of one pretended kernel. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeKernel {
    world: Arc<Mutex<World>>,
}

/// One network namespace of a [`FakeKernel`]: the fake behind the [`crate::Host`] door.
#[derive(Debug, Clone)]
pub struct FakeHost {
    world: Arc<Mutex<World>>,
    space: usize,
}

/// What changes are made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Failing {
    /// None.
    #[default]
    Never,
    /// The n-th change from here on (the first is 1) is refused; later ones work again.
    Once(usize),
    /// The n-th change and all after it are refused, as for a process that was killed.
    From(usize),
}

impl FakeKernel {
    /// A kernel without namespaces.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new namespace with only `lo`, which is down.
    pub fn add_netns(&self) -> FakeHost {
        let space = self.lock().add_space();
        FakeHost {
            world: Arc::clone(&self.world),
            space,
        }
    }

    /// Deletes a namespace and its links, as the kernel does when its last holder goes.
    pub fn delete_netns(&self, host: &FakeHost) {
        self.lock().delete_space(host.space);
    }

    /// Makes changes fail, counting from now.
    pub fn fail(&self, failing: Failing) {
        self.lock().fail(failing);
    }

    /// How many changes were asked for since the last [`FakeKernel::fail`] (or the start).
    pub fn changes(&self) -> usize {
        self.lock().changes()
    }

    /// Counts a change that is made elsewhere (a firewall, say), so that it can be made to fail too.
    ///
    /// # Errors
    /// Its turn to be refused has come.
    pub fn step(&self, op: &str) -> crate::Result<()> {
        self.lock().step(op)
    }

    /// Everything there is, as text: equal texts are equal states.
    pub fn dump(&self) -> String {
        self.lock().to_string()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeHost {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reference of this namespace.
    pub fn reference(&self) -> NsRef {
        NsRef(i32::try_from(self.space).unwrap_or(i32::MAX))
    }

    /// Gives a setting a value from outside, as if the kernel had it.
    pub fn preset_sysctl(&self, key: &str, value: &str) {
        self.lock()
            .space(self.space)
            .sysctls
            .insert(key.to_owned(), value.to_owned());
    }
}

#[cfg(test)]
mod tests;
