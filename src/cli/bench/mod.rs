//! `cutover bench`: what a server does under load, steady and while its models are switched; and what it is held against.
//!
//! A client of the HTTP interface like any other: it sees what users see, and speaks to `--url` only. `bench forward` alone
//! asks no server: [`forward`] runs a version in this process.
//! [`load`] makes the requests and records them, [`driver`] switches versions meanwhile; [`audit`] and the reports judge
//! the record and are pure.

mod audit;
mod capacity;
mod chat;
mod check;
mod clients;
mod driver;
mod forward;
mod images;
mod load;
mod machine;
mod mishap;
mod passes;
mod reading;
mod report;
mod serve;
mod session;
mod soak;
mod soak_report;
mod svg;
mod svg_soak;
mod swap;
mod swap_report;
mod target;
pub mod texts;
mod wire;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::client::{Api, Connection, model_path, parse_reference};
use super::output::Failure;
use crate::repository::duration;
use crate::value::Task;
pub use chat::ChatBench;
pub use forward::ForwardBench;
pub use serve::ServeBench;
pub use session::{Switching, Versions};
pub use soak::SoakBench;
pub use swap::SwapBench;
use target::{Payload, Target};

#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: BenchCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub enum BenchCommand {
    /// Throughput and latency of one model
    Serve(ServeBench),
    /// Latency and correctness while versions are switched back and forth under load
    Swap(SwapBench),
    /// Streamed chats: time to the first token and between tokens, steadily and while versions are switched
    Chat(ChatBench),
    /// Whether a server is after a thousand switches what it was before: resident size, threads, files, and its answers
    Soak(SoakBench),
    /// Forward passes of one version by themselves, in this process, without a server
    ///
    /// How long a pass of a batch takes, and how many there are in a second; or with --clients, how many requests of so many
    /// clients could be answered if HTTP, tokenizing and JSON cost nothing.
    Forward(ForwardBench),
    /// Print the texts that the load is made of, a line each, so that others can be asked the same
    Texts(TextsArgs),
}

#[derive(Debug, Clone, Args)]
pub struct TextsArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub corpus: u32,
    /// The texts are the same for the same seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// What is asked of whom, the same for every bench.
#[derive(Debug, Clone, Args)]
pub struct Subject {
    /// The model to ask: model, or model@version
    #[arg(long, value_name = "NAME", value_parser = parse_reference)]
    pub model: String,
    /// How to ask
    #[arg(long, value_enum, default_value_t = Dialect::Native)]
    pub dialect: Dialect,
    /// Where image inputs come from
    #[arg(long, value_name = "DIR", default_value = "models/digits/samples")]
    pub images: PathBuf,
    /// Inputs in each request
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: u32,
    /// Different requests that are made and used in turn
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub corpus: u32,
    /// The texts, and the mishaps of a soak, are the same for the same seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Read every answer and compare it with the first one that the same version gave to the same request
    #[arg(long)]
    pub check: bool,
    /// How far two such answers may lie apart
    #[arg(long, value_name = "X", default_value_t = 1e-3)]
    pub tolerance: f32,
    /// A request that takes longer has failed
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub timeout: Duration,
    /// Give the threads that make the load real-time priority, so that they are on time on a machine that the server
    /// keeps busy
    #[arg(long)]
    pub realtime: bool,
    /// Write the results as JSON; '-' for standard output instead of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dialect {
    /// `POST /models/{ref}/infer`
    Native,
    /// `POST /v1/embeddings`
    Openai,
}

/// Clients or connections at once.
fn parse_clients(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(clients @ 1..=4096) => Ok(clients),
        _ => Err("expected a whole number from 1 to 4096".to_owned()),
    }
}

/// Requests a second.
fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=200_000.0).contains(&rate) => Ok(rate),
        _ => Err("expected requests a second, from 0.01 to 200000".to_owned()),
    }
}

pub(super) async fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<(), Failure> {
    match &args.command {
        BenchCommand::Serve(args) => serve::run(args, out).await,
        BenchCommand::Swap(args) => swap::run(args, out).await,
        BenchCommand::Chat(args) => chat::run(args, out).await,
        BenchCommand::Soak(args) => soak::run(args, out).await,
        BenchCommand::Forward(args) => forward::run(args, out),
        BenchCommand::Texts(args) => print_texts(args, out),
    }
}

fn print_texts(args: &TextsArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let mut texts = texts::Texts::new(args.seed);
    for _ in 0..args.corpus {
        writeln!(out, "{}", texts.text())?;
    }
    Ok(())
}

impl Subject {
    /// Asks the server what the model is, and prepares the requests.
    async fn prepare(&self, api: &Api) -> Result<(Task, Arc<Target>), Failure> {
        let info = api.get(&model_path(&self.model, "")).await?;
        let task: Task = serde_json::from_value(info["task"].clone())
            .map_err(|_| api.protocol(&format!("'{}' has no task that is known here", self.model)))?;
        let (payloads, path) = match self.dialect {
            Dialect::Native => (self.native(task)?, model_path(&self.model, "/infer")),
            Dialect::Openai => (self.openai(task)?, "/v1/embeddings".to_owned()),
        };
        let path = format!("{}{path}", self.connection.base_path());
        let checker = self.check.then(|| check::Checker::new(self.dialect, self.batch as usize, self.tolerance));
        let target = Target::new(&self.connection, &path, payloads, self.timeout, checker, self.realtime).await?;
        Ok((task, Arc::new(target)))
    }

    fn native(&self, task: Task) -> Result<Vec<Payload>, Failure> {
        let texts = texts::Texts::new(self.seed);
        match task {
            Task::Embed | Task::Classify => Ok(self.each(texts, |texts| texts.text().into())),
            Task::Rerank => Ok(self.each(texts, |texts| json!([texts.query(), texts.text()]))),
            Task::ImageClassify => images::payloads(&self.images, self.batch as usize, self.corpus as usize),
            Task::Generate => Err(Failure::Usage("models that write are measured with `bench chat`".to_owned())),
        }
    }

    fn openai(&self, task: Task) -> Result<Vec<Payload>, Failure> {
        if task != Task::Embed {
            return Err(Failure::Usage(format!("the openai dialect is for models that embed; this one is for {task}")));
        }
        let mut texts = texts::Texts::new(self.seed);
        let bodies = (0..self.corpus).map(|_| {
            let input: Vec<String> = (0..self.batch).map(|_| texts.text()).collect();
            Payload::json(&json!({ "model": self.model, "input": input }))
        });
        Ok(bodies.collect())
    }

    fn each(&self, mut texts: texts::Texts, mut input: impl FnMut(&mut texts::Texts) -> Value) -> Vec<Payload> {
        let bodies = (0..self.corpus).map(|_| {
            let inputs: Vec<Value> = (0..self.batch).map(|_| input(&mut texts)).collect();
            Payload::json(&json!({ "inputs": inputs }))
        });
        bodies.collect()
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// The last line of a report.
fn outcome(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}

/// Writes results to a file, whole or not at all.
fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("cannot write {}: {e}", path.display()));
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    std::fs::write(&name, text).and_then(|()| std::fs::rename(&name, path)).map_err(failed)
}

/// The `--json` output: to a file, or to standard output when it is `-` (true then).
fn write_json(path: Option<&Path>, results: &Value, out: &mut dyn Write) -> Result<bool, Failure> {
    match path {
        None => Ok(false),
        Some(path) if path == Path::new("-") => {
            writeln!(out, "{results}")?;
            Ok(true)
        }
        Some(path) => write_file(path, &format!("{results}\n")).map(|()| false),
    }
}
