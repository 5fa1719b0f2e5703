//! All models of the process and their controllers: the door for the admin routes.
//!
//! It owns no rollout; it finds the controller that does. `folders` keeps the models in step with the disk and the
//! ledger; `reports` reads what controllers publish; `pulse` samples it each second and tells of it as a whole.

mod folders;
mod pulse;
mod reports;
mod sharing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, mpsc, oneshot};

use super::Comparison;
use super::Context;
use super::NamedExperiment;
use super::controller::{Ahead, Answer, Command, Freed, Options, Reins, given_up};
use super::difference;
use super::experiment::{self, ExperimentPlan};
use super::journal::Journal;
use super::record::Handle;
use super::residents::Lingering;
use crate::device::{Budget, Opened};
use crate::engine::{Counters, Engine};
use crate::error::{Error, Result};
use crate::generation::GenerationIds;
use crate::ops::Machine;
use crate::repository::Repository;
use crate::slot::{Registry, Target};
use folders::Folders;
use pulse::Pulse;
pub use pulse::Sample;
pub use reports::{MemoryReport, ModelReport};
pub use sharing::{ArmSeen, ShadowSeen, Shares};

pub struct SupervisorConfig {
    pub repository: Arc<Repository>,
    /// Serve only these models; empty means all.
    pub only: Vec<String>,
    pub opened: Opened,
    pub machine: Machine,
    pub budget: Arc<Budget>,
    pub default_batch_tokens: usize,
    pub graphs: bool,
    /// The last generation id that the ledger knows.
    pub last_generation: u64,
    pub faults: Vec<crate::faults::Fault>,
}

pub struct Supervisor {
    ctx: Arc<Context>,
    registry: Arc<Registry>,
    only: Vec<String>,
    controllers: Mutex<BTreeMap<String, Reins>>,
    folders: std::sync::Mutex<Folders>,
    /// Held while two versions are compared for somebody: one comparison at a time.
    comparing: Mutex<()>,
    pulse: Pulse,
    stopping: AtomicBool,
}

/// What became of a version whose memory was to be freed.
#[derive(Debug)]
pub enum Released {
    /// A rollout ends with it.
    Ends(Handle),
    /// It held none on the device; what it held of host memory is free.
    NotResident { model: String, version: String, unparked: bool },
    /// The model is served no more, and the next start does not look for it.
    Forgotten { model: String },
}

impl Supervisor {
    /// Finds the models and starts their controllers, which bring up what was live: each receiver fires when that has succeeded or
    /// failed. All of them run on the runtime that this is called on, also those of models that appear later.
    pub async fn start(
        config: SupervisorConfig,
        engine: Engine,
        journal: Journal,
        registry: Arc<Registry>,
    ) -> Result<(Arc<Supervisor>, Vec<oneshot::Receiver<()>>)> {
        let ctx = Arc::new(Context {
            runtime: tokio::runtime::Handle::current(),
            repository: config.repository,
            registry: Arc::clone(&registry),
            engine,
            opened: config.opened,
            machine: config.machine,
            budget: config.budget,
            host_room: Arc::default(),
            journal,
            ids: GenerationIds::after(config.last_generation),
            default_batch_tokens: config.default_batch_tokens,
            graphs: config.graphs,
            faults: config.faults,
            lingering: Lingering::default(),
        });
        let folders = Folders::new(&ctx)?;
        let supervisor = Arc::new(Supervisor {
            ctx,
            folders: std::sync::Mutex::new(folders),
            registry,
            only: config.only,
            controllers: Mutex::default(),
            comparing: Mutex::default(),
            pulse: Pulse::default(),
            stopping: AtomicBool::new(false),
        });
        let up = supervisor.take_in_all().await?;
        for name in &supervisor.only {
            if supervisor.registry.get(name).is_none() {
                let known = supervisor.ctx.repository.scan()?.into_iter().map(|entry| entry.name).collect();
                return Err(Error::Unknown { reference: name.clone(), known });
            }
        }
        Supervisor::keep_looking(&supervisor);
        Supervisor::keep_time(&supervisor);
        Ok((supervisor, up))
    }

    pub fn journal(&self) -> &Journal {
        &self.ctx.journal
    }

    pub fn engine_counters(&self) -> &Counters {
        self.ctx.engine.counters()
    }

    /// What a reference names; folders that appeared meanwhile are found.
    pub async fn resolve(&self, reference: &str) -> Result<Target> {
        match self.registry.resolve(reference) {
            Err(Error::Unknown { .. }) => {
                self.refresh().await?;
                self.registry.resolve(reference)
            }
            target => target,
        }
    }

    pub async fn stage(&self, reference: &str, options: Options) -> Result<Answer> {
        let (model, version) = self.version_of(reference).await?;
        self.order(&model, |reply| Command::Stage(version, options, reply)).await
    }

    /// Reads a version into host memory, and no further. The first answer is whether that goes on; the second, what came of it.
    pub async fn read_ahead(
        &self,
        reference: &str,
        actor: Option<String>,
    ) -> Result<impl Future<Output = Result<Ahead>> + Send + use<>> {
        let (model, version) = self.version_of(reference).await?;
        let coming = self.order(&model, |reply| Command::ReadAhead(version, actor, reply)).await?;
        Ok(async move { coming.await.map_err(|_| given_up())? })
    }

    pub async fn promote(&self, reference: &str, options: Options) -> Result<Answer> {
        let (model, version) = self.version_of(reference).await?;
        self.order(&model, |reply| Command::Promote(version, options, reply)).await
    }

    /// Frees the memory of a version that does not serve. A model by itself whose folder is gone is forgotten, also where it serves.
    pub async fn release(&self, reference: &str) -> Result<Released> {
        let Target { slot, version } = match self.resolve(reference).await {
            Ok(target) => target,
            // What waits in host memory can be freed when its folder is gone, too.
            Err(error) => match self.ctx.host_room.pinnings().iter().any(|pinned| pinned.holder == reference) {
                true => return self.free(reference.split_once('@').ok_or(error)?).await,
                false => return Err(error),
            },
        };
        if version.is_none() && (slot.route().is_none() || self.ctx.repository.is_gone(slot.name())) {
            return self.forget(slot.name()).await.map(|()| Released::Forgotten { model: slot.name().to_owned() });
        }
        let (model, version) = self.version_of(reference).await?;
        self.free((&model, &version)).await
    }

    async fn free(&self, (model, version): (&str, &str)) -> Result<Released> {
        let order = |reply| Command::Release(version.to_owned(), reply);
        let Freed { answer, unparked } = self.order(model, order).await?;
        Ok(match answer {
            Answer::Rollout(handle) => Released::Ends(handle),
            Answer::Already { model, version } => Released::NotResident { model, version, unparked },
        })
    }

    /// In what a version differs from another: from the live one of its model where that is not said. Whoever means another
    /// version of the same model need not name the model.
    pub async fn diff(&self, reference: &str, against: Option<&str>) -> Result<Comparison> {
        let now = self.version_of(reference).await?;
        let before = match against {
            Some(version) if self.has(&now.0, version) => (now.0.clone(), version.to_owned()),
            Some(against) => self.version_of(against).await?,
            None => self.version_of(&now.0).await?,
        };
        let _turn = self.comparing.lock().await;
        difference::answer(&self.ctx, before, now).await
    }

    fn has(&self, model: &str, version: &str) -> bool {
        self.registry.get(model).is_some_and(|slot| slot.versions().iter().any(|known| known == version))
    }

    /// `named`: a model, or a version of one, which then must be the one that going back leads to.
    pub async fn rollback(&self, named: Option<&str>, options: Options) -> Result<Answer> {
        let (model, version) = self.meant(named).await?;
        self.order(&model, |reply| Command::Rollback(version, options, reply)).await
    }

    /// `named`: a model, or a version of one, which then must be the live one.
    pub async fn settle(&self, named: Option<&str>) -> Result<Answer> {
        let (model, version) = self.meant(named).await?;
        self.order(&model, |reply| Command::Settle(version, reply)).await
    }

    /// A model, and the version if one was named.
    async fn meant(&self, named: Option<&str>) -> Result<(String, Option<String>)> {
        match named {
            Some(reference) => {
                let Target { slot, version } = self.resolve(reference).await?;
                Ok((slot.name().to_owned(), version))
            }
            None => Ok((self.one_model(None).await?, None)),
        }
    }

    /// Has two versions share a model's requests by these percentages, for as long as is wanted. The one that is not live is staged
    /// first, where it is not.
    ///
    /// # Errors
    /// `BadRequest` where the weights are not those of the live version and one other; `Conflict` where an experiment goes on.
    pub async fn start_experiment(&self, model: Option<&str>, plan: ExperimentPlan) -> Result<Answer> {
        let ExperimentPlan { name, weights, options } = plan;
        // As of a promote, versions say whose they are; where they do not, the only model that serves is meant.
        let meant = match (model, weights.keys().next()) {
            (None, Some(version)) => self.version_of(version).await.ok().map(|(model, _)| model),
            _ => None,
        };
        let model = self.one_model(model.or(meant.as_deref())).await?;
        if let Some(running) = self.experiments().await.iter().find(|running| running["name"] == name.as_str()) {
            let message = format!("the experiment '{name}' goes on already");
            return Err(Error::Conflict { message, details: running.clone() });
        }
        let live = self.registry.get(&model).and_then(|slot| slot.route()).map(|route| route.live.version().to_owned());
        let live =
            live.ok_or_else(|| Error::conflict(format!("'{model}' serves nothing that could be compared with")))?;
        let (candidate, weight) =
            experiment::candidate(&live, &weights).map_err(|reason| Error::bad_param("weights", reason))?;
        let staged = {
            let (version, options) = (candidate.clone(), Options { shadow: options.shadow, ..options.clone() });
            self.order(&model, |reply| Command::Stage(version, options, reply)).await?
        };
        if let Answer::Rollout(mut handle) = staged {
            // One that is promoted goes past being ready, and is refused then.
            let view = handle.until(|view| view.phase.is_proven()).await?;
            if let Some(error) = view.error.clone().filter(|_| view.phase.is_end()) {
                return Err(error);
            }
        }
        let named = NamedExperiment { name, weight };
        self.order(&model, |reply| Command::Compare(candidate, named, options, reply)).await
    }

    /// Ends an experiment; its candidate stays staged.
    pub async fn stop_experiment(&self, name: &str) -> Result<Answer> {
        let running = self.experiments().await.into_iter().find(|running| running["name"] == name);
        let model = running.as_ref().and_then(|running| running["model"].as_str());
        let model = model.ok_or_else(|| Error::NotFound { what: "experiment", id: name.to_owned() })?;
        self.order(model, |reply| Command::StopComparing(name.to_owned(), reply)).await
    }

    pub async fn abort(&self, rollout: &str, options: Options) -> Result<Answer> {
        let record = self.rollout(rollout).await?;
        let id = Some(rollout.to_owned());
        self.order(&record.record.model, |reply| Command::Abort(id, options, reply)).await
    }

    /// Ends every rollout and controller.
    pub async fn shut_down(&self) {
        let controllers = self.controllers.lock().await;
        self.stopping.store(true, Ordering::Release);
        let mut ending = Vec::new();
        for reins in controllers.values() {
            let (done, ended) = oneshot::channel();
            if reins.commands.send(Command::Shutdown(done)).await.is_ok() {
                ending.push(ended);
            }
        }
        drop(controllers);
        for ended in ending {
            // An error means that the controller is gone already.
            let _ = ended.await;
        }
    }

    /// The model and version that a reference names; a model alone means its live version.
    async fn version_of(&self, reference: &str) -> Result<(String, String)> {
        let target = self.resolve(reference).await.map_err(|error| match error {
            // Whoever means a version is helped by versions.
            Error::Unknown { reference, .. } if !reference.contains('@') => {
                Error::Unknown { reference, known: self.registry.versions() }
            }
            other => other,
        });
        let Target { slot, version } = target?;
        let live = || slot.route().map(|route| route.live.version().to_owned());
        let version = version.or_else(live).ok_or_else(|| {
            let known = slot.versions().iter().map(|version| format!("{}@{version}", slot.name())).collect();
            Error::Ambiguous { reference: reference.to_owned(), candidates: known }
        })?;
        Ok((slot.name().to_owned(), version))
    }

    /// The model that was named, or the only one.
    async fn one_model(&self, named: Option<&str>) -> Result<String> {
        if let Some(name) = named {
            return Ok(self.resolve(name).await?.slot.name().to_owned());
        }
        let controllers = self.controllers.lock().await;
        let serving: Vec<&String> =
            controllers.iter().filter(|(_, reins)| reins.slot.route().is_some()).map(|(name, _)| name).collect();
        match serving.as_slice() {
            [only] => Ok((*only).clone()),
            // Whoever wants it to serve again need not name the only one.
            [] if controllers.len() == 1 => Ok(controllers.keys().next().cloned().unwrap_or_default()),
            [] => Err(Error::conflict("no model is serving")),
            several => {
                let names: Vec<&str> = several.iter().map(|name| name.as_str()).collect();
                let message = format!("several models are serving; name one of {}", names.join(", "));
                Err(Error::bad_param("model", message))
            }
        }
    }

    async fn order<T>(&self, model: &str, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let commands: mpsc::Sender<Command> = {
            let controllers = self.controllers.lock().await;
            let reins = controllers.get(model);
            reins.map(|reins| reins.commands.clone()).ok_or_else(|| Error::internal("a model without a controller"))?
        };
        let (reply, answer) = oneshot::channel();
        let stopping = || Error::NotServing {
            model: model.to_owned(),
            reason: "the server is stopping".into(),
            retry_after: std::time::Duration::from_secs(5),
        };
        commands.send(command(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}
