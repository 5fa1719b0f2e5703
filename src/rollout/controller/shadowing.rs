//! The shadow of a rollout: when it begins and ends, what its record says of it, and what follows where versions do not agree.

use std::sync::Arc;

use super::super::judge::Verdict;
use super::super::shadow;
use super::super::state::{Event, Phase};
use super::{Active, Controller};
use crate::generation::Generation;
use crate::slot::Route;

impl Controller {
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
}

fn side(generation: &Arc<Generation>) -> shadow::Side {
    shadow::Side {
        generation: generation.id(),
        version: generation.version().to_owned(),
        processor: Arc::clone(&generation.processor),
        tokenizer: generation.contract.tokenizer.clone(),
    }
}
