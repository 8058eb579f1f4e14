//! Termination messages: what a container wrote into its file before it ended, or the end of its log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::context::Context;
use crate::crilog::{Filter, Renderer, tail_offset};
use crate::observed::{Observed, State};
use crate::pod::{self, PodId};
use crate::spec::log_path;

/// Upstream's limits: a message has 4096 bytes; of the log, the last 80 lines or 2048 bytes.
const MESSAGE_MAX: u64 = 4096;
const LOG_LINES: usize = 80;
const LOG_BYTES: usize = 2048;

/// Reads the messages of ended containers into the facts.
pub(super) fn fill_in(ctx: &Context, pod: &Pod, observed: &mut Observed) {
    let id = PodId::of(pod);
    for run in &mut observed.containers {
        let State::Exited(exit) = &mut run.state else {
            continue;
        };
        if exit.message.as_ref().is_some_and(|m| !m.is_empty()) {
            continue;
        }
        let file = format!("{}-{}", run.name, run.attempt);
        let path = ctx.node.pod_dir(&id.uid).join("containers").join(file);
        let mut message = end_of(&path, MESSAGE_MAX).unwrap_or_default();
        let policy = pod::container(pod, &run.name)
            .and_then(|(c, _)| c.termination_message_policy.as_deref());
        if message.is_empty() && exit.code != 0 && policy == Some("FallbackToLogsOnError") {
            let log = log_path(&ctx.node.log_dir(&id), &run.name, run.attempt);
            message = log_tail(&log);
        }
        exit.message = Some(String::from_utf8_lossy(&message).into_owned());
    }
}

fn end_of(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(limit))).ok()?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn log_tail(path: &Path) -> Vec<u8> {
    // Each line of the file has some 40 bytes before its text.
    const READ: u64 = 16 << 10;
    let bytes = end_of(path, READ).unwrap_or_default();
    let mut renderer = Renderer::new(Filter::default());
    let mut text = Vec::new();
    for line in bytes[tail_offset(&bytes, LOG_LINES)..].split(|b| *b == b'\n') {
        renderer.push(line, &mut text);
    }
    text.split_off(text.len().saturating_sub(LOG_BYTES))
}
