//! `kubelet`: see `kubelet --help`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use kubelet::config::Config;
use tracing_subscriber::EnvFilter;

/// Threads for blocking work at a time: each plugin call, container start or probe by exec holds one.
const BLOCKING_THREADS: usize = 64;
/// Idle ones end after this time, and give their memory back.
const IDLE: Duration = Duration::from_secs(2);

#[expect(
    clippy::print_stderr,
    reason = "the one line that says why we do not run"
)]
fn main() -> ExitCode {
    let config: Config = match client::flags::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kubelet: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_level)
        .map_err(|e| anyhow::anyhow!("--log-level {}: {e}", config.log_level))?
        .add_directive(client::LOG_DIRECTIVE.parse()?);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(IDLE)
        .enable_all()
        .build()?;
    let result = runtime.block_on(kubelet::run::run(config));
    // Blocking work in progress (a container's start, a plugin) is not waited for: the next kubelet
    // finds what it left.
    runtime.shutdown_background();
    result
}
