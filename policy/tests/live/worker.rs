//! Threads that live in a network namespace and do there what they are told.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use linux::NetNs;

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// A thread in a namespace, with something of its own.
pub(crate) struct Worker<T> {
    jobs: Option<Sender<Job<T>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: 'static> Worker<T> {
    /// Enters the namespace and makes its own there.
    pub(crate) fn start(netns: &NetNs, make: impl FnOnce() -> T + Send + 'static) -> Self {
        let netns = NetNs::open(netns.path()).unwrap();
        let (jobs, todo) = channel::<Job<T>>();
        let thread = std::thread::spawn(move || {
            let work = move || {
                let mut own = make();
                for job in todo {
                    job(&mut own);
                }
            };
            netns.run(work).unwrap();
        });
        Self {
            jobs: Some(jobs),
            thread: Some(thread),
        }
    }

    /// Has something done; the answer comes through the function that is returned.
    pub(crate) fn begin<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Box<dyn FnOnce() -> R> {
        let (answer, answers) = channel();
        let job: Job<T> = Box::new(move |own| drop(answer.send(job(own))));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        Box::new(move || answers.recv().unwrap())
    }

    /// Has something done, and waits for it.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> R {
        self.begin(job)()
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
