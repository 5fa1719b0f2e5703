//! A candidate that answers before it is live: a share of requests, step by step (a canary) or for as long as two versions are
//! compared (an experiment).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::experiment::{self, Named, Side};
use super::super::judge::{Eras, FALSE_ALARMS, Verdict};
use super::super::state::{Event, Goal, Phase};
use super::calm::Calm;
use super::window::{LOOK, SOON};
use super::{Answer, Controller, Options};
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::repository::{CanaryConfig, Lasts, Mode, ModelConfig};
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
    /// Since the ledger knows what an experiment has found.
    /// An answer that calls for the next look came then.
    hastened: Option<Instant>,
    judge: Eras,
    experiment: Option<(Named, Arc<Tally>)>,
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
    fn speaks_of_a_canary(&self) -> bool {
        self.canary.is_some() || self.says_how()
    }

    /// How a canary's steps are to be, whatever they are.
    fn says_how(&self) -> bool {
        self.canary_step.is_some() || self.canary_requests.is_some() || self.sticky.is_some()
    }

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

/// Whether an order of traffic can be had as `config` is with it: two versions beside each other to share requests or to compute the
/// same, and steps for what is said of them. Whoever forgets the steps does not want all traffic to move at once.
pub(super) fn can_be_had(config: &ModelConfig, options: &Options) -> Result<()> {
    let steps = options.canary.as_ref().is_some_and(|steps| !steps.is_empty());
    let shadow = options.shadow.is_some_and(|share| share > 0.0);
    match config.rollout.mode {
        Mode::Replace if steps || shadow => Err(Error::conflict(format!(
            "there is no '{}' where a version is replaced ([rollout] mode = \"replace\"): it is freed before the next is loaded",
            if steps { "canary" } else { "shadow" }
        ))),
        // As it is with the order: of no steps nothing can be said.
        _ if options.says_how() && config.canary.steps.is_empty() => Err(Error::conflict(
            "expected the steps of a canary beside what is said of them, such as \"canary\": [5, 25], or [canary] steps in \
             model.toml",
        )),
        _ => Ok(()),
    }
}

impl Controller {
    /// Takes what a later promote says of the way to go, and what is to be fed then.
    ///
    /// Errors: [`Error::Conflict`] for what cannot be had any more, or not now: nothing that was said is passed over.
    pub(super) fn reshape(&mut self, phase: Phase, options: &Options) -> Result<Event> {
        let Some(active) = &mut self.active else { return Ok(Event::Promote) };
        let mut wanted = active.config.clone();
        options.reshape(&mut wanted);
        can_be_had(&wanted, options)?;
        let skips = options.canary.as_ref().is_some_and(Vec::is_empty);
        if options.speaks_of_a_canary() && !skips {
            if phase == Phase::Experiment {
                return Err(Error::conflict(
                    "an experiment goes on; stop it and promote with a canary then, or promote without one now",
                ));
            }
            // Asking again for what goes on joins it.
            if active.state.goal == Goal::Live && wanted.canary != active.config.canary {
                let (id, ask) = (&active.id, "or roll it back, or abort it, and begin anew");
                return Err(Error::conflict(match phase {
                    Phase::Observing => {
                        format!("rollout {id} has gone live already, as it was ordered; leave it so, {ask}")
                    }
                    _ => format!(
                        "rollout {id} goes on as it was ordered; promote with \"canary\": [] to skip what is left of its canary, {ask}"
                    ),
                }));
            }
        }
        let event = match phase {
            Phase::Canary if skips => Event::SkipSteps,
            Phase::Canary | Phase::Experiment | Phase::Observing => Event::Promote,
            _ => {
                active.state.steps = wanted.canary.steps.len();
                active.config = wanted;
                Event::Promote
            }
        };
        if let Some(share) = options.shadow {
            let stands = matches!(phase, Phase::Ready | Phase::Canary | Phase::Experiment | Phase::Observing);
            self.shadow_by(share, stands);
        }
        Ok(event)
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
        // From here on it is theirs who compare, whoever staged it.
        active.options.actor.clone_from(&options.actor);
        active.options.reason.clone_from(&options.reason);
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
            self.calm = Some(Calm::of(&route.live));
        } else if let Some(calm) = &mut self.calm {
            calm.go_on();
        }
        let sharing = active.sharing.get_or_insert_with(|| {
            let mut sharing = Sharing::begin(&active.config, None);
            // An experiment says how much faster or slower either is, and nobody waits for it to end.
            if let Some(calm) = &self.calm {
                sharing.judge = sharing.judge.and_earlier(calm.seen().clone());
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
            "experiment": sharing.experiment.as_ref().map(|(named, _)| &named.name), "reason": active.options.reason,
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
        self.end_sharing();
        let Some(active) = &mut self.active else { return };
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

    /// The candidate has no share any more: the route says so already, or does so now.
    pub(super) fn end_sharing(&mut self) {
        let sharing = self.active.as_mut().and_then(|active| active.sharing.take());
        if sharing.is_some()
            && let Some(calm) = &mut self.calm
        {
            calm.end();
        }
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
        let breach = sharing.judge.look(now.duration_since(sharing.since), &seen, &beside);
        stats.watch_for(sharing.judge.leaning());
        if !told || breach.is_some() {
            let verdicts = sharing.judge.verdicts(&seen, &beside);
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
                "percent": share, "reached": percent, "step": active.state.step + 1, "steps": active.config.canary.steps,
                "seconds": sharing.since.elapsed().as_secs_f64(),
                "candidate": told(candidate), "live": told(live),
            }),
        );
        active.recorder.publish();
    }
}

impl Sharing {
    fn begin(config: &ModelConfig, experiment: Option<(Named, Arc<Tally>)>) -> Sharing {
        let now = Instant::now();
        let judge = Eras::new(config.observe.rules(), FALSE_ALARMS);
        Sharing { since: now, step_since: now, step_from: 0, looked: now, hastened: None, judge, experiment }
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
