//! Performing what the state machine orders.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::journal::{event, now_ms};
use super::super::recheck::Watched;
use super::super::residents;
use super::super::state::{Action, Ending, Event, Phase};
use super::super::steps;
use super::{Controller, Report};
use crate::ledger::{Live, NewEvent};
use crate::slot::Route;

impl Controller {
    /// Does one action; whatever event follows at once is returned, long work reports later.
    pub(super) async fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Reserve | Action::Load | Action::Warm | Action::Validate => self.begin_step(&action),
            Action::DrainLive => self.drain_live(),
            Action::Stand => self.stand(),
            Action::Share => self.share().await,
            Action::Unshare => self.unshare().await,
            Action::Switch => return Some(self.switch().await),
            Action::StartWindow => return self.start_window(),
            Action::SwitchBack => self.switch_back().await,
            Action::ReclaimPrevious => {
                self.reclaim_previous();
                self.keep_ending().await;
            }
            Action::ReclaimCandidate => {
                self.reclaim_candidate().await;
                self.keep_ending().await;
            }
            Action::RestoreLive => self.restore_live().await,
            Action::Finish(ending) => self.finish(ending).await,
        }
        None
    }

    /// Writes down that the rollout entered a phase, and tells everybody.
    pub(super) async fn entered(&mut self, phase: Phase) {
        let Some(active) = &mut self.active else { return };
        active.recorder.enter(phase);
        if phase == Phase::Reclaiming {
            active.window = None;
        }
        // Whoever hears of the end reads the record.
        if let Some(reason) =
            active.state.ending.as_ref().filter(|_| phase.is_end()).and_then(|end| end.reason.as_ref())
        {
            active.recorder.reason(reason);
        }
        let record = active.recorder.record();
        let mut note = event(&record.model, Some(&record.id), "phase", json!({ "phase": phase, "to": record.to }));
        if let Some(ending) = active.state.ending.as_ref().filter(|_| phase.is_end()) {
            note.body["reason"] = json!(ending.reason);
        }
        note.actor = active.options.actor.clone();
        self.publish_candidate();
        if phase == Phase::Ready {
            self.measure_differences();
        }
        let Some(active) = &mut self.active else { return };
        // A switch back is in force before anything is written.
        if phase == Phase::Reclaiming {
            return;
        }
        if let Err(error) = self.ctx.journal.save(record, note).await {
            tracing::error!(%error, rollout = active.id, "a rollout could not be written to the ledger");
            active.recorder.warn(format!("this rollout is not in the ledger as it is now: {error}"));
        }
    }

    /// Hands the candidate to a task that runs one step and reports.
    fn begin_step(&mut self, action: &Action) {
        let Some(active) = &mut self.active else { return };
        let Some(candidate) = active.candidate.take() else { return };
        let (ctx, reporter, rollout) = (Arc::clone(&self.ctx), self.reporter.clone(), active.id.clone());
        // Whoever goes back leaves what is live, and does not want to be held against it.
        let back = active.cold_rollback;
        let accept = active.options.accept_contract_change || back;
        let before = active.before.clone();
        let live = self.slot.route().map(|route| Arc::clone(&route.live)).filter(|_| !back);
        let action = action.clone();
        tokio::spawn(async move {
            let candidate = *candidate;
            let done = match action {
                Action::Reserve => steps::reserve(ctx, candidate, before, accept).await,
                Action::Load => steps::load(ctx, candidate).await,
                Action::Warm => steps::warm(ctx, candidate).await,
                _ => steps::validate(ctx, candidate, live).await,
            };
            // The controller outlives its steps unless the process stops.
            let _ = reporter.send(Report::Step { rollout, done: Box::new(done) });
        });
    }

    /// Makes the candidate reachable by name, beside what is live.
    fn stand(&mut self) {
        let Some(active) = &mut self.active else { return };
        let Some(candidate) = &mut active.candidate else { return };
        if let (Some(processor), Some(resident)) = (&candidate.processor, &candidate.resident) {
            active.watched = Some(Watched {
                generation: resident.id,
                reference: candidate.reference(),
                cases: Arc::clone(&candidate.cases),
                processor: Arc::clone(processor),
                config: active.config.clone(),
            });
        }
        if let Some(route) = self.slot.route() {
            let standby = candidate.generation.take();
            self.slot.swap(Arc::new(Route { standby, ..Route::clone(&route) }));
        }
        self.begin_shadow();
        self.publish_candidate();
    }

    /// The switch. The ledger first: if it cannot be written, blue stays. Then one pointer store.
    async fn switch(&mut self) -> Event {
        self.tell_sharing();
        let Some(active) = &mut self.active else { return Event::SwitchFailed("no rollout goes on".into()) };
        let route = self.slot.route();
        let standing = route.as_ref().and_then(|route| route.standby.clone());
        let candidate = active.candidate.as_mut();
        let own = candidate.and_then(|candidate| candidate.generation.take());
        let Some(generation) = standing.or(own) else {
            return Event::SwitchFailed("the candidate is gone".into());
        };
        let record = active.recorder.record();
        let cold_rollback = active.cold_rollback;
        let began = Instant::now();
        let live = Live {
            model: record.model.clone(),
            version: record.to.clone(),
            digest: generation.digest.clone(),
            rollout: Some(record.id.clone()),
            since_ms: now_ms(),
            previous: if cold_rollback { None } else { record.from.clone() },
        };
        let reason = active.options.reason.clone();
        let note = self.audit(
            "switched",
            json!({ "from": record.from, "to": record.to, "digest": live.digest,
            "generation": generation.id(), "reason": reason }),
        );
        if let Err(error) = self.ctx.journal.commit(live, note).await {
            tracing::error!(%error, "the switch could not be written to the ledger; nothing was switched");
            let Some(active) = &mut self.active else { return Event::SwitchFailed(error.to_string()) };
            active.recorder.error(&error);
            // The candidate's generation goes with the route that holds it, or here.
            if let Some(candidate) = &mut active.candidate {
                candidate.generation = Some(generation);
            }
            return Event::SwitchFailed(error.to_string());
        }
        let ledger_ms = began.elapsed().as_secs_f64() * 1e3;
        let previous = route.as_ref().map(|route| Arc::clone(&route.live));
        // A changed contract has no equal to fail over to.
        let failover = previous.as_ref().is_some_and(|p| generation.contract.changes_from(&p.contract).is_empty());
        generation.stats.restart_window();
        let next = Arc::new(Route { previous, failover, ..Route::new(generation) });
        drop(route);
        let at = self.ctx.engine.now();
        let stored = Instant::now();
        let old = self.slot.swap(next);
        let store_ns = stored.elapsed().as_nanos() as u64;
        drop(old);
        self.serves_again();
        self.end_shadow();
        self.end_sharing();
        self.previous = self.live.take();
        let Some(active) = &mut self.active else { return Event::Switched };
        self.live = active.candidate.as_mut().and_then(|candidate| candidate.resident.take());
        active.candidate = None;
        active.switched_at = Some(at);
        active.recorder.switched();
        active.recorder.figure("ledger_ms", ledger_ms);
        active.recorder.figure("store_ns", store_ns);
        active.recorder.figure("failover", failover);
        if cold_rollback {
            active.recorder.figure("cold_rollback_ms", (now_ms() - record.started_ms).max(0));
        }
        tracing::info!(
            model = record.model,
            from = record.from,
            to = record.to,
            rollout = record.id,
            store_ns,
            "switched"
        );
        Event::Switched
    }

    /// Back to the version before: the store first, then the ledger, with retries until it is written.
    async fn switch_back(&mut self) {
        let began = Instant::now();
        let Some(previous) = self.slot.route().and_then(|route| route.previous.clone()) else {
            // The machine orders this only within a window, and a window has a previous version.
            return tracing::error!("there is no previous version to switch back to");
        };
        let digest = previous.digest.clone();
        let at = self.ctx.engine.now();
        drop(self.slot.swap(Arc::new(Route::new(previous))));
        let stored = Instant::now();
        let store_us = (stored - began).as_secs_f64() * 1e6;
        self.end_shadow();
        let gone = std::mem::replace(&mut self.live, self.previous.take());
        let Some(active) = &mut self.active else { return };
        let record = active.recorder.record();
        active.recorder.kind("instant");
        active.switched_at = Some(at);
        if let Some(gone) = gone {
            let mut candidate = steps::Candidate::new(gone.id, &record.model, &record.to, active.config.clone());
            candidate.resident = Some(gone);
            active.candidate = Some(Box::new(candidate));
        }
        let reason = active.state.ending.as_ref().and_then(|ending| ending.reason.clone());
        let asked = active.asked;
        let live = Live {
            model: record.model.clone(),
            version: record.from.clone().unwrap_or_default(),
            digest,
            rollout: Some(record.id.clone()),
            since_ms: now_ms(),
            previous: None,
        };
        tracing::warn!(model = record.model, from = record.to, to = record.from, reason, alert = true, "rolled back");
        let note = self
            .audit("rolled_back", json!({ "from": record.to, "to": record.from, "reason": reason, "asked": asked }));
        let sync = Instant::now();
        let written = self.ctx.journal.commit_anyway(live, note).await;
        let Some(active) = &mut self.active else { return };
        if let Err(error) = written {
            tracing::error!(%error, alert = true, "the rollback is in force but is not written to the ledger yet");
            active.recorder.warn(format!("the rollback is in force, but not in the ledger yet: {error}"));
        }
        active.recorder.figure("rollback_store_us", store_us);
        if let Some(proven) = active.proven {
            active.recorder.figure("breach_to_store_ms", stored.duration_since(proven).as_secs_f64() * 1e3);
        }
        active.recorder.figure("rollback_ledger_ms", sync.elapsed().as_secs_f64() * 1e3);
        active.recorder.figure("rollback_ms", began.elapsed().as_secs_f64() * 1e3);
    }

    /// Ends the window: the route lets go of the previous version, which then drains and is freed.
    fn reclaim_previous(&mut self) {
        if let Some(route) = self.slot.route() {
            self.slot.swap(Arc::new(Route { previous: None, failover: false, shadow: None, ..Route::clone(&route) }));
        }
        self.end_shadow();
        let resident = self.previous.take();
        self.reclaim(resident, |rollout, result| Report::Reclaimed { rollout, result });
    }

    /// What the rollout has come to, also where the process does not live to see the memory come back. That a version was
    /// taken back is written by what took it back, and whoever asked for that waits for no second writing.
    async fn keep_ending(&mut self) {
        let Some(active) = &self.active else { return };
        let Some(ending) = active.state.ending.as_ref().filter(|end| end.phase != Phase::RolledBack) else { return };
        let record = active.recorder.record();
        let body =
            json!({ "phase": Phase::Reclaiming, "to": record.to, "ends": ending.phase, "reason": ending.reason });
        let note = self.audit("phase", body);
        if let Err(error) = self.ctx.journal.save(record, note).await {
            tracing::error!(%error, "what a rollout has come to could not be written to the ledger");
        }
    }

    /// Replace mode: nothing is served from here until the candidate is live, or the old version is back.
    fn drain_live(&mut self) {
        self.slot.clear("its version is being replaced");
        let resident = self.live.take();
        if let Some(active) = &mut self.active {
            active.drained = resident.as_ref().map(|resident| resident.version.clone());
            active.dark_since = Some(Instant::now());
        }
        self.reclaim(resident, |rollout, result| Report::Drained { rollout, result });
    }

    fn reclaim(
        &mut self,
        resident: Option<residents::Resident>,
        report: fn(String, crate::error::Result<residents::Reclaimed>) -> Report,
    ) {
        let Some(active) = &self.active else { return };
        let (ctx, reporter, rollout) = (Arc::clone(&self.ctx), self.reporter.clone(), active.id.clone());
        tokio::spawn(async move {
            let result = match resident {
                Some(resident) => residents::reclaim(&ctx.engine, &ctx.lingering, resident).await,
                // A first version, or replace mode: there was nothing beside it.
                None => Ok(residents::Reclaimed::nothing(crate::generation::GenerationId(0))),
            };
            let _ = reporter.send(report(rollout, result));
        });
    }

    /// Stops what is being done for the candidate and frees what it holds.
    pub(super) async fn reclaim_candidate(&mut self) {
        self.tell_sharing();
        let Some(active) = &mut self.active else { return };
        active.progress.cancel();
        let Some(candidate) = active.candidate.take() else {
            active.reclaim_on_return = true;
            return;
        };
        self.end_sharing();
        if let Some(route) = self.slot.route()
            && route.standby.is_some()
        {
            self.slot.swap(Arc::new(Route { standby: None, split: None, shadow: None, ..Route::clone(&route) }));
        }
        self.end_shadow();
        let Some(active) = &self.active else { return };
        let (ctx, reporter, rollout) = (Arc::clone(&self.ctx), self.reporter.clone(), active.id.clone());
        tokio::spawn(async move {
            let mut candidate = *candidate;
            drop(candidate.generation.take());
            let (engine, lingering) = (&ctx.engine, &ctx.lingering);
            let result = match (candidate.resident.take(), candidate.room.take()) {
                (Some(resident), _) => residents::reclaim(engine, lingering, resident).await,
                (None, Some(room)) => {
                    let model = candidate.withdraw().await;
                    residents::discard(engine, lingering, candidate.id, model, room).await
                }
                // It never had room; what it may have looked up is released.
                (None, None) => {
                    engine.retire(candidate.id, None).await.map(|_| residents::Reclaimed::nothing(candidate.id))
                }
            };
            let _ = reporter.send(Report::Reclaimed { rollout, result });
        });
    }

    /// The end: written, told, and forgotten.
    async fn finish(&mut self, ending: Ending) {
        self.downtime().await;
        let Some(active) = &mut self.active else { return };
        let record = active.recorder.record();
        let (model, version, rollout) = (&record.model, &record.to, &record.id);
        let (end, reason) = (ending.phase.name(), &ending.reason);
        match ending.phase {
            Phase::Failed | Phase::Refused => {
                tracing::warn!(model, version, rollout, end, reason, "the rollout has ended")
            }
            _ => tracing::info!(model, version, rollout, end, reason, "the rollout has ended"),
        }
        self.ctx.journal.save_end(record).await;
        if let Some(active) = &self.active {
            active.recorder.publish();
        }
        let over = self.active.take();
        self.status.candidate.store(None);
        self.status.handle.store(over.as_ref().map(|active| Arc::new(active.recorder.handle())));
        if let Some(active) = over.filter(|_| ending.phase == Phase::Settled) {
            let record = active.recorder.record();
            // After going back there is nothing to go back to.
            let before = record.from.filter(|_| !active.cold_rollback);
            self.settled(before, &record.to, &active.config);
        }
    }

    /// Replace mode: something answers again, and for how long nothing did is known.
    pub(super) fn serves_again(&mut self) {
        let Some(active) = &mut self.active else { return };
        if let Some(since) = active.dark_since.take() {
            active.recorder.figure("downtime_ms", since.elapsed().as_secs_f64() * 1e3);
        }
    }

    /// How long nothing answered, where a version is replaced; else the longest time round the store in which clients' work
    /// waited and the engine stood idle.
    async fn downtime(&mut self) {
        const ROUND: u64 = 1_000_000_000;
        // Where nothing came back, nothing does.
        self.serves_again();
        if self.active.as_ref().is_some_and(|active| active.recorder.view().record.figures.contains_key("downtime_ms"))
        {
            return;
        }
        let Some(at) = self.active.as_ref().and_then(|active| active.switched_at) else { return };
        match self.ctx.engine.longest_gap(at.saturating_sub(ROUND), at + ROUND).await {
            Ok(gap) => {
                if let Some(active) = &mut self.active {
                    active.recorder.figure("downtime_ms", gap.as_secs_f64() * 1e3);
                }
            }
            Err(error) => tracing::warn!(%error, "the downtime of a switch could not be measured"),
        }
    }

    /// An event that says who did it.
    pub(super) fn audit(&self, kind: &str, body: Value) -> NewEvent {
        let rollout = self.active.as_ref().map(|active| active.id.as_str());
        let mut note = event(self.slot.name(), rollout, kind, body);
        note.actor = self.active.as_ref().and_then(|active| active.options.actor.clone());
        note
    }
}
