//! What operators ask for, decided against what goes on.

use std::time::Instant;

use super::super::difference::Before;
use super::super::record::{Opening, Recorder};
use super::super::state::{self, Event, Goal, Phase};
use super::super::steps;
use super::sharing::can_be_had;
use super::{Active, Answer, Command, Controller, Freed, Options};
use crate::error::{Error, Result};
use crate::repository::{Mode, ModelEntry};

impl Controller {
    pub(super) async fn command(&mut self, command: Command) {
        // Whoever asked may have hung up; what was asked is done all the same.
        match command {
            Command::Stage(version, options, reply) => {
                let answer = self.stage(version, options).await;
                let _ = reply.send(answer);
            }
            Command::Promote(version, options, reply) => {
                let answer = self.promote(version, options).await;
                let _ = reply.send(answer);
            }
            Command::Rollback(to, options, reply) => {
                let answer = self.rollback(to.as_deref(), options).await;
                let _ = reply.send(answer);
            }
            Command::Settle(version, reply) => {
                let answer = self.settle(version.as_deref()).await;
                let _ = reply.send(answer);
            }
            Command::Compare(version, named, options, reply) => {
                let answer = self.compare(version, named, options).await;
                let _ = reply.send(answer);
            }
            Command::StopComparing(name, reply) => {
                let answer = self.stop_comparing(&name).await;
                let _ = reply.send(answer);
            }
            Command::Abort(id, options, reply) => {
                let answer = self.abort(id, options).await;
                let _ = reply.send(answer);
            }
            Command::ReadAhead(version, actor, reply) => {
                let _ = reply.send(self.read_ahead(version, actor));
            }
            Command::Release(version, reply) => {
                let answer = self.release(&version).await;
                let gone = answer.is_ok().then(|| self.unpark(&version)).flatten();
                // Letting go of host memory takes its time; the controller has others to look after meanwhile.
                tokio::spawn(async move {
                    let unparked = gone.is_some();
                    if let Some(gone) = gone {
                        // An error means that something else was wanted in its place: it is gone all the same.
                        let _ = gone.await;
                    }
                    let _ = reply.send(answer.map(|answer| Freed { answer, unparked }));
                });
            }
            // It may have come up meanwhile, or be on its way by a rollout.
            Command::ComeUp if self.slot.is_vacant() && self.active.is_none() => self.boot().await,
            Command::ComeUp => {}
            // Taken by the loop itself.
            Command::Shutdown(done) | Command::Forget(done) => {
                let _ = done.send(());
            }
        }
    }

    async fn stage(&mut self, version: String, options: Options) -> Result<Answer> {
        if self.is_live(&version) {
            return Ok(self.already(version));
        }
        match self.going() {
            Some((to, phase)) if to == version => {
                if let Some(share) = options.shadow {
                    self.shadow_by(share, phase == Phase::Ready);
                }
                self.joined()
            }
            Some(_) => Err(self.busy(&version)),
            None => self.open(version, options, Goal::Ready, false).await,
        }
    }

    async fn promote(&mut self, version: String, options: Options) -> Result<Answer> {
        match self.going() {
            None if self.is_live(&version) => Ok(self.already(version)),
            None => self.open(version, options, Goal::Live, false).await,
            Some((to, Phase::Observing)) if to == version => {
                self.reshape(Phase::Observing, &options)?;
                if let Some(length) = options.observe {
                    self.observe_for(length).await;
                }
                self.joined()
            }
            // Promoting what was live before is going back, which is at once.
            Some((_, Phase::Observing)) if self.is_previous(&version) => {
                if options.canary.as_ref().is_some_and(|steps| !steps.is_empty()) {
                    let message = format!(
                        "'{version}' was live before, and going back to it is at once; settle first for a canary"
                    );
                    return Err(Error::conflict(message));
                }
                self.rollback(Some(&version), options).await
            }
            Some((to, phase)) if to == version && phase != Phase::Reclaiming => {
                let event = self.reshape(phase, &options)?;
                if let Some(active) = &mut self.active {
                    active.options.observe = options.observe.or(active.options.observe);
                    active.options.accept_contract_change |= options.accept_contract_change;
                    // Who has a staged version answer clients need not be who staged it.
                    if active.state.goal == Goal::Ready || matches!(event, Event::SkipSteps) {
                        active.ordered_by(&options);
                    }
                }
                self.feed(event).await?;
                self.joined()
            }
            // After its switch the version is live already; only the old one is still being reclaimed.
            Some((to, _)) if to == version && self.is_live(&version) => self.joined(),
            Some(_) if self.is_live(&version) => Ok(self.already(version)),
            Some(_) => Err(self.busy(&version)),
        }
    }

    /// `DELETE`: frees the memory of a version that does not serve.
    async fn release(&mut self, version: &str) -> Result<Answer> {
        match self.going() {
            Some((_, Phase::Observing)) if self.is_previous(version) => Err(Error::conflict(format!(
                "'{version}' stays resident for a rollback until the window ends; settle ends it now and frees its memory"
            ))),
            Some((to, Phase::Experiment)) if to == version => {
                Err(Error::conflict(format!("'{version}' answers in an experiment; stop that first")))
            }
            Some((to, Phase::Canary)) if to == version => {
                Err(Error::conflict(format!("'{version}' answers in a canary; roll back or abort that first")))
            }
            Some((to, phase)) if to == version && !matches!(phase, Phase::Observing | Phase::Reclaiming) => {
                self.abort(None, Options { reason: Some("its memory was to be freed".into()), ..Options::default() })
                    .await
            }
            _ if self.is_live(version) => Err(Error::conflict(match self.ctx.repository.is_gone(self.slot.name()) {
                false => format!("'{version}' is live; promote another version before its memory can be freed"),
                true => format!(
                    "'{version}' is live, and the folder of '{0}' is gone; name '{0}' alone to have it served no more and forgotten",
                    self.slot.name()
                ),
            })),
            Some((to, Phase::Reclaiming)) if to == version || self.is_previous(version) => self.joined(),
            _ => Ok(self.already(version.to_owned())),
        }
    }

    /// Begins a rollout.
    pub(super) async fn open(
        &mut self,
        version: String,
        options: Options,
        goal: Goal,
        cold_rollback: bool,
    ) -> Result<Answer> {
        let entry = self.folder()?;
        // Says clearly that there is no such folder before a rollout begins.
        self.ctx.repository.version_dir(self.slot.name(), &version)?;
        let mut config = entry.config?;
        options.reshape(&mut config);
        match goal {
            Goal::Live => can_be_had(&config, &options)?,
            // It would be freed for one that stands by and answers nobody.
            Goal::Ready if config.rollout.mode == Mode::Replace && self.live.is_some() => {
                return Err(Error::conflict(format!(
                    "'{version}' cannot be staged: [rollout] mode = \"replace\" has one version at a time, and what is live \
                     would be freed for it; promote it, or stage it into host memory only (\"park\": \"host\")"
                )));
            }
            Goal::Ready => {}
        }
        let id = self.ctx.ids.next();
        let rollout = format!("{}-{id}", self.slot.name());
        let mode = config.rollout.mode;
        let mut state = state::begin(goal, mode, self.live.is_some());
        // Going back is at once.
        state.steps = if cold_rollback { 0 } else { config.canary.steps.len() };
        let first = first_phase(mode, self.live.is_some());
        let opening = Opening {
            id: rollout.clone(),
            model: self.slot.name().to_owned(),
            from: self.live.as_ref().map(|live| live.version.clone()),
            to: version.clone(),
            actor: options.actor.clone(),
            reason: options.reason.clone(),
            kind: cold_rollback.then(|| "cold".to_owned()),
        };
        let (mut recorder, _) = Recorder::new(opening, first);
        if cold_rollback {
            recorder.figure("cold_rollback", true);
        }
        let alone = self.live.is_none() || mode == Mode::Replace;
        if alone && options.observe.is_some_and(|length| !length.is_zero()) {
            let why = "no other version is in memory then";
            recorder.warn(format!("\"observe\" has no effect: there is nothing to go back to at once, since {why}"));
        }
        if self.live.is_none() && options.canary.as_ref().is_some_and(|steps| !steps.is_empty()) {
            recorder
                .warn("\"canary\" has no effect: no version is live that could answer the other requests".to_owned());
        }
        if config.shadow.share == 0.0 && config.judges_agreement() {
            recorder.warn(
                "a rule on how much versions agree judges nothing unless both compute a share: [shadow] share, or \"shadow\" in \
                 the order"
                    .to_owned(),
            );
        }
        let before =
            self.live.as_ref().map(|live| Before { version: live.version.clone(), contract: live.contract.clone() });
        self.overtake(&version);
        let mut candidate = steps::Candidate::new(id, self.slot.name(), &version, config.clone());
        candidate.parked = self.parked(&version);
        let progress = std::sync::Arc::clone(&candidate.progress);
        tracing::info!(model = self.slot.name(), version, rollout, "a rollout begins");
        self.active = Some(Active {
            id: rollout,
            generation: id,
            state,
            recorder,
            candidate: Some(Box::new(candidate)),
            progress,
            config,
            options,
            cold_rollback,
            before,
            measuring: None,
            watched: None,
            window: None,
            sharing: None,
            shadow: None,
            looked: Instant::now(),
            kept: Instant::now(),
            reclaim_on_return: false,
            drained: None,
            dark_since: None,
            switched_at: None,
            proven: None,
            asked: false,
        });
        // Its durable beginning comes first: a crash from here on finds the rollout and marks it interrupted.
        self.entered(first).await;
        self.feed(Event::Begin).await?;
        self.joined()
    }

    /// The model's folder as it is now.
    pub(super) fn folder(&self) -> Result<ModelEntry> {
        let entry = self.ctx.repository.model(self.slot.name())?;
        self.slot.set_versions(entry.versions.clone());
        if let Ok(config) = &entry.config {
            self.slot.learn_task(config.task);
        }
        Ok(entry)
    }

    /// The version and phase of the rollout that goes on.
    pub(super) fn going(&self) -> Option<(String, Phase)> {
        self.active.as_ref().map(|active| (active.recorder.view().record.to.clone(), active.state.phase))
    }

    pub(super) fn joined(&self) -> Result<Answer> {
        match &self.active {
            Some(active) => Ok(Answer::Rollout(active.recorder.handle())),
            // What was asked for ended within the asking; its last view is kept.
            None => match self.status.handle.load_full() {
                Some(handle) => Ok(Answer::Rollout(handle.as_ref().clone())),
                None => Err(Error::internal("the rollout is gone")),
            },
        }
    }

    pub(super) fn already(&self, version: String) -> Answer {
        Answer::Already { model: self.slot.name().to_owned(), version }
    }

    pub(super) fn is_live(&self, version: &str) -> bool {
        self.live.as_ref().is_some_and(|live| live.version == version)
    }

    fn is_previous(&self, version: &str) -> bool {
        self.previous.as_ref().is_some_and(|previous| previous.version == version)
    }

    fn busy(&self, wanted: &str) -> Error {
        let Some(active) = &self.active else { return Error::internal("nothing goes on") };
        let record = &active.recorder.view().record;
        let way_out = match active.state.phase {
            Phase::Observing => format!("until its window ends: settle '{}' or roll it back to end it now", record.to),
            Phase::Reclaiming => "until memory is back".to_owned(),
            _ => format!("until it ends: abort {} to end it now", record.id),
        };
        Error::Conflict {
            message: format!(
                "rollout {} of '{}' to '{}' goes on ({}); '{wanted}' has to wait {way_out}",
                record.id, record.model, record.to, record.phase
            ),
            details: serde_json::json!({ "rollout": record.id, "to": record.to, "phase": record.phase }),
        }
    }
}

impl Active {
    /// What happens from here on is theirs; who began the rollout stays in its record.
    fn ordered_by(&mut self, options: &Options) {
        self.options.actor.clone_from(&options.actor);
        self.options.reason.clone_from(&options.reason);
        self.recorder.figure("promote_actor", options.actor.clone());
        self.recorder.figure("promote_reason", options.reason.clone());
    }
}

fn first_phase(mode: Mode, has_live: bool) -> Phase {
    if mode == Mode::Replace && has_live { Phase::Draining } else { Phase::Reserving }
}
