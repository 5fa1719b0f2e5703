//! Bringing a model up when the process starts, and down when it stops.

use std::sync::Arc;

use serde_json::json;

use super::super::journal::{event, now_ms};
use super::super::quiet::Urgency;
use super::super::residents;
use super::super::state::Event;
use super::super::steps;
use super::{Controller, Options};
use crate::error::{Error, Result};
use crate::ledger::Live;
use crate::slot::Route;

/// What to serve at the start, and why.
struct Start {
    version: String,
    /// The digest that was committed with it; a folder with another one is not it.
    digest: Option<String>,
    /// The ledger was empty: the version is a seed, and passes the gate first.
    seed: bool,
    crashed: bool,
}

impl Controller {
    pub(super) async fn boot(&mut self) {
        match self.try_boot().await {
            Ok(Some(version)) => tracing::info!(model = self.slot.name(), version, "serving"),
            Ok(None) => {
                tracing::info!(model = self.slot.name(), "nothing to serve: no version is here yet");
                self.slot.vacate();
            }
            Err(error) => {
                tracing::error!(model = self.slot.name(), %error, alert = true, "not serving");
                self.slot.clear(error.to_string());
                self.alert("not_serving", &error.to_string()).await;
                // It came up and could not be written down: what serves nobody is not live either.
                if let Some(resident) = self.live.take() {
                    let (engine, lingering) = (&self.ctx.engine, &self.ctx.lingering);
                    if let Err(error) = super::super::residents::reclaim(engine, lingering, resident).await {
                        tracing::error!(%error, "could not free what a failed start held");
                    }
                }
            }
        }
    }

    async fn try_boot(&mut self) -> Result<Option<String>> {
        let crashed = self.end_interrupted().await?;
        let Some(start) = self.choose_start(crashed).await? else { return Ok(None) };
        let digest = self.bring_up(&start.version, start.digest.as_deref(), start.seed).await?;
        let kind = if start.seed { "seeded" } else { "started" };
        let body = json!({ "version": start.version, "digest": digest, "after_crash": start.crashed });
        let note = event(self.slot.name(), None, kind, body);
        if start.seed {
            let live = Live {
                model: self.slot.name().to_owned(),
                version: start.version.clone(),
                digest,
                rollout: None,
                since_ms: now_ms(),
                previous: None,
            };
            self.ctx.journal.commit(live, note).await?;
        } else {
            self.ctx.journal.note(note).await;
        }
        Ok(Some(start.version))
    }

    async fn choose_start(&self, crashed: bool) -> Result<Option<Start>> {
        let model = self.slot.name().to_owned();
        if let Some(live) = self.ctx.journal.with(move |ledger| ledger.live(&model)).await? {
            let digest = Some(live.digest).filter(|digest| !digest.is_empty());
            return Ok(Some(Start { version: live.version, digest, seed: false, crashed }));
        }
        let entry = self.folder()?;
        let config = entry.config?;
        let version = match (config.live, entry.versions.as_slice()) {
            (Some(version), versions) if versions.contains(&version) => version,
            (_, []) => return Ok(None),
            (Some(version), versions) => {
                return Err(Error::Config {
                    file: format!("{}/model.toml", self.slot.name()),
                    key: "live".into(),
                    reason: format!("'{version}' is not here; versions: {}", versions.join(", ")),
                });
            }
            (None, [only]) => only.clone(),
            (None, versions) => {
                return Err(Error::Config {
                    file: format!("{}/model.toml", self.slot.name()),
                    key: "live".into(),
                    reason: format!("expected one of the versions: {}", versions.join(", ")),
                });
            }
        };
        Ok(Some(Start { version, digest: None, seed: true, crashed }))
    }

    /// Loads a version and makes it live, without a rollout: at the start, or to restore what was drained.
    ///
    /// Only a seed passes the gate: anything else has passed it before.
    async fn bring_up(&mut self, version: &str, digest: Option<&str>, gate: bool) -> Result<String> {
        let entry = self.folder().map_err(|_| {
            Error::unloadable(
                format!("{}@{version}", self.slot.name()),
                "the model's folder is gone, or has no model.toml",
            )
        })?;
        let mut config = entry.config?;
        if !gate {
            config.gate.latency_rounds = 0;
        }
        let id = self.ctx.ids.next();
        let mut candidate = steps::Candidate::new(id, self.slot.name(), version, config);
        candidate.gated = gate;
        candidate.urgency = Urgency::Awaited;
        candidate.parked = self.parked(version);
        candidate = self.go(steps::reserve(Arc::clone(&self.ctx), candidate, None, true)).await?;
        candidate = self.go(steps::load(Arc::clone(&self.ctx), candidate)).await?;
        let found = candidate.digest.clone().unwrap_or_default();
        if let Some(digest) = digest
            && digest != found
        {
            self.put_away(candidate).await;
            let reason = "the version folder is not the one that was made live: its digest changed";
            return Err(Error::unloadable(format!("{}@{version}", self.slot.name()), reason));
        }
        candidate = self.go(steps::warm(Arc::clone(&self.ctx), candidate)).await?;
        candidate = self.go(steps::validate(Arc::clone(&self.ctx), candidate, None)).await?;
        match (candidate.generation.take(), candidate.resident.take()) {
            (Some(generation), Some(resident)) => {
                self.slot.swap(Arc::new(Route::new(generation)));
                self.live = Some(resident);
                Ok(found)
            }
            _ => Err(Error::internal("a version passed its steps and is not resident")),
        }
    }

    /// Awaits a step; when it failed, frees what the candidate held.
    async fn go(&self, step: impl Future<Output = steps::Done>) -> Result<steps::Candidate> {
        let done = step.await;
        match done.notes.error {
            None => Ok(done.candidate),
            Some(error) => {
                self.put_away(done.candidate).await;
                Err(error)
            }
        }
    }

    async fn put_away(&self, mut candidate: steps::Candidate) {
        let (engine, lingering) = (&self.ctx.engine, &self.ctx.lingering);
        drop(candidate.generation.take());
        let result = match (candidate.resident.take(), candidate.room.take()) {
            (Some(resident), _) => super::super::residents::reclaim(engine, lingering, resident).await.map(drop),
            (None, Some(room)) => {
                let model = candidate.withdraw().await;
                super::super::residents::discard(engine, lingering, candidate.id, model, room).await.map(drop)
            }
            (None, None) => engine.retire(candidate.id, None).await.map(drop),
        };
        if let Err(error) = result {
            tracing::error!(%error, "could not free what a failed start held");
        }
    }

    /// Replace mode: the candidate failed, so what was drained for it is loaded again.
    pub(super) async fn restore_live(&mut self) {
        let Some(version) = self.active.as_mut().and_then(|active| active.drained.take()) else { return };
        if self.stopping {
            // The next start loads it.
            self.slot.clear("the server is stopping");
            return self.serves_again();
        }
        tracing::warn!(model = self.slot.name(), version, "loading the drained version again");
        if let Err(error) = self.bring_up(&version, None, false).await {
            tracing::error!(model = self.slot.name(), version, %error, alert = true, "the drained version did not come back");
            let reason = format!("'{version}' was drained and could not be loaded again: {error}");
            self.slot.clear(&*reason);
            self.alert("not_serving", &reason).await;
        }
        self.serves_again();
    }

    /// Ends the rollout that goes on, as DESIGN says: before the switch it is aborted, after it the version stays.
    pub(super) async fn shut_down(&mut self) {
        self.stopping = true;
        self.close_shelf();
        while self.active.is_some() {
            // Not taken in the middle of a switch or a drain; then again after what ends that.
            self.feed_late(Event::Shutdown).await;
            if self.active.is_none() {
                break;
            }
            match self.reports.recv().await {
                Some(report) => self.report(report).await,
                None => break,
            }
        }
        self.clear_shelf().await;
        let note = self.audit("stopped", json!({ "live": self.live.as_ref().map(|live| live.version.clone()) }));
        self.ctx.journal.note(note).await;
    }

    /// Serves no more. What was admitted is answered all the same, and when it is, the memory comes back: nobody waits for that.
    pub(super) fn let_go(&mut self) {
        drop(self.slot.clear("its folder is gone, and it was forgotten"));
        let Some(resident) = self.live.take() else { return };
        let ctx = Arc::clone(&self.ctx);
        tokio::spawn(async move {
            if let Err(error) = residents::reclaim(&ctx.engine, &ctx.lingering, resident).await {
                tracing::error!(%error, alert = true, "reclaiming failed");
            }
        });
    }
}

impl Options {
    /// Who asks, when nobody says.
    pub fn by(actor: Option<String>) -> Self {
        Options { actor, ..Options::default() }
    }
}
