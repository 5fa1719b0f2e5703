//! The way back and out: rollback, settle, abort, decided against what goes on.

use super::super::state::{Event, Goal, Phase};
use super::{Answer, Controller, Options};
use crate::error::{Error, Result};

impl Controller {
    /// Goes back to what was live before. Whoever says it twice, or names what is live already, has had it.
    pub(super) async fn rollback(&mut self, wanted: Option<&str>, options: Options) -> Result<Answer> {
        let reason = options.reason.clone().unwrap_or_else(|| "an operator asked for it".into());
        match self.going() {
            Some((to, Phase::Observing | Phase::Reclaiming))
                if wanted.is_some_and(|wanted| wanted == to && self.is_live(wanted)) =>
            {
                self.joined()
            }
            Some((_, Phase::Observing)) => {
                let Some(previous) = &self.previous else { return Err(nothing_to_go_back_to(self.slot.name())) };
                if wanted.is_none() && self.active.as_ref().is_some_and(|active| active.cold_rollback) {
                    return self.joined();
                }
                self.goes_back_to(&previous.version, wanted)?;
                self.asked_for(&options);
                self.feed(Event::Rollback(reason)).await?;
                self.joined()
            }
            // Its share goes back at once.
            Some((_, Phase::Canary | Phase::Experiment)) => {
                if let Some(live) = &self.live {
                    self.goes_back_to(&live.version, wanted)?;
                }
                self.asked_for(&options);
                self.feed(Event::Rollback(reason)).await?;
                self.joined()
            }
            // It was gone back from, and what it wrote is only waited for.
            Some((_, Phase::Reclaiming)) if self.went_back() => {
                if let Some(live) = &self.live {
                    self.goes_back_to(&live.version, wanted)?;
                }
                self.joined()
            }
            Some((to, phase)) => Err(self.nothing_switched(&to, phase)),
            None => {
                let model = self.slot.name().to_owned();
                let live = self.ctx.journal.with(move |ledger| ledger.live(&model)).await?;
                match live.and_then(|live| live.previous) {
                    _ if wanted.is_some_and(|wanted| self.is_live(wanted)) => {
                        Ok(self.already(wanted.unwrap_or_default().to_owned()))
                    }
                    Some(previous) if !self.is_live(&previous) => {
                        self.goes_back_to(&previous, wanted)?;
                        self.open(previous, options, Goal::Live, true).await
                    }
                    _ if self.live.is_none() => Err(self.serves_nothing()),
                    _ => Err(nothing_to_go_back_to(self.slot.name())),
                }
            }
        }
    }

    fn went_back(&self) -> bool {
        let ending = self.active.as_ref().and_then(|active| active.state.ending.as_ref());
        ending.is_some_and(|ending| ending.phase == Phase::RolledBack)
    }

    /// An error where somebody wants another version than the one that going back leads to.
    fn goes_back_to(&self, to: &str, wanted: Option<&str>) -> Result<()> {
        match wanted {
            Some(wanted) if wanted != to => Err(Error::conflict(format!(
                "'{}' goes back to '{to}', not to '{wanted}': nothing has changed; promote '{wanted}' for that",
                self.slot.name()
            ))),
            _ => Ok(()),
        }
    }

    fn serves_nothing(&self) -> Error {
        let (model, versions) = (self.slot.name(), self.slot.versions().join(", "));
        Error::conflict(format!(
            "'{model}' serves nothing that could be gone back from; promote the version that it is to serve, of {versions}"
        ))
    }

    /// Somebody wants to go back: no rule of the server's.
    fn asked_for(&mut self, options: &Options) {
        let Some(active) = &mut self.active else { return };
        active.asked = true;
        active.options.actor.clone_from(&options.actor);
        active.recorder.figure("rollback_actor", options.actor.clone());
    }

    pub(super) async fn settle(&mut self, wanted: Option<&str>) -> Result<Answer> {
        if let (Some(wanted), Some(live)) = (wanted.filter(|wanted| !self.is_live(wanted)), &self.live) {
            let live = &live.version;
            return Err(Error::conflict(format!("'{wanted}' is not live and cannot be settled: '{live}' is")));
        }
        match self.going() {
            Some((_, Phase::Observing)) => {
                self.feed(Event::Settle).await?;
                self.joined()
            }
            Some((to, Phase::Reclaiming)) if self.is_live(&to) => self.joined(),
            Some((to, phase)) => Err(Error::conflict(format!(
                "there is nothing to settle: the rollout of '{to}' is {} and has not been switched to",
                phase.name()
            ))),
            None => match &self.live {
                Some(live) => Ok(self.already(live.version.clone())),
                None => Err(Error::conflict(format!("'{}' serves nothing that could be settled", self.slot.name()))),
            },
        }
    }

    pub(super) async fn abort(&mut self, id: Option<String>, options: Options) -> Result<Answer> {
        let current = self.active.as_ref().map(|active| active.id.clone());
        match (current, id) {
            (Some(current), Some(id)) if current != id => {
                Err(Error::conflict(format!("rollout {id} does not go on; {current} does")))
            }
            (Some(_), _) => {
                let reason = options.reason.unwrap_or_else(|| "an operator asked for it".into());
                if let Some(active) = &mut self.active {
                    active.options.actor = options.actor;
                }
                self.feed(Event::Abort(reason)).await?;
                self.joined()
            }
            (None, Some(id)) => Err(Error::conflict(format!("rollout {id} has ended"))),
            (None, None) => Err(Error::conflict("no rollout goes on")),
        }
    }

    /// Why a rollback has to wait: what goes on has changed nothing that could be gone back from.
    fn nothing_switched(&self, to: &str, phase: Phase) -> Error {
        let Some(active) = &self.active else { return Error::internal("nothing goes on") };
        let (record, live) = (&active.recorder.view().record, self.live.as_ref());
        let (id, phase) = (&record.id, phase.name());
        let message = match live {
            Some(live) if live.version == to => {
                format!(
                    "'{to}' has settled: rollout {id} still frees the version before it; ask again when it has ended"
                )
            }
            Some(live) => format!(
                "'{to}' is {phase} and not live: '{}' still serves; abort rollout {id} to drop '{to}', then go back from '{0}'",
                live.version
            ),
            None => format!("rollout {id} to '{to}' is {phase}, and nothing else serves; abort it, or wait for it"),
        };
        Error::Conflict { message, details: serde_json::json!({ "rollout": id, "to": to, "phase": phase }) }
    }
}

fn nothing_to_go_back_to(model: &str) -> Error {
    Error::conflict(format!("'{model}' has no previous version to go back to"))
}
