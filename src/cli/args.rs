//! The arguments of the commands that work on this machine. Their bodies live elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The model repository [default: models]
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Serve only this model; may be given several times
    #[arg(long = "model", value_name = "NAME")]
    pub model: Vec<String>,
    /// Where models run: auto, cpu or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Threads of forward passes on the CPU [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Where clients connect [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// A listener of their own for the admin routes
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,
    /// A file holding the bearer token that admin routes ask for
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Where the ledger is kept [default: .cutover]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Configuration file [default: cutover.toml when present]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines are written [default: text]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log: Option<LogFormat>,
    /// Honour the [faults] of the configuration: rehearsals only
    #[arg(long)]
    pub allow_faults: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

pub use crate::device::DeviceSpec as DeviceChoice;

#[derive(Debug, Clone, Args)]
pub struct GoldenArgs {
    #[command(subcommand)]
    pub command: GoldenCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub enum GoldenCommand {
    /// Run a version and store its outputs as golden cases
    Record(GoldenTarget),
    /// Run a version and compare its outputs with its golden cases
    Check(GoldenTarget),
}

#[derive(Debug, Clone, Args)]
pub struct GoldenTarget {
    /// model@version
    pub reference: String,
    /// The model repository
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    /// Where the model runs: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// A version folder
    pub dir: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// The repository's name on the hub: org/name
    #[arg(value_name = "ORG/NAME")]
    pub name: String,
    /// A branch, tag or commit of it
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub revision: String,
    /// What to call it here [default: the repository's name, version as the revision]
    #[arg(long = "as", value_name = "MODEL@VERSION")]
    pub target: Option<String>,
    /// The model repository
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
}
