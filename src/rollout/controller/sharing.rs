//! A candidate that answers before it is live: a share of requests, step by step (a canary) or for as long as two versions are
//! compared (an experiment); and the shadow, of which clients see nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::experiment::{self, Named, Side};
use super::super::judge::{Against, FALSE_ALARMS, Judge, Verdict};
use super::super::shadow;
use super::super::state::{Event, Phase};
use super::window::{LOOK, SOON};
use super::{Active, Answer, Controller, Options};
use crate::error::{Error, Result};
use crate::generation::{Generation, GenerationId, Observed};
use crate::repository::{CanaryConfig, Lasts, ModelConfig};
use crate::slot::{Arm, Route, Share, Split, Tally};

/// How often a step that ends with a number of requests is looked at.
const COUNT: Duration = Duration::from_millis(100);

/// How far back the latencies of `Stats::recently` reach, at most.
const RECENT: Duration = Duration::from_secs(120);

/// How often the ledger is told what an experiment has found: so much of it a crash may cost.
const KEEP: Duration = Duration::from_secs(10);

/// What is known while the candidate answers a share.
pub(super) struct Sharing {
    /// Since it answers at all.
    since: Instant,
    /// Since it answers this share, and what it had answered then.
    step_since: Instant,
    step_from: u64,
    looked: Instant,
    /// Since the ledger knows what an experiment has found.
    kept: Instant,
    /// An answer that calls for the next look came then.
    hastened: Option<Instant>,
    judge: Judge,
    experiment: Option<(Named, Arc<Tally>)>,
}

/// What the live version did when it had the engine to itself, as of the last share.
pub(super) struct Calm {
    live: GenerationId,
    seen: Observed,
    /// When the candidate's last share ended; none yet while it has one.
    ended: Option<Instant>,
}

impl Calm {
    /// Whether what is seen of the last minutes is still that of a share, so that what was seen before it says more.
    fn holds_for(&self, live: &Generation) -> bool {
        self.live == live.id() && self.ended.is_none_or(|ended| ended.elapsed() < RECENT)
    }
}

impl Sharing {
    pub(super) fn next_look(&self, config: &ModelConfig) -> Instant {
        let next = match (&self.experiment, config.canary.lasts) {
            (Some(_), _) => self.looked + LOOK,
            (None, Lasts::Requests(_)) => self.looked + COUNT,
            (None, Lasts::Time(step)) => (self.looked + LOOK).min(self.step_since + step),
        };
        self.hastened.map_or(next, |at| next.min(at + SOON))
    }

    /// An answer was slow, of a version that is likely to be found slow: it is looked at soon.
    pub(super) fn hasten(&mut self, now: Instant) {
        self.hastened.get_or_insert(now);
    }

    /// Whether a canary's step has lasted as long as it was to.
    fn is_over(&self, canary: &CanaryConfig, answered: u64) -> bool {
        match canary.lasts {
            Lasts::Requests(requests) => answered.saturating_sub(self.step_from) >= requests,
            Lasts::Time(step) => self.step_since.elapsed() >= step,
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
        canary.lasts = match (self.canary_step, self.canary_requests) {
            (_, Some(requests)) => Lasts::Requests(requests),
            (Some(step), None) => Lasts::Time(step),
            (None, None) => canary.lasts,
        };
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
        if let Some(share) = options.shadow {
            self.shadow_by(share, phase == Phase::Ready);
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
            let message = format!(
                "the rollout of '{version}' is in phase '{phase}'; an experiment begins with a version that is staged"
            );
            return Err(Error::Conflict { message, details: json!({ "rollout": active.id, "phase": phase }) });
        }
        options.reshape(&mut active.config);
        active.recorder.figure("experiment", json!({ "name": named.name }));
        active.sharing = Some(Sharing::begin(&active.config, Some((named, Arc::new(Tally::new())))));
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
        if first && !self.calm.as_ref().is_some_and(|calm| calm.holds_for(&route.live)) {
            self.calm = Some(Calm { live: route.live.id(), seen: route.live.stats.recently(), ended: None });
        }
        let sharing = active.sharing.get_or_insert_with(|| {
            let mut sharing = Sharing::begin(&active.config, None);
            // An experiment says how much faster or slower either is, and nobody waits for it to end.
            if let Some(calm) = &self.calm {
                sharing.judge = sharing.judge.and_earlier(calm.seen.clone());
            }
            sharing
        });
        if first {
            candidate.stats.restart_window();
            route.live.stats.restart_window();
            // Of no share yet.
            let _ = candidate.stats.accused();
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
        if let Some(calm) = &mut self.calm {
            calm.ended = Some(Instant::now());
        }
        self.tell_sharing();
        let Some(active) = &mut self.active else { return };
        active.sharing = None;
        if let Some(ending) = active.state.ending.clone() {
            active.recorder.kind("instant");
            active.recorder.figure("rollback_ms", took.as_secs_f64() * 1e3);
            if let Some(proven) = active.proven {
                active.recorder.figure("breach_to_store_ms", (began + took).duration_since(proven).as_secs_f64() * 1e3);
            }
            tracing::warn!(model = self.slot.name(), reason = ending.reason, alert = true, "a share was taken back");
        }
        let mut said = json!({ "percent": 0 });
        if let Some(ending) = &active.state.ending {
            let record = active.recorder.view().record.clone();
            said = json!({
                "percent": 0, "taken_back": true, "from": record.to, "to": record.from, "reason": ending.reason,
                "asked": active.asked,
            });
        }
        let note = self.audit("share", said);
        self.ctx.journal.note(note).await;
    }

    /// Looks after a candidate that passed its gate: the rules on what it answers, and on what its shadow says.
    pub(super) async fn look_at_candidate(&mut self, told: bool) {
        if !told {
            self.tell_sharing();
        }
        let Some(active) = &mut self.active else { return };
        if let Some(apart) = active.shadow.as_ref().and_then(|run| run.seen().breach()) {
            return self.disagrees(&apart).await;
        }
        let Some(active) = &mut self.active else { return };
        let (Some(stats), Some(live), Some(sharing)) = (active.candidate_stats(), &self.live, &mut active.sharing)
        else {
            return;
        };
        // Asked for first: what is blamed after this is judged at the next look, which it calls for.
        let accused = stats.accused();
        let now = Instant::now();
        sharing.looked = now;
        let hastened = sharing.hastened.take();
        let (seen, beside) = (stats.observed(), live.stats.observed());
        let seen = match &active.shadow {
            Some(run) => run.seen().add_to(seen),
            None => seen,
        };
        let breach = sharing.judge.look(now.duration_since(sharing.since), &seen, Against::Beside(&beside));
        stats.watch_for(sharing.judge.leaning());
        if !told || breach.is_some() {
            let verdicts = sharing.judge.verdicts(&seen, Against::Beside(&beside));
            active.recorder.figure("verdicts", verdicts.iter().map(Verdict::to_json).collect::<Vec<_>>());
        }
        if let Some(breach) = breach {
            return self.broken(&breach, accused.or(hastened).unwrap_or(now)).await;
        }
        let seen = stats.snapshot();
        if active.state.phase == Phase::Canary && sharing.is_over(&active.config.canary, seen.answered + seen.blamed) {
            self.feed_late(Event::StepOver).await;
        }
    }

    /// The two versions do not agree as they must: whoever is new goes, and that is told then.
    pub(super) async fn disagrees(&mut self, verdict: &Verdict) {
        let reason = verdict.to_string();
        if let Some(active) = &mut self.active {
            active.recorder.figure("verdict", verdict.to_json());
        }
        let staged = self.active.as_ref().is_some_and(|active| active.state.phase == Phase::Ready);
        let event = if staged { Event::GateRefused(reason.clone()) } else { Event::Breach(reason.clone()) };
        self.feed_late(event).await;
        self.alert("breach", &reason).await;
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
            self.keep_experiment();
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
                "percent": share, "reached": percent, "step": active.state.step + 1, "steps": active.config.canary.steps,
                "seconds": sharing.since.elapsed().as_secs_f64(),
                "candidate": told(candidate), "live": told(live),
            }),
        );
        active.recorder.publish();
    }

    /// Has the ledger know what an experiment has found, now and then. Nobody waits for it.
    fn keep_experiment(&mut self) {
        let Some(Active { sharing: Some(sharing), recorder, .. }) = &mut self.active else { return };
        if sharing.kept.elapsed() < KEEP {
            return;
        }
        sharing.kept = Instant::now();
        let (journal, record) = (self.ctx.journal.clone(), recorder.record());
        tokio::spawn(async move {
            if let Err(error) = journal.with(move |ledger| ledger.refresh_rollout(&record)).await {
                tracing::warn!(%error, "what an experiment has found is not in the ledger yet");
            }
        });
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

    /// From now on another share of the answers is compared, from the beginning where it is another: what was seen stays in
    /// the record until then.
    pub(super) fn shadow_by(&mut self, share: f64, stands: bool) {
        let Some(active) = &mut self.active else { return };
        let same = active.shadow.as_ref().is_some_and(|run| run.seen().share() == share);
        active.config.shadow.share = share;
        if same || !stands {
            return;
        }
        if let Some(route) = self.slot.route() {
            self.slot.swap(Arc::new(Route { shadow: None, ..Route::clone(&route) }));
        }
        self.end_shadow();
        self.begin_shadow();
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
    fn begin(config: &ModelConfig, experiment: Option<(Named, Arc<Tally>)>) -> Sharing {
        let now = Instant::now();
        let judge = Judge::new(config.observe.rules(), FALSE_ALARMS);
        Sharing { since: now, step_since: now, step_from: 0, looked: now, kept: now, hastened: None, judge, experiment }
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
