//! The handle to a node's containers: where it keeps things, and what is done with sandboxes.

mod containers;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use linux::cgroup::{CONTROLLERS, Hierarchies};

use crate::client::{ANSWER_TIMEOUT, ask};
use crate::destroy;
use crate::error::{Error, Result};
use crate::image::ImageStore;
use crate::limits;
use crate::plan;
use crate::protocol::Request;
use crate::shim::start;
use crate::state::{self, Root, SandboxFile};
use crate::types::{SandboxSpec, SandboxStatus};
use crate::watch::Watch;

/// Where a runtime keeps its things.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// State directory: sandboxes, containers, their writable layers.
    pub root: PathBuf,
    /// Image store; several runtimes may share one.
    pub images: PathBuf,
    /// The `seaway-shim` program; beside the running program when absent.
    pub shim: Option<PathBuf>,
    /// cgroup under which the shims live (in `system/shims`); where the caller lives when empty.
    pub cgroup_root: String,
}

/// The handle to a node's containers. Cheap to clone; usable from many threads.
#[derive(Debug, Clone)]
pub struct Runtime {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) root: Root,
    pub(super) shim: PathBuf,
    pub(super) shim_cgroup: Option<String>,
    pub(super) images: ImageStore,
    pub(super) groups: Hierarchies,
}

impl Runtime {
    /// Opens (or begins) a state directory, and finds what an earlier runtime left there:
    /// containers whose shim lives go on, those whose shim died are reported as ended.
    ///
    /// # Errors
    /// A directory cannot be made, the shim program is missing, no cgroups are mounted.
    pub fn open(config: RuntimeConfig) -> Result<Self> {
        for dir in [config.root.join("events"), config.root.join("sandboxes")] {
            fs::create_dir_all(&dir).map_err(Error::path("make directory", &dir))?;
        }
        let root = config
            .root
            .canonicalize()
            .map_err(Error::path("find", &config.root))?;
        let shim = match config.shim {
            Some(path) => path,
            None => linux::process::sibling("seaway-shim")?,
        };
        if !shim.is_file() {
            return Err(Error::invalid(
                "shim",
                format!("no such program {}", shim.display()),
            ));
        }
        let groups = Hierarchies::detect()?;
        let there = plan::controllers(&groups);
        for name in CONTROLLERS {
            if !there.contains(&name) {
                tracing::warn!("no control groups for {name} here: such limits have no effect");
            }
        }
        let cgroup = config.cgroup_root.trim_end_matches('/');
        let inner = Inner {
            root: Root(root),
            shim,
            shim_cgroup: (!cgroup.is_empty()).then(|| format!("{cgroup}/system/shims")),
            images: ImageStore::open(&config.images)?,
            groups,
        };
        let runtime = Self {
            inner: Arc::new(inner),
        };
        for id in state::subdirs(&runtime.inner.root.sandboxes()) {
            destroy::settle(&runtime.inner.root, &id)?;
        }
        Ok(runtime)
    }

    /// The image store.
    pub fn images(&self) -> &ImageStore {
        &self.inner.images
    }

    /// Makes a sandbox: its cgroup and its shim with the pod's namespaces. One that is there and
    /// ready stays as it is; one whose shim died gets a new shim.
    ///
    /// # Errors
    /// A field cannot be used, the shim does not start, a cgroup or sysctl is refused.
    pub fn create_sandbox(&self, spec: &SandboxSpec) -> Result<()> {
        state::check_id("id", &spec.id)?;
        plan::sandbox::check(spec)?;
        let inner = &self.inner;
        let dir = inner.root.sandbox(&spec.id);
        let fresh = !dir.exists();
        let containers = dir.join("containers");
        let _lock = loop {
            fs::create_dir_all(&containers).map_err(Error::path("make directory", &containers))?;
            if let Some(lock) = state::lock(&dir)? {
                break lock;
            }
        };
        if state::living_shim(&dir)?.is_some() {
            return Ok(());
        }
        let made = self.make_sandbox(spec, &dir);
        if made.is_err() && fresh {
            // What is half made must not be taken for a sandbox; the first error is the one to tell.
            drop(destroy::sandbox(&inner.root, &inner.groups, &spec.id));
        }
        made?;
        state::announce(&inner.root, &spec.id)
    }

    /// Makes a sandbox or gives one a new shim, under its lock.
    fn make_sandbox(&self, spec: &SandboxSpec, dir: &Path) -> Result<()> {
        let inner = &self.inner;
        destroy::settle_locked(dir)?;
        let file = SandboxFile {
            spec: spec.clone(),
            created_at: Timestamp::now(),
        };
        state::write(&dir.join("sandbox.json"), &file)?;
        inner.groups.create(&spec.cgroup_parent)?;
        limits::write(&inner.groups, &spec.cgroup_parent, &spec.limits)?;
        start::shim(
            &inner.shim,
            &inner.groups,
            inner.shim_cgroup.as_deref(),
            dir,
            spec,
        )
    }

    /// Kills and removes every container of a sandbox, its namespaces, mounts, cgroup and files.
    /// Not there is fine.
    pub fn remove_sandbox(&self, id: &str) -> Result<()> {
        state::check_id("id", id)?;
        let dir = self.inner.root.sandbox(id);
        let Some(_lock) = state::lock(&dir)? else {
            return Ok(());
        };
        if state::living_shim(&dir)?.is_some() {
            let title = format!("remove sandbox {id}");
            // A shim that does not answer is killed below.
            drop(ask(&dir, &title, id, &Request::Shutdown, ANSWER_TIMEOUT));
        }
        destroy::sandbox(&self.inner.root, &self.inner.groups, id)
    }

    /// Every sandbox, in the order of their ids.
    pub fn sandboxes(&self) -> Result<Vec<SandboxStatus>> {
        let ids = state::subdirs(&self.inner.root.sandboxes());
        let found: Result<Vec<_>> = ids.iter().map(|id| self.find_sandbox(id)).collect();
        Ok(found?.into_iter().flatten().collect())
    }

    /// One sandbox.
    ///
    /// # Errors
    /// Not there; a state file cannot be read.
    pub fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        state::check_id("id", id)?;
        self.find_sandbox(id)?.ok_or_else(|| Error::sandbox(id))
    }

    fn find_sandbox(&self, id: &str) -> Result<Option<SandboxStatus>> {
        let dir = self.inner.root.sandbox(id);
        let Some(file) = state::read::<SandboxFile>(&dir.join("sandbox.json"))? else {
            return Ok(None);
        };
        let shim = state::living_shim(&dir)?;
        Ok(Some(SandboxStatus {
            spec: file.spec,
            ready: shim.is_some(),
            pid: shim.map(|s| s.pid),
            created_at: file.created_at,
        }))
    }

    /// Begins to watch for changes: containers that are made, start or end, sandboxes that come, go
    /// or lose their shim. Begin before the first look at [`Runtime::containers`], and nothing is
    /// missed.
    pub fn watch(&self) -> Result<Watch> {
        Watch::new(self.inner.root.clone())
    }
}
