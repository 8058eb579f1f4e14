//! `proxy`: service proxy and cluster DNS of a node.

use std::process::ExitCode;

use anyhow::{Context, Result};
use proxy::config::{Args, Config};
use proxy::run;

fn main() -> ExitCode {
    let args: Args = match client::flags::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("proxy: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> Result<()> {
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    let config = Config::new(args, &hostname.to_string_lossy())?;
    init_log(&args.log_level)?;
    if args.cleanup {
        return run::cleanup(&config);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start")?;
    let result = runtime.block_on(run::run(config));
    // Threads that wait for files or programs do not hold up the end.
    runtime.shutdown_background();
    result
}

fn init_log(filter: &str) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .with_context(|| format!("--log-level: {filter:?}"))?
        .add_directive(
            client::LOG_DIRECTIVE
                .parse()
                .context("the client's log directive")?,
        );
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

#[expect(
    clippy::print_stderr,
    reason = "the one line a person gets when the program cannot start"
)]
fn say(text: &str) {
    eprintln!("{text}");
}
