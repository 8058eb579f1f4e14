//! `seaway`: what a person types.

mod api;
mod daemons;
mod down;
mod gone;
mod image;
mod layout;
mod network;
mod prove;
mod status;
mod supervise;
mod up;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use layout::{ClusterArgs, Layout, parse_name};

/// A whole Kubernetes cluster on this machine, in seconds.
#[derive(Parser)]
#[command(name = "seaway", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster, deploy the sample and prove that it serves
    Up {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Start the cluster only: no sample, no proof
        #[arg(long)]
        bare: bool,
    },
    /// Remove a cluster and every trace of it
    Down {
        /// Name of the cluster
        #[arg(long, default_value = "dev", value_parser = parse_name)]
        name: String,
    },
    /// Show the daemons of a cluster: pid, memory, log
    Status {
        /// Name of the cluster
        #[arg(long, default_value = "dev", value_parser = parse_name)]
        name: String,
    },
    /// Use the running sample as a person would and say what is seen
    Prove {
        /// Name of the cluster
        #[arg(long, default_value = "dev", value_parser = parse_name)]
        name: String,
    },
    /// Images of a cluster
    Image {
        /// Name of the cluster
        #[arg(long, global = true, default_value = "dev", value_parser = parse_name)]
        name: String,
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Ask the sample for a page again and again (started by `prove` on a node)
    #[command(hide = true)]
    Ask {
        /// Its address and port
        address: std::net::SocketAddr,
        /// How often; all the time without it
        #[arg(long)]
        count: Option<usize>,
    },
    /// Keep a cluster's daemons running (started by `up`)
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Load an image from an OCI archive, an OCI layout directory or a `docker save` archive
    Load {
        /// Archive or directory
        path: PathBuf,
    },
    /// List the images
    List,
}

/// Prints a line for the person at the terminal.
pub(crate) fn say(text: &str) {
    // Nobody is left to be told when standard output is closed (`seaway status | head`).
    drop(writeln!(std::io::stdout(), "{text}"));
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("seaway: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Up { cluster, bare } => block_on(up::run(&Layout::new(cluster), bare)),
        Command::Down { name } => down::run(&name),
        Command::Status { name } => status::run(&up::saved(&name)?),
        Command::Prove { name } => {
            let layout = up::saved(&name)?;
            block_on(prove::run(&layout, &layout.kubeconfig()))
        }
        Command::Image { name, command } => {
            let layout = up::saved(&name)?;
            match command {
                ImageCommand::Load { path } => image::load(&layout, &path),
                ImageCommand::List => image::list(&layout),
            }
        }
        Command::Ask { address, count } => prove::traffic::ask(address, count),
        Command::Supervise { cluster } => supervise::run(cluster),
    }
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
