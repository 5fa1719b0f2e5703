//! `bench chat`: clients that read streamed chats, steadily and while versions are switched, and what they saw.
//!
//! A closed loop: each client reads its answer to the end and asks the next question at once. [`stream`] reads one answer,
//! [`load`] keeps the clients going, [`report`] judges what they recorded.

mod load;
mod report;
mod stream;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::super::client::{Api, Connection, model_path, parse_reference};
use super::super::output::{Failure, note};
use super::driver::{Driver, Plan};
use super::machine::{self, OwnCost};
use super::session::{Versions, parse_versions};
use super::target::{Payload, Target};
use super::texts::Texts;
use super::{outcome, parse_clients, svg, write_file, write_json};
use crate::repository::duration;
use crate::value::Task;
use load::Load;
use report::{Analysis, Blocks, Run};

/// For what clients left to be let go of.
const SETTLING: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Args)]
pub struct ChatBench {
    /// The model to ask: model, or model@version
    #[arg(long, value_name = "NAME", value_parser = parse_reference)]
    pub model: String,
    /// Clients that each read one answer after another
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = parse_clients)]
    pub clients: usize,
    /// Words of the questions; several lengths are used in turn
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "20", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub prompt_words: Vec<u32>,
    /// Tokens of each answer at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_tokens: u32,
    /// Have every answer written to --max-tokens, whatever would end it
    #[arg(long)]
    pub ignore_eos: bool,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub temperature: f32,
    /// Different questions, used in turn
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub corpus: u32,
    /// The questions are the same for the same seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Hold every answer against the first one that the same version gave to the same question; they are equal at
    /// temperature 0
    #[arg(long)]
    pub check: bool,
    /// An answer that takes longer has failed
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    pub timeout: Duration,
    /// How long to measure before the first switch, or in all
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub duration: Duration,
    /// Load before the measurement, which does not count
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub warmup: Duration,
    /// The versions to switch between, in turn
    #[arg(long, value_name = "A,B", value_parser = parse_versions)]
    pub versions: Option<Versions>,
    /// How often to switch
    #[arg(long, value_name = "N", default_value_t = 4, requires = "versions", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub switches: u32,
    /// The window that each promote asks for; it is ended by a settle after --hold
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration::parse)]
    pub observe: Duration,
    /// How long both versions stay resident after a switch
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = duration::parse)]
    pub hold: Duration,
    /// Quiet time between one rollout and the next, which counts as steady
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    pub pause: Duration,
    /// Begin no switch after this long
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    pub limit: Duration,
    /// The server's process, where it runs on this machine, to see what it takes
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Give the thread that makes the load real-time priority, so that it is on time on a machine that the server keeps busy
    #[arg(long)]
    pub realtime: bool,
    /// Draw the times between tokens over time
    #[arg(long, value_name = "FILE", requires = "versions")]
    pub svg: Option<PathBuf>,
    /// Write the results as JSON; '-' for standard output instead of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub connection: Connection,
}

impl ChatBench {
    /// Asks the server what the model is, and prepares the questions.
    async fn target(&self, api: &Api) -> Result<Arc<Target>, Failure> {
        let info = api.get(&model_path(&self.model, "")).await?;
        if info["task"] != json!(Task::Generate) {
            return Err(Failure::Usage(format!("{} does not write text; its task is {}", self.model, info["task"])));
        }
        let path = format!("{}/v1/chat/completions", self.connection.base_path());
        let mut texts = Texts::new(self.seed);
        let lengths = self.prompt_words.iter().cycle().take(self.corpus as usize);
        let payloads = lengths.map(|words| Payload::json(&self.body(&question(&mut texts, *words as usize))));
        let target =
            Target::new(&self.connection, &path, payloads.collect(), self.timeout, None, self.realtime).await?;
        Ok(Arc::new(target))
    }

    fn body(&self, question: &str) -> Value {
        json!({
            "model": self.model, "messages": [{ "role": "user", "content": question }], "max_tokens": self.max_tokens,
            "temperature": self.temperature, "ignore_eos": self.ignore_eos, "stream": true,
            "stream_options": { "include_usage": true },
        })
    }

    fn plan(&self, versions: &Versions) -> Plan {
        Plan {
            bench: "bench chat",
            model: self.model.clone(),
            versions: versions.0.clone(),
            switches: self.switches,
            observe: self.observe,
            hold: self.hold,
            pause: self.pause,
            limit: self.limit,
            pid: self.pid,
            follow_memory: true,
        }
    }
}

/// So many words.
fn question(texts: &mut Texts, words: usize) -> String {
    let mut question: Vec<String> = Vec::new();
    while question.len() < words {
        question.extend(texts.text().split(' ').map(str::to_owned));
    }
    question.truncate(words);
    question.join(" ")
}

/// What is held of the caches once nobody asks any more; who left is noticed at the next step.
async fn blocks_left(api: &Api, model: &str) -> Result<Option<Blocks>, Failure> {
    let until = tokio::time::Instant::now() + SETTLING;
    loop {
        let blocks = Blocks::of(&api.get_text("/metrics").await?, model);
        if blocks.is_none_or(|blocks| blocks.used == 0) || tokio::time::Instant::now() >= until {
            return Ok(blocks);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(super) async fn run(args: &ChatBench, out: &mut dyn Write) -> Result<(), Failure> {
    let api = Api::new(&args.connection)?;
    if let Some(pid) = args.pid {
        machine::check_server(pid).map_err(|reason| Failure::Failed(format!("--pid {pid}: {reason}")))?;
    }
    let target = args.target(&api).await?;
    let mut driver = match &args.versions {
        None => None,
        Some(versions) => {
            let mut driver = Driver::new(args.plan(versions), api).await?;
            driver.make_ready().await?;
            Some(driver)
        }
    };
    let clock = driver.as_ref().map_or_else(super::load::Clock::start, |driver| driver.clock);
    note(&format!("{}: {} clients, answers of {} tokens at most", args.model, args.clients, args.max_tokens));
    let load = Load::start(target, (args.clients, args.check), clock)?;
    tokio::time::sleep(args.warmup).await;
    let (cost, from) = (OwnCost::start(), clock.now());
    tokio::time::sleep(args.duration).await;
    if let Some(driver) = &mut driver {
        driver.switch_back_and_forth().await;
    }
    let (generator_cpu, until) = (cost.share(), clock.now());
    let recording = load.finish().await?;
    let name = args.model.split('@').next().unwrap_or(&args.model);
    let blocks = blocks_left(&Api::new(&args.connection)?, name).await?;
    let (model, wanted) = (args.model.clone(), args.versions.as_ref().map_or(0, |_| args.switches));
    let (cycles, epochs) = driver.map_or_else(Default::default, |driver| (driver.cycles, driver.epochs));
    let run =
        Run { model, clients: args.clients, from, until, generator_cpu, wanted, cycles, epochs, recording, blocks };
    let (parts, words) = (report::Parts::of(&run), report::words(&run));
    let analysis = Analysis::of(&run, &parts)?;
    if let Some(path) = &args.svg {
        write_file(path, &svg::draw(&parts.gaps, &words))?;
    }
    let versions = args.versions.as_ref().map(|versions| &versions.0);
    let mut results = json!({
        "bench": "chat", "versions": versions, "checked": args.check, "max_tokens": args.max_tokens,
        "prompt_words": args.prompt_words, "temperature": args.temperature,
    });
    super::merge(&mut results, analysis.json(&run, &parts));
    if !write_json(args.json.as_deref(), &results, out)? {
        analysis.write(&run, &parts, out)?;
        writeln!(out, "{}", outcome(analysis.passed))?;
    }
    if analysis.passed { Ok(()) } else { Err(Failure::Reported) }
}
