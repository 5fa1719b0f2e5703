//! The arguments of the commands that work on this machine. Their bodies live elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The model repository
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    /// Serve only this model; may be given several times
    #[arg(long = "model", value_name = "NAME")]
    pub model: Vec<String>,
    /// Where models run: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Where clients connect
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// A listener of their own for the admin routes
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,
    /// A file holding the bearer token that admin routes ask for
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Where the ledger is kept
    #[arg(long, value_name = "DIR", default_value = ".cutover")]
    pub state: PathBuf,
    /// Configuration file [default: cutover.toml when present]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines are written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Which device was asked for; opening it is the device room's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device when this build and this machine have one, else the CPU.
    Auto,
    Cpu,
    /// A CUDA device by its ordinal.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| "expected auto, cpu or cuda:N".to_owned()),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_others_refused() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(bad.parse::<DeviceChoice>().is_err(), "{bad}");
        }
    }
}
