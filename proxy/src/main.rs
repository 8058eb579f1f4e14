//! `proxy`: service proxy and cluster DNS of a node.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use proxy::backend;
use proxy::config::watch::ConfigFile;
use proxy::config::{Args, Config, KubeProxyConfiguration, args, is_auto};
use proxy::run;

fn main() -> ExitCode {
    linux::memory::keep_little_memory();
    let words = args::normalize(std::env::args());
    let args: Args = match client::flags::parse_from(&words) {
        Ok(args) => args,
        Err(code) => return code,
    };
    match start(&args, &words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("proxy: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args, words: &[String]) -> Result<()> {
    let file = args.config.as_deref().map(read).transpose()?;
    let mut settings = match &file {
        Some((_, settings)) => settings.clone(),
        None => args.configuration(),
    };
    let mut why_not_nftables = None;
    let mut is_default = false;
    if args.write_config_to.is_none() && !args.dump && is_auto(&settings.mode) {
        let (mode, why) = backend::choose();
        mode.name().clone_into(&mut settings.mode);
        (is_default, why_not_nftables) = (true, why);
    }
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    let config = Config::new(args, settings, &hostname.to_string_lossy())?;
    init_log(&config.log_filter(args.log_level.as_deref()))?;
    tell_without_effect(args, words);
    let choice = is_default.then_some(why_not_nftables);
    if let Some(path) = &args.write_config_to {
        return std::fs::write(path, config.settings.to_yaml())
            .with_context(|| format!("--write-config-to {}", path.display()));
    }
    if args.dump {
        print(&run::dump()?);
        return Ok(());
    }
    if args.cleanup {
        return run::cleanup(&config);
    }
    if args.init_only {
        run::tell_choice(&config, &choice);
        return run::init(&config);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start")?;
    let file = file.map(|(file, _)| file);
    let result = runtime.block_on(run::run(config, choice, file, words));
    // Threads that wait for files or programs do not hold up the end.
    runtime.shutdown_background();
    result
}

fn read(path: &Path) -> Result<(ConfigFile, KubeProxyConfiguration)> {
    let place = || format!("--config {}", path.display());
    let file = ConfigFile::read(path).with_context(place)?;
    let settings = KubeProxyConfiguration::parse(file.text()).with_context(place)?;
    Ok((file, settings))
}

/// Flags that are accepted so that a command line of kube-proxy can stay as it is.
fn tell_without_effect(args: &Args, words: &[String]) {
    if !args.ignored.0.is_empty() {
        let names = args.ignored.0.join(", --");
        tracing::info!("flags of kube-proxy without effect here: --{names}");
    }
    let overruled = args::overruled(words);
    if args.config.is_some() && !overruled.is_empty() {
        let names = overruled.join(", --");
        tracing::warn!("without effect since --config is given: --{names}");
    }
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

#[expect(clippy::print_stdout, reason = "what --dump is asked for")]
fn print(text: &str) {
    print!("{text}");
}

#[expect(
    clippy::print_stderr,
    reason = "the one line a person gets when the program cannot start"
)]
fn say(text: &str) {
    eprintln!("{text}");
}
