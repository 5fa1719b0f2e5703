//! Drives the rollouts of a swap bench, one after another, and keeps the client's record of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::client::{Api, model_path};
use super::super::output::{Failure, human_ms, note};
use super::super::rollout::{self, Rollout};
use super::audit::Epoch;
use super::load::Clock;
use super::machine::resident_bytes;
use super::swap::SwapBench;
use crate::repository::duration;

/// How long a previous version may take to be gone after it was told to settle.
const SETTLE_LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);
/// A snapshot of memory keeps at most so many figures.
const MAX_FIGURES: usize = 64;

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

/// Drives the rollouts and keeps the client's record of them.
pub(super) struct Driver<'a> {
    args: &'a SwapBench,
    api: Api,
    pub(super) model: String,
    live: String,
    pub(super) clock: Clock,
    pub(super) cycles: Vec<Cycle>,
    pub(super) epochs: Vec<Epoch>,
}

/// What `GET /models/{ref}` says of the roles.
struct Roles {
    live: Option<(String, Option<String>)>,
    busy: Option<String>,
}

impl<'a> Driver<'a> {
    pub(super) async fn new(args: &'a SwapBench, api: Api) -> Result<Driver<'a>, Failure> {
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
    pub(super) async fn make_ready(&mut self) -> Result<(), Failure> {
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
    pub(super) async fn switch_back_and_forth(&mut self) {
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

    /// Makes a version live and lets go of the one before, outside any measurement.
    pub(super) async fn make_live(&self, version: &str) -> Result<(), Failure> {
        let path = model_path(&format!("{}@{version}", self.model), "/promote");
        let body =
            json!({ "observe": "0s", "wait": "settled", "reason": "cutover bench swap", "actor": "cutover bench" });
        self.api.post(&path, &body).await.map(drop)
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
pub(super) fn spans(marks: &[(String, u64)], asked: u64, answered: u64) -> Vec<Span> {
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

pub(super) fn push_span(spans: &mut Vec<Span>, phase: &str, from: u64, to: u64) {
    match spans.last_mut() {
        Some(last) if last.phase == phase => last.to = to,
        _ => spans.push(Span { phase: phase.to_owned(), from, to }),
    }
}

/// Every whole number of a document under the path to it; items of a list under their name, or their place.
pub(super) fn flatten(path: &str, value: &Value, into: &mut Memory) {
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
