//! The arguments of the commands that work on this machine. Their bodies live elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;

use crate::config::parse_address;
use crate::repository::name;
use crate::value::Task;

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
    /// Processors that models may keep busy: forward passes, and what loading, digests and the gate take beside them, which
    /// give way while a pass runs. Connections, what requests are read into, and the ledger are not counted [default: all]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Where clients connect [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub listen: Option<SocketAddr>,
    /// A listener of their own for the admin routes
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub admin_listen: Option<SocketAddr>,
    /// A listener for gRPC (Open Inference Protocol); without it there is none
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub grpc_listen: Option<SocketAddr>,
    /// A file holding the bearer token that admin routes ask for
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// The server's certificate, and those up to its authority, in PEM: every listener speaks TLS
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// A file of name:key lines: models answer only to requests that bear such a key; may be given several times
    #[arg(long = "api-key-file", value_name = "FILE")]
    pub api_key_files: Vec<PathBuf>,
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
    /// Run a version and store its outputs in its golden.jsonl
    ///
    /// The inputs are those of the model's own golden.jsonl, and of --inputs. Record when a version is exported: a
    /// server that has seen the version refuses it once its folder has changed.
    Record(RecordArgs),
    /// Run a version and judge its answers by the golden cases of the model and of the version
    Check(GoldenTarget),
}

/// How far a recorded number may be missed, and a recorded embedding's direction, where nothing else is said.
pub(super) const MAX_ABS: f32 = 0.005;
pub(super) const MIN_COSINE: f32 = 0.9999;

#[derive(Debug, Clone, Args)]
pub struct RecordArgs {
    #[command(flatten)]
    pub target: GoldenTarget,
    /// More inputs: a file with one JSON input a line, as in a request's "inputs"
    #[arg(long, value_name = "FILE")]
    pub inputs: Option<PathBuf>,
    /// How far scores and embedded numbers may be from what is recorded
    #[arg(long, value_name = "NUMBER", default_value_t = MAX_ABS, value_parser = tolerance)]
    pub max_abs: f32,
    /// The least cosine with a recorded embedding
    #[arg(long, value_name = "COSINE", default_value_t = MIN_COSINE, value_parser = cosine)]
    pub min_cosine: f32,
    /// The server's state folder, where it wrote down which versions it has seen
    #[arg(long, value_name = "DIR", default_value = ".cutover")]
    pub state: PathBuf,
    /// Replace what was recorded, and record although a server has seen the version
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Args)]
pub struct GoldenTarget {
    /// Which version to run
    #[arg(value_name = "MODEL@VERSION", value_parser = reference)]
    pub reference: Reference,
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

/// `model@version`, both of them said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub model: String,
    pub version: String,
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.model, self.version)
    }
}

pub(super) fn reference(text: &str) -> Result<Reference, String> {
    let (model, version) = text.split_once('@').ok_or("expected MODEL@VERSION")?;
    name::check(model).and_then(|()| name::check(version))?;
    Ok(Reference { model: model.to_owned(), version: version.to_owned() })
}

fn tolerance(text: &str) -> Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a number of at least 0".to_owned())
}

fn cosine(text: &str) -> Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|number| (-1.0..=1.0).contains(number));
    number.ok_or_else(|| "expected a number from -1 to 1".to_owned())
}

pub(super) fn task(text: &str) -> Result<Task, String> {
    let known = "expected embed, classify, rerank, generate or image-classify";
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| known.to_owned())
}

#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// A version folder
    pub dir: PathBuf,
    /// What the model is for [default: as model.toml beside the folder says, else as config.json looks]
    #[arg(long, value_name = "TASK", value_parser = task)]
    pub task: Option<Task>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// A GGUF file, or a version folder that holds one
    pub source: PathBuf,
    /// The folder to make; it must not be there yet
    pub dest: PathBuf,
    /// What its numbers are rounded to
    #[arg(long, value_enum, default_value_t = WeightDtype::F16)]
    pub dtype: WeightDtype,
}

/// A number format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightDtype {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// The repository's name on the hub: org/name
    #[arg(value_name = "ORG/NAME")]
    pub name: String,
    /// A branch, tag or commit of it
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub revision: String,
    /// What to call it here [default: the repository's name, and the revision or, of main, the commit's first digits]
    #[arg(long = "as", value_name = "MODEL@VERSION", value_parser = reference)]
    pub target: Option<Reference>,
    /// What the model is for, where there is no model.toml yet [default: as config.json looks]
    #[arg(long, value_name = "TASK", value_parser = task)]
    pub task: Option<Task>,
    /// Record golden cases of these inputs before a server can see the version: a file with one JSON input a line, as in a request's
    /// "inputs"
    #[arg(long, value_name = "FILE")]
    pub golden: Option<PathBuf>,
    /// Where the model runs for --golden: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", requires = "golden")]
    pub device: DeviceChoice,
    /// The model repository
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    /// The hub
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT", default_value = "https://huggingface.co")]
    pub endpoint: String,
    /// An access token of the hub, for models that are private or have terms to accept
    #[arg(long, value_name = "TOKEN", env = "HF_TOKEN", hide_env_values = true, value_parser = secret)]
    pub token: Option<Secret>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Text that no debug output shows.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret(text.trim().to_owned()))
}
