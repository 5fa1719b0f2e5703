//! Which models there are: those whose folders are on disk, and those that the ledger says were live.
//!
//! A model that was live and whose folder is broken or gone stays a model: it answers 503 with the reason
//! (promise 9) until its folder is mended and a version promoted, or until it is forgotten.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::Context;
use super::super::controller::{Command, Controller, Reins};
use super::super::journal::event;
use super::super::load::blocking;
use super::super::sight::Sight;
use super::Supervisor;
use crate::device::Kind;
use crate::error::{Error, Result};
use crate::repository::{ModelEntry, Park};
use crate::slot::Slot;

/// How often folders are looked at unasked: a few system calls for each model.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What was seen of the folders before.
pub(super) struct Folders {
    sight: Sight,
    /// What is wrong with a `model.toml`, by model, so that it is logged once.
    broken: BTreeMap<String, String>,
    /// The version that serves from memory only, by model, so that it is logged once.
    vanished: BTreeMap<String, String>,
    /// Whether what is wanted of host memory means nothing, and that was not said yet.
    parks_nothing: bool,
}

impl Folders {
    pub(super) fn new(ctx: &Context) -> Result<Folders> {
        let (repository, processors) = (Arc::clone(&ctx.repository), Arc::clone(ctx.engine.processors()));
        let parks_nothing = ctx.opened.kind() == Kind::Cpu;
        let sight = Sight::start(repository, ctx.journal.clone(), processors)?;
        Ok(Folders { sight, broken: BTreeMap::new(), vanished: BTreeMap::new(), parks_nothing })
    }

    fn saw(&mut self, entry: &ModelEntry) {
        let model = entry.name.as_str();
        match &entry.config {
            Ok(config) => {
                self.sight.found(model, &entry.versions, config);
                if self.parks_nothing && config.rollout.park == Park::Host {
                    self.parks_nothing = false;
                    tracing::info!(
                        model,
                        "park = \"host\" means nothing here: on a CPU weights lie in host memory already"
                    );
                }
                if self.broken.remove(model).is_some() {
                    tracing::info!(model, "its model.toml can be read again");
                }
            }
            Err(error) => {
                let reason = error.to_string();
                if self.broken.get(model) != Some(&reason) {
                    tracing::error!(model, %error, "its model.toml cannot be used");
                    self.broken.insert(model.to_owned(), reason);
                }
            }
        }
    }

    /// Says when the folder of what serves has gone or is back: nobody notices before the next start otherwise.
    fn saw_live(&mut self, slot: &Slot) {
        let model = slot.name();
        match slot.live_on_disk() {
            Some((version, false)) => {
                if self.vanished.get(model) != Some(&version) {
                    tracing::warn!(
                        model,
                        version,
                        "the folder of what serves is gone: it serves from memory, and will not after a restart"
                    );
                    self.vanished.insert(model.to_owned(), version);
                }
            }
            Some((version, true)) if self.vanished.get(model) == Some(&version) => {
                tracing::info!(model, version, "the folder of what serves is back");
                self.vanished.remove(model);
            }
            // Another version serves, or none.
            _ => drop(self.vanished.remove(model)),
        }
    }
}

impl Supervisor {
    /// At the start: what is on disk, and what the ledger says was live and may be gone.
    pub(super) async fn take_in_all(&self) -> Result<Vec<oneshot::Receiver<()>>> {
        let mut starting = self.refresh().await?;
        let mut controllers = self.controllers.lock().await;
        for model in self.ctx.journal.with(|ledger| ledger.models_once_live()).await? {
            if self.serves(&model) && !controllers.contains_key(&model) {
                starting.push(self.add(&mut controllers, Arc::new(Slot::new(model))));
            }
        }
        Ok(starting)
    }

    /// Looks at the folders again: new models get controllers, known ones their list of versions.
    pub(super) async fn refresh(&self) -> Result<Vec<oneshot::Receiver<()>>> {
        let mut controllers = self.controllers.lock().await;
        if self.stopping.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        let repository = Arc::clone(&self.ctx.repository);
        let mut entries = blocking(move || repository.scan()).await?;
        entries.retain(|entry| self.serves(&entry.name));
        for (name, reins) in controllers.iter() {
            if !entries.iter().any(|entry| entry.name == *name) {
                reins.slot.set_versions(Vec::new());
                self.folders().saw_live(&reins.slot);
            }
        }
        let mut starting = Vec::new();
        for entry in entries {
            self.folders().saw(&entry);
            let known = controllers.get(&entry.name).map(|reins| Arc::clone(&reins.slot));
            let slot = known.clone().unwrap_or_else(|| Arc::new(Slot::new(entry.name)));
            if let Ok(config) = &entry.config {
                slot.learn_task(config.task);
            }
            let arrived = slot.is_vacant() && !entry.versions.is_empty();
            slot.set_versions(entry.versions);
            self.folders().saw_live(&slot);
            if let Some(reins) = controllers.get(slot.name()).filter(|_| arrived) {
                // A full queue means that it has enough to do; the next look asks again.
                let _ = reins.commands.try_send(Command::ComeUp);
            }
            if known.is_none() {
                starting.push(self.add(&mut controllers, slot));
            }
        }
        Ok(starting)
    }

    /// Looks at the folders every now and then for as long as the supervisor lives, so that what appears is served without
    /// anybody asking for it.
    pub(super) fn keep_looking(supervisor: &Arc<Self>) {
        let supervisor = Arc::downgrade(supervisor);
        tokio::spawn(async move {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            // The first is at once, and the start has just looked.
            looks.tick().await;
            loop {
                looks.tick().await;
                let Some(supervisor) = supervisor.upgrade() else { return };
                if let Err(error) = supervisor.refresh().await {
                    // Whoever lists models is told the same.
                    tracing::debug!(%error, "the model folders could not be read");
                }
            }
        });
    }

    /// Drops a model whose folder is gone, from the process and from what the next start looks for. What it serves from memory it
    /// serves no more: whoever takes a folder away and names the model wants that.
    ///
    /// # Errors
    /// `Conflict` while its folder is there, or a rollout goes on.
    pub(super) async fn forget(&self, model: &str) -> Result<()> {
        let mut controllers = self.controllers.lock().await;
        if self.ctx.repository.model(model).is_ok() {
            return Err(Error::conflict(format!(
                "'{model}' serves nothing, but its folder is there; name a version, or take the folder away to have the model forgotten"
            )));
        }
        if let Some(reins) = controllers.get(model) {
            // Without a folder none can begin.
            if reins.status.handle.load_full().is_some_and(|handle| !handle.now().phase.is_end()) {
                let way_out = "settle it, or abort it, to end it now";
                return Err(Error::conflict(format!("a rollout of '{model}' goes on; {way_out}")));
            }
        }
        // First: where it cannot be written down, the model stays as it is, and somebody who looks after it.
        let forgotten = event(model, None, "forgotten", serde_json::json!({}));
        self.ctx.journal.forget(forgotten).await?;
        if let Some(reins) = controllers.get(model) {
            let (done, ended) = oneshot::channel();
            if reins.commands.send(Command::Forget(done)).await.is_ok() {
                // An error means that the controller is gone already.
                let _ = ended.await;
            }
        }
        self.registry.remove(model);
        controllers.remove(model);
        tracing::info!(model, "forgotten");
        Ok(())
    }

    fn folders(&self) -> MutexGuard<'_, Folders> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serves(&self, model: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == model)
    }

    fn add(&self, controllers: &mut BTreeMap<String, Reins>, slot: Arc<Slot>) -> oneshot::Receiver<()> {
        let name = slot.name().to_owned();
        self.registry.add(Arc::clone(&slot));
        let (reins, up) = Controller::start(Arc::clone(&self.ctx), slot);
        controllers.insert(name, reins);
        up
    }
}
