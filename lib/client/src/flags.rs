//! Flags of a daemon: parsed, or refused in one line that names the flag.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

/// Exit code for flags that are not understood, as most programs have it.
const USAGE_EXIT: u8 = 2;

/// Reads the flags of this process. When they are wrong (or help was asked for) everything is said
/// already, and the program ends with the exit code.
///
/// # Errors
/// The exit code to end with.
pub fn parse<T: clap::Parser>() -> Result<T, ExitCode> {
    parse_from(std::env::args_os())
}

/// The same from `args`, of which the first is the program's name.
///
/// # Errors
/// The exit code to end with.
pub fn parse_from<T: clap::Parser, A: Into<OsString> + Clone>(
    args: impl IntoIterator<Item = A>,
) -> Result<T, ExitCode> {
    let error = match T::try_parse_from(args) {
        Ok(args) => return Ok(args),
        Err(error) => error,
    };
    if !error.use_stderr() {
        // Nobody is left to be told when standard output is closed.
        drop(error.print());
        return Err(ExitCode::SUCCESS);
    }
    drop(writeln!(
        std::io::stderr(),
        "{}",
        one_line(&error.to_string())
    ));
    Err(ExitCode::from(USAGE_EXIT))
}

/// The first paragraph of clap's message, which names the flag; the rest is the usage.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim);
    lines
        .take_while(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_paragraph_is_kept() {
        let text =
            "error: the following required arguments were not provided:\n  --a <A>\n\nUsage: x";
        assert_eq!(
            one_line(text),
            "error: the following required arguments were not provided: --a <A>"
        );
    }
}
