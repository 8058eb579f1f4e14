//! The CRI log format: `TIME STREAM TAG TEXT`, where tag P marks a partial line and F a full one. Pure.

use jiff::Timestamp;

/// One line of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// When the runtime read it, as written in the file.
    pub time_text: &'a str,
    /// The same as a time.
    pub time: Timestamp,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// The text goes on in the next line of this stream.
    pub partial: bool,
    /// What the container wrote, without the line's end.
    pub text: &'a [u8],
}

/// Reads one line (without its newline); `None` when it is not in the format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let mut word = || parts.next().and_then(|w| std::str::from_utf8(w).ok());
    let time_text = word()?;
    let time = time_text.parse().ok()?;
    let stream = word().filter(|s| matches!(*s, "stdout" | "stderr"))?;
    let tag = word()?;
    let partial = tag.split(':').next() == Some("P");
    Some(Line {
        time_text,
        time,
        stream,
        partial,
        text: parts.next().unwrap_or_default(),
    })
}

/// Which lines a reader wants.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Only lines at or after this time.
    pub since: Option<Timestamp>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// At most so many bytes in all.
    pub limit_bytes: Option<u64>,
}

/// Turns the lines of a file into what a reader sees, keeping count of the limit.
#[derive(Debug)]
pub struct Renderer {
    filter: Filter,
    left: Option<u64>,
    /// The line before was partial, so this one gets no time of its own.
    in_line: bool,
}

impl Renderer {
    /// A reader's view with `filter`.
    pub fn new(filter: Filter) -> Self {
        let left = filter.limit_bytes;
        Self {
            filter,
            left,
            in_line: false,
        }
    }

    /// The limit is reached.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends what the reader sees of one file line to `out`.
    pub fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(line) else { return };
        if self.filter.since.is_some_and(|since| line.time < since) {
            return;
        }
        let mut bytes = Vec::with_capacity(line.text.len() + 40);
        if self.filter.timestamps && !self.in_line {
            bytes.extend_from_slice(line.time_text.as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(line.text);
        if !line.partial {
            bytes.push(b'\n');
        }
        self.in_line = line.partial;
        if let Some(left) = &mut self.left {
            let room = usize::try_from(*left).unwrap_or(usize::MAX);
            bytes.truncate(room);
            *left -= u64::try_from(bytes.len()).unwrap_or(*left);
        }
        out.extend_from_slice(&bytes);
    }
}

/// Offset in `file` from which the last `lines` full lines begin (partial lines belong to the next full one).
pub fn tail_offset(file: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return file.len();
    }
    let mut full = 0;
    let mut begin = file.len();
    let mut end = file.len();
    while end > 0 {
        let body = file[..end].strip_suffix(b"\n").unwrap_or(&file[..end]);
        let start = body.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let partial = parse(&body[start..]).is_some_and(|l| l.partial);
        if !partial {
            if full == lines {
                return begin;
            }
            full += 1;
        }
        begin = start;
        end = start;
    }
    begin
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"2026-01-01T00:00:01.5Z stdout F one\n\
        2026-01-01T00:00:02Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\n\
        2026-01-01T00:00:03Z stdout F \nbroken line\n2026-01-01T00:00:04Z stdout F four four\n";

    fn render(filter: Filter, from: usize) -> String {
        let mut renderer = Renderer::new(filter);
        let mut out = Vec::new();
        for line in FILE[from..].split(|b| *b == b'\n') {
            renderer.push(line, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_joined_and_broken_ones_left_out() {
        assert_eq!(render(Filter::default(), 0), "one\ntwo\n\nfour four\n");
    }

    #[test]
    fn filters() {
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        let f = Filter {
            since,
            ..Filter::default()
        };
        assert_eq!(render(f, 0), "\nfour four\n");
        let f = Filter {
            limit_bytes: Some(6),
            ..Filter::default()
        };
        assert_eq!(render(f, 0), "one\ntw");
        let f = Filter {
            timestamps: true,
            ..Filter::default()
        };
        assert!(render(f, 0).starts_with("2026-01-01T00:00:01.5Z one\n2026-01-01T00:00:02Z two\n"));
    }

    #[test]
    fn tails() {
        for (lines, expect) in [
            (0, ""),
            (1, "four four\n"),
            (3, "\nfour four\n"),
            (4, "two\n\nfour four\n"),
            (5, "one\ntwo\n\nfour four\n"),
            (99, "one\ntwo\n\nfour four\n"),
        ] {
            assert_eq!(
                render(Filter::default(), tail_offset(FILE, lines)),
                expect,
                "{lines}"
            );
        }
    }
}
