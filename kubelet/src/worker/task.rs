//! Work beside the worker: tasks that end in a message, with the runtime's facts read after them.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use super::{Done, Facts, Msg, Outcome, Worker, messages};
use crate::context::{Context, blocking};
use crate::pod::PodId;
use crate::soft::{Failure, Step};

/// First and longest wait before a failed step is tried again.
const RETRY_FIRST: SignedDuration = SignedDuration::from_millis(500);
const RETRY_MAX: SignedDuration = SignedDuration::from_secs(30);

impl Worker {
    /// Does blocking `work` beside the worker and reads the facts after it.
    pub(super) fn spawn(&self, work: impl FnOnce(&Context) -> Outcome + Send + 'static) {
        let (ctx, pod, counter) = (self.ctx.clone(), self.pod.clone(), self.counter.clone());
        let queue = self.queue.clone();
        tokio::spawn(async move {
            let done = blocking(move || {
                let outcome = work(&ctx);
                let facts = read(&ctx, &pod, &counter);
                Done { outcome, facts }
            });
            send(&queue, done.await).await;
        });
    }

    /// Does `work` beside the worker; `with_facts` reads the facts after it.
    pub(super) fn spawn_async(
        &self,
        with_facts: bool,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let (ctx, pod, counter) = (self.ctx.clone(), self.pod.clone(), self.counter.clone());
        let queue = self.queue.clone();
        tokio::spawn(async move {
            let outcome = work.await;
            let facts = if with_facts {
                blocking(move || read(&ctx, &pod, &counter)).await
            } else {
                None
            };
            send(&queue, Done { outcome, facts }).await;
        });
    }
}

fn read(ctx: &Context, pod: &Pod, counter: &AtomicU64) -> Option<Facts> {
    let number = counter.fetch_add(1, Ordering::SeqCst);
    let id = PodId::of(pod);
    match ctx.rt.pod(&id.uid) {
        Ok(mut observed) => {
            messages::fill_in(ctx, pod, &mut observed);
            Some(Facts { number, observed })
        }
        Err(e) => {
            tracing::warn!(pod = %id, error = %e, "cannot read the runtime's facts");
            None
        }
    }
}

/// Gives the worker what came out.
pub(super) async fn send(queue: &mpsc::Sender<Msg>, done: Done) {
    if queue.send(Msg::Done(Box::new(done))).await.is_err() {
        tracing::trace!("a worker has ended");
    }
}

/// The failed state of a step that failed `tries` times before, with a doubling wait.
pub(super) fn failed(reason: &'static str, message: String, tries: u32) -> Step {
    let factor = 1i32 << tries.min(10);
    let wait = (RETRY_FIRST * factor).min(RETRY_MAX);
    Step::Failed(Failure {
        reason,
        message,
        retry_at: Timestamp::now() + wait,
        tries: tries + 1,
    })
}
