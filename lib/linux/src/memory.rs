//! The memory of this process: what it holds and does not need goes back to the kernel.

use crate::error::{Error, Result};

/// Makes the C library keep less free memory: one heap for all threads, whose end can be given back,
/// and what is large comes from the kernel by itself and goes back at once. For programs in which
/// threads seldom allocate at the same time, before they start any.
pub fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, 128 << 10)] {
        // SAFETY: the call takes no pointers, and there is no other thread yet.
        #[expect(unsafe_code, reason = "mallopt(3) has no safe interface")]
        let _taken = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives memory that is free inside this process back to the kernel, as far as the C library can:
/// after something that took much for a short time. Some milliseconds.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call takes no pointers.
        #[expect(unsafe_code, reason = "malloc_trim(3) has no safe interface")]
        let _some_was_given = unsafe { libc::malloc_trim(0) };
    }
}

/// Unmaps the pages of this process's program and libraries that nothing has written to. What is
/// used again is mapped again at its next use, from the page cache. For a daemon whose start (flags,
/// keys, the first list) runs much code that never runs again. Some milliseconds.
///
/// # Errors
/// `/proc/self/smaps` cannot be read; the kernel refuses (`madvise(2)`).
pub fn unmap_unused_code() -> Result<()> {
    const FILE: &str = "/proc/self/smaps";
    let fail = |e: std::io::Error| Error::new(format!("read {FILE}"), e);
    for (start, len) in pages_of_files(&std::fs::read_to_string(FILE).map_err(fail)?) {
        let start = std::ptr::without_provenance_mut(start);
        // SAFETY: the range is one mapping of a file, is not writable, and no page of it is this
        // process's own: whatever is dropped is what the file has, and comes back as that.
        #[expect(unsafe_code, reason = "madvise(2) has no safe interface")]
        let result = unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) };
        nix::errno::Errno::result(result).map_err(|e| Error::new("unmap unused code", e))?;
    }
    Ok(())
}

/// Start and length of the mappings in `smaps` (`proc_pid_smaps(5)`) that are of files, cannot be
/// written to, and of which no page, in memory or in swap, is the process's own: relocated data is,
/// and code that a debugger has changed.
fn pages_of_files(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut open = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else {
            continue;
        };
        match first.strip_suffix(':') {
            None => {
                found.extend(open.take());
                open = file_mapping(first, second, words.nth(3));
            }
            Some("Anonymous" | "Swap") if second != "0" => open = None,
            Some(_) => {}
        }
    }
    found.extend(open);
    found
}

/// A mapping's range, if it is of a file and cannot be written to.
fn file_mapping(range: &str, permissions: &str, path: Option<&str>) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let len = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
    let is_fixed = permissions.starts_with("r-") && permissions.ends_with('p');
    (is_fixed && path?.starts_with('/')).then_some((start, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_equals_the_file_is_unmapped() {
        let smaps = "\
1000-3000 r--p 00000000 08:01 17 /usr/bin/x
Size:                  8 kB
Rss:                   8 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me sd
3000-9000 r-xp 00002000 08:01 17 /usr/bin/x
Anonymous:             0 kB
Swap:                  0 kB
9000-a000 r--p 00008000 08:01 17 /usr/bin/x
Anonymous:             4 kB
Swap:                  0 kB
a000-b000 r-xp 00009000 08:01 17 /usr/bin/x
Anonymous:             0 kB
Swap:                  4 kB
b000-c000 rw-p 0000a000 08:01 17 /usr/bin/x
Anonymous:             0 kB
Swap:                  0 kB
c000-d000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
d000-e000 r--s 00000000 08:01 18 /etc/x
Anonymous:             0 kB
e000-f000 r--p 00000000 00:00 0
Anonymous:             0 kB
nonsense
";
        assert_eq!(pages_of_files(smaps), [(0x1000, 0x2000), (0x3000, 0x6000)]);
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        unmap_unused_code().unwrap();
        assert_eq!("still here".to_uppercase(), "STILL HERE");
    }
}
