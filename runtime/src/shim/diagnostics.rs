//! Why libcontainer failed: its errors lose their causes on the way out of the container's process,
//! its trace events do not. They come back through a pipe that the container's process inherits.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::streams::{Got, Pipe, read, set_nonblocking};
use crate::error::{Error, Result};

/// Most that is quoted in an error.
const QUOTED_BYTES_MAX: usize = 1024;

/// The reading end.
#[derive(Debug)]
pub(super) struct Diagnostics {
    pipe: File,
}

impl Diagnostics {
    /// Begins to collect; once in a process.
    pub(super) fn begin() -> Result<Self> {
        let pipe = Pipe::new()?;
        set_nonblocking(&pipe.read)?;
        set_nonblocking(&pipe.write)?;
        tracing::subscriber::set_global_default(Collector {
            pipe: pipe.write.into(),
        })
        .map_err(|e| Error::io("collect diagnostics", std::io::Error::other(e)))?;
        Ok(Self {
            pipe: pipe.read.into(),
        })
    }

    /// Takes what has come since the last time: the first thing that went wrong.
    pub(super) fn take(&self) -> Option<String> {
        let mut all = Vec::new();
        let mut part = [0; 4096];
        while let Got::Bytes(len) = read(&self.pipe, &mut part) {
            if all.len() < QUOTED_BYTES_MAX {
                all.extend_from_slice(part.get(..len).unwrap_or_default());
            }
        }
        let text = String::from_utf8_lossy(&all);
        text.lines().next().map(str::to_owned)
    }
}

struct Collector {
    pipe: File,
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}{}", line.message, line.fields).replace('\n', " ");
        // Full: what came first is what matters.
        drop((&self.pipe).write_all(format!("{text}\n").as_bytes()));
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        if field.name() == "message" {
            let _never = write!(self.message, "{value:?}");
        } else {
            let _never = write!(self.fields, ", {}: {value:?}", field.name());
        }
    }
}
