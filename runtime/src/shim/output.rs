//! What containers write: to the log and to attached clients.

use super::container::Container;
use super::note;
use super::server::Server;
use super::streams::{Got, read, write};
use crate::log::Stream;

/// Read at once: a pipe's usual content.
const READ_BYTES: usize = 64 << 10;

impl Server {
    /// Reads what there is of one stream.
    pub(super) fn read_output(&mut self, id: &str, stream: Stream) {
        let mut buffer = vec![0; READ_BYTES];
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some((file, key)) = container.stream(stream) else {
            return;
        };
        let key = *key;
        match read(file, &mut buffer) {
            Got::Nothing => {}
            Got::Bytes(len) => {
                container.pass_on(stream, buffer.get(..len).unwrap_or_default());
            }
            Got::End => {
                *container.stream_mut(stream) = None;
                self.forget(key);
            }
        }
    }

    /// Reads what is left of both streams after the program's end, and closes them.
    pub(super) fn drain_output(&mut self, id: &str) {
        let mut buffer = vec![0; READ_BYTES];
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Some(container) = self.containers.get_mut(id) else {
                return;
            };
            while let Some((file, _)) = container.stream(stream) {
                match read(file, &mut buffer) {
                    Got::Bytes(len) => {
                        container.pass_on(stream, buffer.get(..len).unwrap_or_default());
                    }
                    Got::Nothing | Got::End => break,
                }
            }
            if let Some((_, key)) = container.stream_mut(stream).take() {
                self.forget(key);
            }
        }
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if let Some(mut log) = container.log.take()
            && let Err(e) = log.end()
        {
            note(&format!("write log of container {id}: {e}"));
        }
        container.stdin = None;
    }
}

impl Container {
    fn stream(&self, stream: Stream) -> Option<&(std::fs::File, u64)> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    fn stream_mut(&mut self, stream: Stream) -> &mut Option<(std::fs::File, u64)> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn pass_on(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            match log.write(stream, bytes) {
                Ok(()) => self.log_failed = false,
                Err(e) if !self.log_failed => {
                    self.log_failed = true;
                    note(&format!(
                        "write log of container {}, output is lost: {e}",
                        self.file.spec.id
                    ));
                }
                Err(_) => {}
            }
        }
        for attached in &mut self.attached {
            let pipe = match stream {
                Stream::Stdout => &mut attached.stdout,
                Stream::Stderr => &mut attached.stderr,
            };
            if pipe.as_ref().is_some_and(|file| !write(file, bytes)) {
                note("an attached client is gone or has fallen behind, and is cut off");
                *pipe = None;
            }
        }
    }
}
