//! A candidate that answers before it is live: a share of requests, step by step (a canary) or for as long as two versions are
//! compared (an experiment); and the shadow, of which clients see nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::experiment::{self, Named, Side};
use super::super::state::{Event, Phase};
use super::super::{shadow, watch};
use super::window::LOOK;
use super::{Active, Answer, Controller, Options};
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::repository::{CanaryConfig, ModelConfig};
use crate::slot::{Arm, Route, Share, Split, Tally};

/// How often a step that ends with a number of requests is looked at.
const COUNT: Duration = Duration::from_millis(100);

/// What is known while the candidate answers a share.
pub(super) struct Sharing {
    /// Since it answers at all.
    since: Instant,
    /// Since it answers this share, and what it had answered then.
    step_since: Instant,
    step_from: u64,
    looked: Instant,
    experiment: Option<(Named, Arc<Tally>)>,
}

impl Sharing {
    pub(super) fn next_look(&self, config: &ModelConfig) -> Instant {
        let CanaryConfig { step, requests, .. } = &config.canary;
        match (&self.experiment, requests) {
            (Some(_), _) => self.looked + LOOK,
            (None, Some(_)) => self.looked + COUNT,
            (None, None) => (self.looked + LOOK).min(self.step_since + *step),
        }
    }

    /// Whether a canary's step has lasted as long as it was to.
    fn is_over(&self, canary: &CanaryConfig, answered: u64) -> bool {
        match canary.requests {
            Some(requests) => answered.saturating_sub(self.step_from) >= requests,
            None => self.step_since.elapsed() >= canary.step,
        }
    }
}

impl Options {
    /// What was said with the order instead of what `model.toml` says.
    pub(super) fn reshape(&self, config: &mut ModelConfig) {
        let canary = &mut config.canary;
        if let Some(steps) = &self.canary {
            canary.steps.clone_from(steps);
        }
        if let Some(step) = self.canary_step {
            (canary.step, canary.requests) = (step, None);
        }
        canary.requests = self.canary_requests.or(canary.requests);
        if let Some(sticky) = &self.sticky {
            canary.sticky = sticky.clone();
        }
        if let Some(share) = self.shadow {
            config.shadow.share = share;
        }
    }
}

impl Controller {
    /// Takes what a later promote says of the way to go, and what is to be fed then.
    pub(super) fn reshape(&mut self, phase: Phase, options: &Options) -> Event {
        let Some(active) = &mut self.active else { return Event::Promote };
        if phase == Phase::Canary {
            // Shares that are in force stay; none means that the rest is skipped.
            return if options.canary.as_ref().is_some_and(Vec::is_empty) { Event::SkipSteps } else { Event::Promote };
        }
        options.reshape(&mut active.config);
        active.state.steps = active.config.canary.steps.len();
        if phase == Phase::Ready && options.shadow.is_some() {
            self.begin_shadow();
        }
        Event::Promote
    }

    /// `experiment start`: both versions answer their shares until somebody ends it.
    pub(super) async fn compare(&mut self, version: String, named: Named, options: Options) -> Result<Answer> {
        let route = self.slot.route();
        let standing = route.as_ref().and_then(|route| route.standby.as_ref());
        let Some(active) = self.active.as_mut().filter(|active| active.recorder.view().record.to == version) else {
            return Err(Error::conflict(format!("'{version}' is not staged; stage it first")));
        };
        if let Some((running, _)) = active.sharing.as_ref().and_then(|sharing| sharing.experiment.as_ref()) {
            let message = format!("the experiment '{}' goes on; stop it first", running.name);
            return Err(Error::Conflict { message, details: json!({ "experiment": running.name }) });
        }
        if active.state.phase != Phase::Ready || standing.is_none() {
            let phase = active.state.phase.name();
            return Err(Error::conflict(format!(
                "'{version}' is {phase}; an experiment begins with a version that is staged"
            )));
        }
        options.reshape(&mut active.config);
        active.recorder.figure("experiment", json!({ "name": named.name }));
        active.sharing = Some(Sharing::begin(Some((named, Arc::new(Tally::new())))));
        match self.feed(Event::StartExperiment).await {
            Ok(()) => self.joined(),
            Err(error) => {
                if let Some(active) = &mut self.active {
                    active.sharing = None;
                }
                Err(error)
            }
        }
    }

    pub(super) async fn stop_comparing(&mut self, name: &str) -> Result<Answer> {
        let sharing = self.active.as_ref().and_then(|active| active.sharing.as_ref());
        match sharing.and_then(|sharing| sharing.experiment.as_ref()) {
            Some((named, _)) if named.name == name => {
                self.tell_sharing();
                self.feed(Event::StopExperiment).await?;
                self.joined()
            }
            _ => Err(Error::NotFound { what: "experiment", id: name.to_owned() }),
        }
    }

    /// Has the candidate answer its share from now on.
    pub(super) async fn share(&mut self) {
        let (Some(active), Some(route)) = (&mut self.active, self.slot.route()) else { return };
        let Some(candidate) = route.standby.clone() else {
            // The machine orders this only of what stands by.
            return tracing::error!("there is no candidate to share requests with");
        };
        let first = active.sharing.is_none() || active.state.phase == Phase::Experiment;
        let sharing = active.sharing.get_or_insert_with(|| Sharing::begin(None));
        if first {
            candidate.stats.restart_window();
            route.live.stats.restart_window();
        }
        sharing.step_since = Instant::now();
        sharing.step_from = asked(&candidate);
        let percent = match &sharing.experiment {
            Some((named, _)) => named.weight,
            None => active.config.canary.steps.get(active.state.step).copied().unwrap_or_default(),
        };
        let sticky = active.config.canary.sticky.clone();
        let said = json!({
            "percent": percent, "step": active.state.step + 1, "steps": active.state.steps, "sticky": sticky,
            "experiment": sharing.experiment.as_ref().map(|(named, _)| &named.name),
        });
        let split = Split {
            failover: candidate.contract.changes_from(&route.live.contract).is_empty(),
            to: candidate,
            share: Share::of(percent / 100.0),
            sticky,
            salt: Split::salt(sharing.experiment.as_ref().map_or(&active.id, |(named, _)| &named.name)),
            tally: sharing.experiment.as_ref().map(|(_, tally)| Arc::clone(tally)),
        };
        self.slot.swap(Arc::new(Route { split: Some(split), ..Route::clone(&route) }));
        drop(route);
        self.tell_sharing();
        let note = self.audit("share", said);
        self.ctx.journal.note(note).await;
    }

    /// The live version answers everything again.
    pub(super) async fn unshare(&mut self) {
        let began = Instant::now();
        if let Some(route) = self.slot.route() {
            self.slot.swap(Arc::new(Route { split: None, ..Route::clone(&route) }));
        }
        let took = began.elapsed();
        self.tell_sharing();
        let Some(active) = &mut self.active else { return };
        active.sharing = None;
        if let Some(ending) = active.state.ending.clone() {
            active.recorder.kind("instant");
            active.recorder.figure("rollback_ms", took.as_secs_f64() * 1e3);
            tracing::warn!(model = self.slot.name(), reason = ending.reason, alert = true, "a share was taken back");
        }
        let note = self.audit("share", json!({ "percent": 0 }));
        self.ctx.journal.note(note).await;
    }

    /// Looks after a candidate that passed its gate: the rules on what it answers, and on what its shadow says.
    pub(super) async fn look_at_candidate(&mut self) {
        self.tell_sharing();
        let Some(active) = &mut self.active else { return };
        if let Some(reason) = active.shadow.as_ref().and_then(|run| run.seen().breach()) {
            self.alert("breach", &reason).await;
            let staged = self.active.as_ref().is_some_and(|active| active.state.phase == Phase::Ready);
            return self.feed_late(if staged { Event::GateRefused(reason) } else { Event::Breach(reason) }).await;
        }
        let Some(active) = &mut self.active else { return };
        let (Some(stats), Some(live), Some(sharing)) = (active.candidate_stats(), &self.live, &mut active.sharing)
        else {
            return;
        };
        sharing.looked = Instant::now();
        let rules = &active.config.observe;
        let beside = live.stats.window();
        let baseline = beside.p99.filter(|_| beside.samples >= rules.min_requests.max(100));
        if let Some(breach) = watch::judge(rules, &stats.window(), baseline) {
            let reason = format!("a rule was broken: {breach}");
            self.alert("breach", &reason).await;
            return self.feed_late(Event::Breach(reason)).await;
        }
        let seen = stats.snapshot();
        if active.state.phase == Phase::Canary && sharing.is_over(&active.config.canary, seen.answered + seen.blamed) {
            self.feed_late(Event::StepOver).await;
        }
    }

    /// What is shared now, for whoever looks at the rollout.
    pub(super) fn tell_sharing(&mut self) {
        let route = self.slot.route();
        let Some(active) = &mut self.active else { return };
        let Some(sharing) = &active.sharing else { return };
        if let Some((named, tally)) = &sharing.experiment
            && let Some(live) = &self.live
        {
            let version = active.recorder.view().record.to.clone();
            let side = |version, arm| Side { version, told: tally.told(arm) };
            let (one, other) = (side(&live.version, Arm::Live), side(&version, Arm::Other));
            let report = experiment::report(named, &one, &other, sharing.since.elapsed());
            active.recorder.figure("experiment", report);
            active.recorder.publish();
            return;
        }
        let percent = active.config.canary.steps.get(active.state.step).copied();
        let share = if route.is_some_and(|route| route.split.is_some()) { percent } else { Some(0.0) };
        let told = |generation: Option<Value>| generation.unwrap_or(Value::Null);
        let candidate = active.candidate_stats().map(|stats| counted(&stats.window()));
        let live = self.live.as_ref().map(|live| counted(&live.stats.window()));
        active.recorder.figure(
            "canary",
            json!({
                "percent": share, "step": active.state.step + 1, "steps": active.config.canary.steps,
                "seconds": sharing.since.elapsed().as_secs_f64(),
                "candidate": told(candidate), "live": told(live),
            }),
        );
        active.recorder.publish();
    }

    /// Begins to compare what the live version answers with what the other resident one makes of it: the candidate before the
    /// switch, the version before after it.
    pub(super) fn begin_shadow(&mut self) {
        let (Some(active), Some(route)) = (&mut self.active, self.slot.route()) else { return };
        let Some(other) = route.standby.as_ref().or(route.previous.as_ref()) else { return };
        if active.config.shadow.share == 0.0 || active.shadow.is_some() {
            return;
        }
        // Whoever is new is judged by it.
        let judged = if route.standby.is_some() { other } else { &route.live };
        let run = shadow::Run::start(
            &self.ctx,
            &active.id,
            (side(&route.live), side(other)),
            &active.config.shadow,
            Arc::clone(&judged.stats),
        );
        self.status.shadow.store(Some(Arc::clone(run.seen())));
        self.slot.swap(Arc::new(Route { shadow: Some(run.shadow()), ..Route::clone(&route) }));
        active.shadow = Some(run);
    }

    /// Its route is gone already, or goes now.
    pub(super) fn end_shadow(&mut self) {
        self.tell_shadow();
        if let Some(active) = &mut self.active {
            active.shadow = None;
        }
    }

    pub(super) fn tell_shadow(&mut self) {
        let Some(Active { shadow: Some(run), recorder, .. }) = &mut self.active else { return };
        // Before the switch and after it, the other way round.
        let name = if recorder.view().switched { "shadow_after" } else { "shadow" };
        recorder.figure(name, run.seen().figures());
        recorder.publish();
    }
}

impl Sharing {
    fn begin(experiment: Option<(Named, Arc<Tally>)>) -> Sharing {
        let now = Instant::now();
        Sharing { since: now, step_since: now, step_from: 0, looked: now, experiment }
    }
}

fn side(generation: &Arc<Generation>) -> shadow::Side {
    shadow::Side {
        generation: generation.id(),
        version: generation.version().to_owned(),
        processor: Arc::clone(&generation.processor),
        tokenizer: generation.contract.tokenizer.clone(),
    }
}

/// Requests that it was sent and that tell of it.
fn asked(generation: &Generation) -> u64 {
    let seen = generation.stats.snapshot();
    seen.answered + seen.blamed
}

fn counted(seen: &crate::generation::Snapshot) -> Value {
    let ms = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64() * 1e3);
    json!({
        "samples": seen.samples, "blamed": seen.blamed, "nonfinite": seen.nonfinite, "failovers": seen.failovers,
        "p50_ms": ms(seen.p50), "p99_ms": ms(seen.p99),
    })
}
