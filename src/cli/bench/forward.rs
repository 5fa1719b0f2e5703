//! `bench forward`: forward passes of one version by themselves, in this process, without a server.
//!
//! What serving is held against. A version is loaded as a rollout loads it; `passes` runs batches of a shape, `clients`
//! those that so many clients would make. This file says what is run and tells what it came to.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::super::args::{DeviceChoice, Reference, reference};
use super::super::output::{Failure, human_ms, note};
use super::super::table::Table;
use super::clients::{Crowd, Served};
use super::passes::{self, Figures};
use super::report::round;
use super::texts::{SplitMix64, Texts};
use super::{parse_clients, write_json};
use crate::device::{self, Kind, Opened};
use crate::error::{Error, Result};
use crate::model::{Input, Packed, Tokens};
use crate::process::PrepareOptions;
use crate::repository::{Repository, duration};
use crate::rollout::{Alone, Home, Survey};
use crate::schedule::BatchLimits;
use crate::value::RawInput;
use crate::weights::Progress;

/// Ids below this mark padding, beginnings and ends in the vocabularies of all families.
const SPECIAL_IDS: u64 = 5;
/// An input of a shape is at most so long, whatever a model takes: beyond it a number was mistyped.
const LONGEST: usize = 1 << 20;

#[derive(Debug, Clone, Args)]
pub struct ForwardBench {
    /// Which version to run
    #[arg(value_name = "MODEL@VERSION", value_parser = reference)]
    pub reference: Reference,
    /// The model repository
    #[arg(long, value_name = "DIR", default_value = "models")]
    pub models: PathBuf,
    /// Where the model runs: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Batches to run: 128x16 for 16 texts of 128 tokens, 5-250x64 for 64 texts of mixed lengths, 32 for 32 images
    /// [default: 1, 8 and 32 inputs]
    #[arg(long, value_name = "BATCH,…", value_delimiter = ',')]
    pub batches: Vec<Batch>,
    /// Run what so many clients would make of it instead, each with a request waiting at all times, as bench serve asks
    /// them but tokenized beforehand; a level each
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with = "batches", value_parser = parse_clients)]
    pub clients: Vec<usize>,
    /// Texts in each request of such a client
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: u32,
    /// Launch every kernel by itself, as a server does with `graphs = false`
    #[arg(long)]
    pub no_graphs: bool,
    /// Different requests that they use in turn
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub corpus: u32,
    /// Texts and token ids are the same for the same seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Tokens that a batch of theirs may hold
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_tokens: u32,
    /// How long each is measured, each way
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub duration: Duration,
    /// Passes before each measurement that do not count
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = duration::parse)]
    pub warmup: Duration,
    /// Write the results as JSON; '-' for standard output instead of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// How many inputs, and how long they are; `None` for images, which are all of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    count: usize,
    lengths: Option<(usize, usize)>,
}

impl FromStr for Batch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a batch: expected TOKENSxTEXTS, FROM-TOxTEXTS or a number of images");
        let number = |text: &str| text.parse().ok().filter(|n| (1..=LONGEST).contains(n)).ok_or_else(wrong);
        let Some((lengths, count)) = text.split_once('x') else {
            return Ok(Batch { count: number(text)?, lengths: None });
        };
        let (from, to) = lengths.split_once('-').unwrap_or((lengths, lengths));
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return Err(wrong());
        }
        Ok(Batch { count: number(count)?, lengths: Some((from, to)) })
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lengths {
            None => write!(f, "{}", self.count),
            Some((from, to)) if from == to => write!(f, "{from}x{}", self.count),
            Some((from, to)) => write!(f, "{from}-{to}x{}", self.count),
        }
    }
}

impl Batch {
    /// Spread evenly over what was asked for, and mixed, so that any few that follow each other are spread too.
    fn lengths(&self) -> Option<Vec<usize>> {
        let (from, to) = self.lengths?;
        // Multiples of the golden ratio are spread as evenly as numbers get, wherever one stops.
        let golden = (5f64.sqrt() - 1.0) / 2.0;
        let spread = |n: usize| ((0.5 + n as f64 * golden).fract() * (to - from + 1) as f64) as usize;
        Some((0..self.count).map(|n| from + spread(n).min(to - from)).collect())
    }
}

pub(super) fn run(args: &ForwardBench, out: &mut dyn Write) -> Result<(), Failure> {
    let failed = |error: Error| Failure::Failed(error.to_string());
    let opened = device::open(args.device).map_err(failed)?;
    let mut alone = load(args, &opened).map_err(failed)?;
    let results = match opened.kind() {
        Kind::Cuda => measure(args, &mut alone),
        Kind::Cpu => {
            let pool = rayon::ThreadPoolBuilder::new().build();
            let pool = pool.map_err(|e| Failure::Failed(format!("cannot start threads: {e}")))?;
            pool.install(|| measure(args, &mut alone))
        }
    };
    let results = results.map_err(failed)?;
    let told = json!({
        "bench": "forward", "version": args.reference.to_string(), "device": opened.name(), "batch_tokens": args.batch_tokens,
        "batches": results.batches.iter().map(Measured::json).collect::<Vec<_>>(),
        "clients": results.clients.iter().map(Served::json).collect::<Vec<_>>(),
    });
    if !write_json(args.json.as_deref(), &told, out)? {
        results.write(out)?;
    }
    Ok(())
}

fn load(args: &ForwardBench, opened: &Opened) -> Result<Alone> {
    let Reference { model, version } = &args.reference;
    let repository = Repository::open(&args.models)?;
    let config = repository.model(model)?.config?;
    let dir = repository.version_dir(model, version)?;
    let mut alone = Alone::load(Survey::of(&dir, (model, version), &config, Home::alone(opened.kind())), opened)?;
    // As a server's load does it; and as there, a version runs where it fails.
    let warmth = alone.model.warm(!args.no_graphs, &Progress::new());
    if let Some(error) = &warmth.failed {
        note(&format!("passes could not be made ready: {error}"));
    }
    Ok(alone)
}

#[derive(Default)]
struct Results {
    batches: Vec<Measured>,
    clients: Vec<Served>,
}

struct Measured {
    batch: Batch,
    lengths: Vec<usize>,
    figures: Figures,
}

fn measure(args: &ForwardBench, alone: &mut Alone) -> Result<Results> {
    let extent = (args.warmup, args.duration);
    let mut results = Results::default();
    if !args.clients.is_empty() {
        let texts = tokenized(args, alone)?;
        let limits = BatchLimits { max_tokens: args.batch_tokens as usize, max_items: usize::MAX, max_wait: 0 };
        for clients in &args.clients {
            let named = if *clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
            note(&format!("{}: {named}", args.reference));
            let crowd = Crowd { texts: &texts, clients: *clients, batch: args.batch as usize, limits };
            results.clients.push(crowd.run(&mut alone.model, extent)?);
        }
        return Ok(results);
    }
    let usual = alone.processor.max_tokens().map(|most| (most.min(128), most.min(128)));
    let usual = [1, 8, 32].map(|count| Batch { count, lengths: usual });
    for batch in if args.batches.is_empty() { &usual[..] } else { args.batches.as_slice() } {
        note(&format!("{}: {batch}", args.reference));
        let inputs = inputs(alone, batch, args.seed)?;
        let lengths = inputs.iter().map(|input| input.cost(alone.tokens_per_image)).collect();
        let figures = passes::measure(&mut alone.model, &Packed::new(inputs)?, extent)?;
        results.batches.push(Measured { batch: *batch, lengths, figures });
    }
    Ok(results)
}

/// The very texts of `bench serve`, in its order.
fn tokenized(args: &ForwardBench, alone: &Alone) -> Result<Vec<Input>> {
    if alone.processor.max_tokens().is_none() {
        return Err(Error::bad_request("--clients is for models that take text"));
    }
    let mut texts = Texts::new(args.seed);
    let prepare = |text| alone.processor.prepare(&RawInput::Text(text), &PrepareOptions::default());
    (0..u64::from(args.corpus) * u64::from(args.batch)).map(|_| prepare(texts.text())).collect()
}

fn inputs(alone: &Alone, batch: &Batch, seed: u64) -> Result<Vec<Input>> {
    let mut random = SplitMix64(seed);
    match (alone.processor.max_tokens(), batch.lengths()) {
        (Some(most), Some(lengths)) => {
            if let Some(length) = lengths.iter().find(|length| **length > most) {
                return Err(Error::TooLarge { what: "number of tokens", got: *length as u64, limit: most as u64 });
            }
            let ids = alone.spec.usize("vocab_size")? as u64;
            let from = SPECIAL_IDS.min(ids.saturating_sub(1));
            let mut id = || (from + random.next() % (ids - from).max(1)) as u32;
            let tokens = |length| Tokens { ids: (0..length).map(|_| id()).collect(), type_ids: vec![0; length] };
            Ok(lengths.into_iter().map(tokens).map(Input::Tokens).collect())
        }
        (None, None) => (0..batch.count).map(|_| image(alone, &mut random)).collect(),
        (Some(_), None) => Err(Error::bad_request(format!("the model takes texts: '{batch}' says no length"))),
        (None, Some(_)) => Err(Error::bad_request(format!("the model takes images, of which '{batch}' is no number"))),
    }
}

/// Of the size that the model takes, with numbers as they come out of a processor.
fn image(alone: &Alone, random: &mut SplitMix64) -> Result<Input> {
    let mut input = alone.processor.example()?;
    if let Input::Pixels(pixels) = &mut input {
        pixels.data.fill_with(|| random.unit() as f32 * 2.0 - 1.0);
    }
    Ok(input)
}

impl Measured {
    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn json(&self) -> Value {
        let Figures { passes, least_ms, p50_ms, p90_ms, passes_per_s } = self.figures;
        json!({
            "batch": self.batch.to_string(), "inputs": self.lengths.len(), "tokens": self.tokens(), "lengths": self.lengths,
            "passes": passes, "least_ms": round(least_ms), "p50_ms": round(p50_ms), "p90_ms": round(p90_ms),
            "inputs_per_s": round(passes_per_s * self.lengths.len() as f64),
            "tokens_per_s": round(passes_per_s * self.tokens() as f64),
        })
    }
}

impl Results {
    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let mut table = Table::new(["batch", "tokens", "passes", "p50", "p90", "inputs/s", "tokens/s"]);
        for measured in &self.batches {
            let Figures { passes, p50_ms, p90_ms, passes_per_s, .. } = measured.figures;
            let (inputs, tokens) = (measured.lengths.len() as f64, measured.tokens());
            table.row([
                measured.batch.to_string(),
                tokens.to_string(),
                passes.to_string(),
                human_ms(p50_ms),
                human_ms(p90_ms),
                format!("{:.1}", passes_per_s * inputs),
                format!("{:.0}", passes_per_s * tokens as f64),
            ]);
        }
        if !table.is_empty() {
            table.write(out)?;
        }
        let mut table = Table::new(["clients", "requests/s", "texts/s", "texts a pass", "p50"]);
        for level in &self.clients {
            table.row(level.cells());
        }
        if table.is_empty() { Ok(()) } else { table.write(out) }
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
