//! `bench swap`: versions switched back and forth under a constant load, and what its users saw.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::super::client::{Api, model_path};
use super::super::output::{Failure, human_ms, note};
use super::super::rollout::{self, Rollout};
use super::audit::Epoch;
use super::load::{Clock, Load, Pace, Target};
use super::machine::{OwnCost, resident_bytes};
use super::serve::{Extent, measure};
use super::swap_report::{Analysis, Run};
use super::{Subject, parse_clients, parse_rate, svg, write_file, write_json};
use crate::repository::duration;

/// How long a previous version may take to be gone after it was told to settle.
const SETTLE_LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);
/// A snapshot of memory keeps at most so many figures.
const MAX_FIGURES: usize = 64;

#[derive(Debug, Clone, Args)]
pub struct SwapBench {
    #[command(flatten)]
    pub subject: Subject,
    /// The versions to switch between, in turn
    #[arg(long, value_name = "A,B", value_parser = parse_versions)]
    pub versions: Versions,
    /// How often to switch
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub switches: u32,
    /// The window that each promote asks for; it is ended by a settle after --hold
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration::parse)]
    pub observe: Duration,
    /// How long both versions stay resident after a switch
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = duration::parse)]
    pub hold: Duration,
    /// Quiet time between one rollout and the next
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = duration::parse)]
    pub pause: Duration,
    /// Requests a second [default: --load of what a closed loop reaches]
    #[arg(long, value_name = "R", conflicts_with = "load", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Share of the measured capacity to load the server with
    #[arg(long, value_name = "PERCENT", default_value = "60%", value_parser = parse_share)]
    pub load: f64,
    /// Clients of the closed loop that measures the capacity
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_clients)]
    pub clients: usize,
    /// At most so many requests at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_clients)]
    pub connections: usize,
    /// How long to measure before the first switch
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub steady: Duration,
    /// Load before that, which does not count
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub warmup: Duration,
    /// Go on after the last switch until so many requests were made
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    pub requests: u64,
    /// Begin no switch after this long
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    pub limit: Duration,
    /// The server's process, to follow its resident memory
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Draw latency over time
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Two or more versions, none twice in a row.
#[derive(Debug, Clone)]
pub struct Versions(pub Vec<String>);

fn parse_versions(text: &str) -> Result<Versions, String> {
    let versions: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
    let distinct: std::collections::BTreeSet<&String> = versions.iter().collect();
    if versions.len() < 2 || distinct.len() != versions.len() || versions.iter().any(String::is_empty) {
        return Err("expected two or more different versions, such as v1,v2".to_owned());
    }
    Ok(Versions(versions))
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(percent) if (1.0..=200.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("expected a percentage from 1% to 200%".to_owned()),
    }
}

/// Figures of memory by name, in bytes or whatever the server counts.
pub(super) type Memory = BTreeMap<String, u64>;

/// A stretch of a rollout, in nanoseconds of the run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub phase: String,
    pub from: u64,
    pub to: u64,
}

/// One promote, its window and its settling.
#[derive(Debug, Clone, Default)]
pub(super) struct Cycle {
    pub from: String,
    pub to: String,
    pub asked: u64,
    /// When promote's answer was complete; 0 when it failed.
    pub answered: u64,
    /// When the previous version was gone.
    pub settled: u64,
    pub spans: Vec<Span>,
    pub figures: serde_json::Map<String, Value>,
    pub before: Memory,
    pub after: Memory,
    /// Why the cycle did not come to its end.
    pub error: Option<String>,
}

pub(super) async fn run(args: &SwapBench, out: &mut dyn Write) -> Result<(), Failure> {
    let api = Api::new(&args.subject.connection)?;
    let (task, target) = args.subject.prepare(&api).await?;
    let mut driver = Driver::new(args, api).await?;
    driver.make_ready().await?;
    let capacity = match args.rate {
        Some(_) => None,
        None => Some(probe(args, target.clone()).await?),
    };
    let rate = args.rate.unwrap_or_else(|| args.load * capacity.unwrap_or_default()).clamp(0.01, 200_000.0);
    note(&format!("{}: {rate:.1} requests a second, {} switches", driver.model, args.switches));

    let load = Load::start(target, Pace::Open { rate, connections: args.connections }, driver.clock)?;
    tokio::time::sleep(args.warmup).await;
    let (cost, steady_from) = (OwnCost::start(), driver.clock.now());
    tokio::time::sleep(args.steady).await;
    driver.switch_back_and_forth().await;
    let most = args.steady + args.limit;
    while load.answered() < args.requests && Duration::from_nanos(driver.clock.now() - steady_from) < most {
        tokio::time::sleep(POLL).await;
    }
    let generator_cpu = cost.share();
    let until = driver.clock.now();
    let recording = load.finish().await?;

    let Driver { model, cycles, epochs, .. } = driver;
    let run = Run {
        model,
        rate,
        capacity,
        steady_from,
        until,
        generator_cpu,
        wanted: args.switches,
        cycles,
        epochs,
        recording,
    };
    let analysis = Analysis::of(&run)?;
    let mut results =
        json!({ "bench": "swap", "task": task, "versions": args.versions.0, "checked": args.subject.check });
    merge(&mut results, analysis.json(&run));
    if let Some(path) = &args.svg {
        write_file(path, &svg::draw(&run))?;
    }
    if !write_json(args.subject.json.as_deref(), &results, out)? {
        analysis.write(&run, out)?;
    }
    if analysis.passed { Ok(()) } else { Err(Failure::Reported) }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// What the server can do, from a closed loop.
async fn probe(args: &SwapBench, target: Arc<Target>) -> Result<f64, Failure> {
    note(&format!("measuring capacity with {} clients", args.clients));
    let extent = Extent { warmup: args.warmup, duration: Duration::from_secs(5), requests: None };
    let level = measure(target, Pace::Closed { clients: args.clients }, extent).await?;
    if level.throughput <= 0.0 {
        return Err(Failure::Failed("the server answered no request successfully; nothing to measure".to_owned()));
    }
    Ok(level.throughput)
}

/// Drives the rollouts and keeps the client's record of them.
struct Driver<'a> {
    args: &'a SwapBench,
    api: Api,
    model: String,
    live: String,
    clock: Clock,
    cycles: Vec<Cycle>,
    epochs: Vec<Epoch>,
}

/// What `GET /models/{ref}` says of the roles.
struct Roles {
    live: Option<(String, Option<String>)>,
    busy: Option<String>,
}

impl<'a> Driver<'a> {
    async fn new(args: &'a SwapBench, api: Api) -> Result<Driver<'a>, Failure> {
        if args.subject.model.contains('@') {
            return Err(Failure::Usage(
                "bench swap asks the model, not one version: give --model without '@'".to_owned(),
            ));
        }
        let info = api.get(&model_path(&args.subject.model, "")).await?;
        let name = info["name"].as_str().unwrap_or(&args.subject.model).to_owned();
        let known: Vec<&str> = info["versions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if let Some(missing) = args.versions.0.iter().find(|version| !known.contains(&version.as_str())) {
            return Err(Failure::Usage(format!("{name} has no version {missing}; it has {}", known.join(", "))));
        }
        let clock = Clock::start();
        Ok(Driver { args, api, model: name, live: String::new(), clock, cycles: Vec::new(), epochs: Vec::new() })
    }

    /// Nothing under way, and one of the versions live.
    async fn make_ready(&mut self) -> Result<(), Failure> {
        let roles = self.roles().await?;
        if let Some(busy) = roles.busy {
            return Err(Failure::Failed(format!("{}: {busy}; settle or abort it first", self.model)));
        }
        let listed = |version: &str| self.args.versions.0.iter().any(|known| known == version);
        if !roles.live.as_ref().is_some_and(|(version, _)| listed(version)) {
            let mut cycle = Cycle { to: self.args.versions.0[0].clone(), ..Cycle::default() };
            note(&format!("making {} live first", cycle.to));
            self.promote(&mut cycle).await?;
            self.settle(&mut cycle).await?;
        }
        let Some((version, generation)) = self.roles().await?.live else {
            return Err(Failure::Failed(format!("{} has no live version", self.model)));
        };
        self.live.clone_from(&version);
        self.epochs = vec![Epoch { version, generation, asked: 0, answered: 0 }];
        Ok(())
    }

    /// Ends early when a cycle fails: what comes after would measure something else.
    async fn switch_back_and_forth(&mut self) {
        let limit = self.clock.now() + u64::try_from(self.args.limit.as_nanos()).unwrap_or(u64::MAX / 2);
        for number in 1..=self.args.switches {
            if self.clock.now() > limit {
                note("the time limit is reached");
                return;
            }
            let mut cycle = Cycle { from: self.live.clone(), to: self.after(&self.live), ..Cycle::default() };
            let ended = self.cycle(&mut cycle).await;
            cycle.error = ended.err().map(|failure| failure.to_string());
            let error = cycle.error.clone();
            let took = cycle.answered.saturating_sub(cycle.asked) as f64 / 1e6;
            note(&match &error {
                None => format!(
                    "switch {number} of {}: {} → {} in {}",
                    self.args.switches,
                    cycle.from,
                    cycle.to,
                    human_ms(took)
                ),
                Some(error) => format!("switch {number}: {} → {} failed: {error}", cycle.from, cycle.to),
            });
            self.live.clone_from(&cycle.to);
            self.cycles.push(cycle);
            if error.is_some() {
                return;
            }
            tokio::time::sleep(self.args.pause).await;
        }
    }

    fn after(&self, version: &str) -> String {
        let versions = &self.args.versions.0;
        let at = versions.iter().position(|known| known == version).map_or(0, |at| (at + 1) % versions.len());
        versions[at].clone()
    }

    async fn cycle(&mut self, cycle: &mut Cycle) -> Result<(), Failure> {
        cycle.before = self.memory().await?;
        self.promote(cycle).await?;
        let live = self.roles().await?.live;
        let generation = live.filter(|(version, _)| *version == cycle.to).and_then(|(_, generation)| generation);
        self.epochs.push(Epoch { version: cycle.to.clone(), generation, asked: cycle.asked, answered: cycle.answered });
        tokio::time::sleep(self.args.hold).await;
        self.settle(cycle).await?;
        cycle.after = self.memory().await?;
        match self.roles().await?.live {
            Some((version, _)) if version == cycle.to => Ok(()),
            other => {
                let live = other.map_or_else(|| "nothing".to_owned(), |(version, _)| version);
                Err(Failure::Failed(format!("{} did not stay live; {live} is", cycle.to)))
            }
        }
    }

    /// Promotes and follows the phases as they arrive, on the client's clock.
    async fn promote(&self, cycle: &mut Cycle) -> Result<(), Failure> {
        let reference = format!("{}@{}", self.model, cycle.to);
        let body = json!({
            "observe": duration::format(self.args.observe), "wait": "switched", "reason": "cutover bench swap",
            "actor": "cutover bench",
        });
        let clock = self.clock;
        cycle.asked = clock.now();
        let mut marks: Vec<(String, u64)> = Vec::new();
        let reply = self.api.post_following(&model_path(&reference, "/promote"), &body).await?;
        let ended = rollout::follow(reply, &mut |rollout: &Rollout| {
            if marks.last().is_none_or(|(phase, _)| *phase != rollout.phase) {
                marks.push((rollout.phase.clone(), clock.now()));
            }
        })
        .await;
        let answered = clock.now();
        cycle.spans = spans(&marks, cycle.asked, answered);
        let rollout = Rollout::read(&ended?)?;
        if rollout.failed() {
            return Err(Failure::Failed(rollout.headline()));
        }
        cycle.answered = answered;
        cycle.figures = rollout.figures;
        Ok(())
    }

    /// Ends the window and waits until the previous version is gone.
    async fn settle(&self, cycle: &mut Cycle) -> Result<(), Failure> {
        let asked = self.clock.now();
        push_span(&mut cycle.spans, "observing", cycle.answered, asked);
        if self.roles().await?.busy.is_some() {
            match self.api.post("/admin/settle", &json!({ "model": self.model, "actor": "cutover bench" })).await {
                // The window may end by itself between the question and this.
                Err(Failure::Refused(refusal)) if refusal.status == 409 => {}
                other => drop(other?),
            }
        }
        let began = tokio::time::Instant::now();
        while let Some(busy) = self.roles().await?.busy {
            if began.elapsed() > SETTLE_LIMIT {
                return Err(Failure::Failed(format!(
                    "{}: {busy} after {}",
                    self.model,
                    duration::format(SETTLE_LIMIT)
                )));
            }
            tokio::time::sleep(POLL).await;
        }
        cycle.settled = self.clock.now();
        push_span(&mut cycle.spans, "reclaiming", asked, cycle.settled);
        Ok(())
    }

    async fn roles(&self) -> Result<Roles, Failure> {
        let info = self.api.get(&model_path(&self.args.subject.model, "")).await?;
        let role = |name: &str| {
            let version = info[name]["version"].as_str()?.to_owned();
            let generation = match &info[name]["generation"] {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
            Some((version, generation))
        };
        let busy = ["candidate", "previous"].into_iter().find_map(|name| {
            let (version, _) = role(name)?;
            Some(format!("{version} is still its {name} version"))
        });
        Ok(Roles { live: role("live"), busy })
    }

    async fn memory(&self) -> Result<Memory, Failure> {
        let mut memory = Memory::new();
        flatten("", &self.api.get("/admin/memory").await?, &mut memory);
        if let Some(bytes) = self.args.pid.and_then(resident_bytes) {
            memory.insert("process rss".to_owned(), bytes);
        }
        Ok(memory)
    }
}

/// Phases from one mark to the next; the first one counts from the question on.
fn spans(marks: &[(String, u64)], asked: u64, answered: u64) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut from = asked;
    for (index, (phase, _)) in marks.iter().enumerate() {
        let to = marks.get(index + 1).map_or(answered, |(_, at)| *at);
        push_span(&mut spans, phase, from, to);
        from = to;
    }
    if spans.is_empty() {
        push_span(&mut spans, "promoting", asked, answered);
    }
    spans
}

fn push_span(spans: &mut Vec<Span>, phase: &str, from: u64, to: u64) {
    match spans.last_mut() {
        Some(last) if last.phase == phase => last.to = to,
        _ => spans.push(Span { phase: phase.to_owned(), from, to }),
    }
}

/// Every whole number of a document under the path to it; items of a list under their name, or their place.
fn flatten(path: &str, value: &Value, into: &mut Memory) {
    let under = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path} {name}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, field)| flatten(&under(name), field, into)),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let name = ["name", "device"].into_iter().find_map(|key| item[key].as_str());
                flatten(&under(name.unwrap_or(&index.to_string())), item, into);
            }
        }
        Value::Number(number) => {
            if let Some(number) = number.as_u64().filter(|_| into.len() < MAX_FIGURES) {
                into.insert(path.to_owned(), number);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "swap_tests.rs"]
mod tests;
