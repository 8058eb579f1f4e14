//! Log files in the format of the container runtime interface, as kubelets and log collectors read
//! them: `2016-10-06T00:17:09.669794202Z stdout F the line` (`P` marks a part of a long line;
//! <https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>).
//!
//! A file that has grown to its limit is renamed to `<path>.1` (`.1` to `.2` and so on, the oldest is
//! removed) and begun anew: who follows a log watches for that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// Longest message of one record; longer lines are split. The size of upstream's buffer.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// A file of this size is rotated (the kubelet's `containerLogMaxSize`).
pub const FILE_BYTES_MAX: u64 = 10 << 20;

/// Files kept, the current one included (the kubelet's `containerLogMaxFiles`).
pub const FILES_MAX: usize = 5;

/// Which of a container's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts one stream into records. Pure: time comes as an argument, records go to a buffer.
#[derive(Debug)]
pub struct Records {
    stream: Stream,
    /// The line so far, shorter than [`LINE_BYTES_MAX`].
    line: Vec<u8>,
}

impl Records {
    /// For one stream.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            line: Vec::new(),
        }
    }

    /// Takes what the program wrote and appends the records that are complete to `out`.
    pub fn feed(&mut self, now: Timestamp, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = LINE_BYTES_MAX - self.line.len();
            let window = rest.get(..room.min(rest.len())).unwrap_or_default();
            match window.iter().position(|b| *b == b'\n') {
                Some(at) => {
                    let (line, after) = rest.split_at(at);
                    self.record(now, 'F', line, out);
                    rest = after.get(1..).unwrap_or_default();
                }
                None if window.len() == room => {
                    let (line, after) = rest.split_at(room);
                    self.record(now, 'P', line, out);
                    rest = after;
                }
                None => {
                    self.line.extend_from_slice(rest);
                    return;
                }
            }
        }
    }

    /// The stream has ended: what is left is a line, too.
    pub fn end(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if !self.line.is_empty() {
            self.record(now, 'F', &[], out);
        }
    }

    /// Nothing of an unfinished line is held back.
    fn at_line_start(&self) -> bool {
        self.line.is_empty()
    }

    fn record(&mut self, now: Timestamp, tag: char, tail: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{now:.9} {} {tag} ", self.stream.name()).as_bytes());
        out.extend_from_slice(&self.line);
        out.extend_from_slice(tail);
        out.push(b'\n');
        self.line.clear();
    }
}

/// Limits of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Rotate at this size in bytes.
    pub file_bytes_max: u64,
    /// Keep this many files, the current one included.
    pub files_max: usize,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            file_bytes_max: FILE_BYTES_MAX,
            files_max: FILES_MAX,
        }
    }
}

/// A container's log file with its rotated predecessors.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    size: u64,
    stdout: Records,
    stderr: Records,
    /// Records to write, kept to save allocations.
    out: Vec<u8>,
}

impl LogFile {
    /// Opens the log, and makes it and its directory when they are not there.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let (file, size) = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            rotation,
            file,
            size,
            stdout: Records::new(Stream::Stdout),
            stderr: Records::new(Stream::Stderr),
            out: Vec::new(),
        })
    }

    /// Opens the file anew, after somebody has moved it away.
    ///
    /// # Errors
    /// The file cannot be opened; the old one is in use then.
    pub fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.size) = open(&self.path)?;
        Ok(())
    }

    /// Logs what the program wrote.
    ///
    /// # Errors
    /// The file cannot be written; what was to be logged is lost.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let now = Timestamp::now();
        match stream {
            Stream::Stdout => self.stdout.feed(now, bytes, &mut self.out),
            Stream::Stderr => self.stderr.feed(now, bytes, &mut self.out),
        }
        self.flush()
    }

    /// The program has ended: logs unfinished lines.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn end(&mut self) -> io::Result<()> {
        let now = Timestamp::now();
        self.stdout.end(now, &mut self.out);
        self.stderr.end(now, &mut self.out);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.out);
        self.size += u64::try_from(self.out.len()).unwrap_or(u64::MAX);
        self.out.clear();
        written?;
        let whole = self.stdout.at_line_start() && self.stderr.at_line_start();
        if self.size >= self.rotation.file_bytes_max && whole {
            self.rotate()?;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let name = |n: usize| {
            let mut name = self.path.clone().into_os_string();
            if n > 0 {
                name.push(format!(".{n}"));
            }
            PathBuf::from(name)
        };
        for n in (0..self.rotation.files_max.saturating_sub(1)).rev() {
            match fs::rename(name(n), name(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if self.rotation.files_max <= 1 {
            fs::remove_file(name(0))?;
        }
        self.reopen()
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let open = || OpenOptions::new().append(true).create(true).open(path);
    let file = match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            open()?
        }
        other => other?,
    };
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the pieces and returns tag and message of each record.
    #[track_caller]
    fn check(pieces: &[&[u8]], expect: &[(&str, usize)]) {
        let mut records = Records::new(Stream::Stderr);
        let mut out = Vec::new();
        for piece in pieces {
            records.feed(Timestamp::UNIX_EPOCH, piece, &mut out);
        }
        records.end(Timestamp::UNIX_EPOCH, &mut out);
        let text = String::from_utf8(out).unwrap();
        let found: Vec<_> = text
            .lines()
            .map(|line| {
                let rest = line
                    .strip_prefix("1970-01-01T00:00:00.000000000Z stderr ")
                    .unwrap();
                (&rest[..1], rest.len() - 2)
            })
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn lines_become_records() {
        let long = vec![b'x'; LINE_BYTES_MAX];
        check(&[b"one\ntwo\n"], &[("F", 3), ("F", 3)]);
        check(
            &[b"on", b"e\n", b"\n", b"end"],
            &[("F", 3), ("F", 0), ("F", 3)],
        );
        check(&[], &[]);
        check(&[&long], &[("P", LINE_BYTES_MAX)]);
        check(&[&long, b"\n"], &[("P", LINE_BYTES_MAX), ("F", 0)]);
        check(&[b"y", &long, b"z\n"], &[("P", LINE_BYTES_MAX), ("F", 2)]);
        check(
            &[&long, &long, b"z"],
            &[("P", LINE_BYTES_MAX), ("P", LINE_BYTES_MAX), ("F", 1)],
        );
    }

    #[test]
    fn a_full_file_is_rotated_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/c/0.log");
        let rotation = Rotation {
            file_bytes_max: 120,
            files_max: 3,
        };
        let mut log = LogFile::open(&path, rotation).unwrap();
        for n in 0..8 {
            log.write(Stream::Stdout, format!("line {n}\nhalf").as_bytes())
                .unwrap();
            log.write(Stream::Stdout, b" done\n").unwrap();
        }
        let read = |name: &str| fs::read_to_string(path.with_file_name(name)).unwrap();
        let all = read("0.log.2") + &read("0.log.1") + &read("0.log");
        assert!(!path.with_file_name("0.log.3").exists());
        assert!(read("0.log.1").len() >= 120 && read("0.log.1").ends_with('\n'));
        assert!(all.ends_with("stdout F line 7\n") || all.ends_with("stdout F half done\n"));
        assert_eq!(all.lines().filter(|l| !l.contains(" stdout F ")).count(), 0);
    }
}
