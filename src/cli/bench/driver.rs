//! Drives the rollouts of a bench, one after another, and keeps the client's record of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::client::{Api, model_path};
use super::super::output::{Failure, human_ms, note};
use super::super::rollout::{self, Rollout};
use super::audit::Epoch;
use super::load::Clock;
use super::machine::resident_bytes;
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
    /// That it was meant to change nothing in the end, and how it ended.
    pub mishap: Option<String>,
    /// Why the cycle did not come to its end.
    pub error: Option<String>,
}

/// What is switched, and how.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// The bench, as it is typed: the server's history says that it was this.
    pub bench: &'static str,
    /// As the server was asked for it.
    pub model: String,
    pub versions: Vec<String>,
    /// How often, in all.
    pub switches: u32,
    /// The window that each promote asks for.
    pub observe: Duration,
    /// How long both versions stay resident.
    pub hold: Duration,
    /// From one rollout to the next.
    pub pause: Duration,
    /// No switch begins after this long.
    pub limit: Duration,
    pub pid: Option<u32>,
    /// Whether each cycle tells of memory before and after it.
    pub follow_memory: bool,
}

/// Drives the rollouts and keeps the client's record of them.
pub(super) struct Driver {
    pub(super) plan: Plan,
    pub(super) api: Api,
    pub(super) model: String,
    pub(super) live: String,
    pub(super) clock: Clock,
    pub(super) cycles: Vec<Cycle>,
    pub(super) epochs: Vec<Epoch>,
}

/// What `GET /models/{ref}` says of the roles.
pub(super) struct Roles {
    /// Version and generation.
    pub(super) live: Option<(String, Option<String>)>,
    busy: Option<String>,
}

impl Driver {
    pub(super) async fn new(plan: Plan, api: Api) -> Result<Driver, Failure> {
        if plan.model.contains('@') {
            let bench = plan.bench;
            return Err(Failure::Usage(format!("{bench} asks the model, not one version: give --model without '@'")));
        }
        let info = api.get(&model_path(&plan.model, "")).await?;
        let name = info["name"].as_str().unwrap_or(&plan.model).to_owned();
        let known: Vec<&str> = info["versions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if let Some(missing) = plan.versions.iter().find(|version| !known.contains(&version.as_str())) {
            return Err(Failure::Usage(format!("{name} has no version {missing}; it has {}", known.join(", "))));
        }
        let clock = Clock::start();
        Ok(Driver { plan, api, model: name, live: String::new(), clock, cycles: Vec::new(), epochs: Vec::new() })
    }

    /// Nothing under way, and one of the versions live.
    pub(super) async fn make_ready(&mut self) -> Result<(), Failure> {
        let roles = self.roles().await?;
        if let Some(busy) = roles.busy {
            return Err(Failure::Failed(format!("{}: {busy}; settle or abort it first", self.model)));
        }
        let listed = |version: &str| self.plan.versions.iter().any(|known| known == version);
        if !roles.live.as_ref().is_some_and(|(version, _)| listed(version)) {
            let mut cycle = Cycle { to: self.plan.versions[0].clone(), ..Cycle::default() };
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
        let (wanted, deadline) = (self.plan.switches, self.deadline());
        for number in 1..=wanted {
            if self.is_past(deadline) {
                return;
            }
            let cycle = self.switch(number).await;
            if cycle.error.is_some() {
                return;
            }
            let took = human_ms(cycle.answered.saturating_sub(cycle.asked) as f64 / 1e6);
            note(&format!("switch {number} of {wanted}: {} → {} in {took}", cycle.from, cycle.to));
            tokio::time::sleep(self.plan.pause).await;
        }
    }

    /// When the last switch may begin, if the first does now.
    pub(super) fn deadline(&self) -> u64 {
        self.clock.now() + u64::try_from(self.plan.limit.as_nanos()).unwrap_or(u64::MAX / 2)
    }

    pub(super) fn is_past(&self, deadline: u64) -> bool {
        let past = self.clock.now() > deadline;
        if past {
            note("the time limit is reached");
        }
        past
    }

    /// One switch, and its record. One that fails is told.
    pub(super) async fn switch(&mut self, number: u32) -> &Cycle {
        let mut cycle = self.begin(&self.after(&self.live));
        let ended = self.cycle(&mut cycle).await;
        self.live.clone_from(&cycle.to);
        self.record(cycle, ended, &format!("switch {number}"))
    }

    pub(super) fn begin(&self, to: &str) -> Cycle {
        Cycle { from: self.live.clone(), to: to.to_owned(), asked: self.clock.now(), ..Cycle::default() }
    }

    pub(super) fn record(&mut self, mut cycle: Cycle, ended: Result<(), Failure>, what: &str) -> &Cycle {
        cycle.error = ended.err().map(|failure| failure.to_string());
        if let Some(error) = &cycle.error {
            note(&format!("{what}: {} → {} failed: {error}", cycle.from, cycle.to));
        }
        self.cycles.push(cycle);
        &self.cycles[self.cycles.len() - 1]
    }

    /// The version whose turn is next.
    pub(super) fn after(&self, version: &str) -> String {
        let versions = &self.plan.versions;
        let at = versions.iter().position(|known| known == version).map_or(0, |at| (at + 1) % versions.len());
        versions[at].clone()
    }

    async fn cycle(&mut self, cycle: &mut Cycle) -> Result<(), Failure> {
        cycle.before = self.memory().await?;
        self.promote(cycle).await?;
        self.went_live(&cycle.to, cycle.asked, cycle.answered).await?;
        tokio::time::sleep(self.plan.hold).await;
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

    /// Writes down who answers from now on.
    pub(super) async fn went_live(&mut self, version: &str, asked: u64, answered: u64) -> Result<(), Failure> {
        let live = self.roles().await?.live;
        let generation = live.filter(|(live, _)| live == version).and_then(|(_, generation)| generation);
        self.epochs.push(Epoch { version: version.to_owned(), generation, asked, answered });
        Ok(())
    }

    /// Makes a version live and lets go of the one before, outside any measurement.
    pub(super) async fn make_live(&self, version: &str) -> Result<(), Failure> {
        let path = model_path(&format!("{}@{version}", self.model), "/promote");
        self.api.post(&path, &self.order(json!({ "observe": "0s", "wait": "settled" }))).await.map(drop)
    }

    /// The body of an admin request, with who asks and why.
    pub(super) fn order(&self, mut body: Value) -> Value {
        body["reason"] = json!(format!("cutover {}", self.plan.bench));
        body["actor"] = json!("cutover bench");
        body
    }

    /// Promotes and follows the phases as they arrive, on the client's clock.
    pub(super) async fn promote(&self, cycle: &mut Cycle) -> Result<(), Failure> {
        let reference = format!("{}@{}", self.model, cycle.to);
        let body = self.order(json!({ "observe": duration::format(self.plan.observe), "wait": "switched" }));
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
            match self.api.post("/admin/settle", &self.order(json!({ "model": self.model }))).await {
                // The window may end by itself between the question and this.
                Err(Failure::Refused(refusal)) if refusal.status == 409 => {}
                other => drop(other?),
            }
        }
        self.until_alone().await?;
        cycle.settled = self.clock.now();
        push_span(&mut cycle.spans, "reclaiming", asked, cycle.settled);
        Ok(())
    }

    /// Waits until the live version is the only one.
    async fn until_alone(&self) -> Result<(), Failure> {
        let began = tokio::time::Instant::now();
        while let Some(busy) = self.roles().await?.busy {
            if began.elapsed() > SETTLE_LIMIT {
                let limit = duration::format(SETTLE_LIMIT);
                return Err(Failure::Failed(format!("{}: {busy} after {limit}", self.model)));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    pub(super) async fn roles(&self) -> Result<Roles, Failure> {
        let info = self.api.get(&model_path(&self.plan.model, "")).await?;
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
        if !self.plan.follow_memory {
            return Ok(memory);
        }
        flatten("", &self.api.get("/admin/memory").await?, &mut memory);
        if let Some(bytes) = self.plan.pid.and_then(resident_bytes) {
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
