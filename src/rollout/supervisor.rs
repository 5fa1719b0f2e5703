//! All models of the process and their controllers: the door for the admin routes.
//!
//! It owns no rollout; it finds the controller that does, and reads what controllers publish.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::controller::{Answer, Command, Controller, Options, Reins};
use super::journal::Journal;
use super::record::{Handle, View};
use super::residents::{Lingering, Reclaimed};
use super::sight::Sight;
use super::state::Phase;
use super::{CandidateStatus, Context};
use crate::device::{Budget, HostMemory, Opened, resident_bytes};
use crate::engine::{Counters, Engine, Held};
use crate::error::{Error, Result};
use crate::generation::{Generation, GenerationId, GenerationIds, Snapshot};
use crate::ledger::{Event, Figures, Filter, RolloutRecord};
use crate::repository::{ModelEntry, Repository};
use crate::slot::{Registry, Slot, Target};
use crate::value::Task;

pub struct SupervisorConfig {
    pub repository: Arc<Repository>,
    /// Serve only these models; empty means all.
    pub only: Vec<String>,
    pub opened: Opened,
    pub budget: Arc<Budget>,
    pub default_batch_tokens: usize,
    /// The last generation id that the ledger knows.
    pub last_generation: u64,
    pub faults: Vec<crate::faults::Fault>,
}

pub struct Supervisor {
    ctx: Arc<Context>,
    registry: Arc<Registry>,
    only: Vec<String>,
    device: String,
    controllers: Mutex<BTreeMap<String, Reins>>,
    sight: std::sync::Mutex<Sight>,
}

/// A model as listings show it.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    pub name: String,
    pub task: Task,
    pub live: Option<Place>,
    pub candidate: Option<Place>,
    pub previous: Option<Place>,
    pub versions: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_serving: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Place {
    pub version: String,
    pub generation: u64,
    pub phase: Phase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct MemoryReport {
    pub device: String,
    pub capacity: u64,
    pub reserved: u64,
    pub reservations: Vec<crate::device::Held>,
    pub generations: Vec<GenerationMemory>,
    /// Memory that hanging threads may still touch.
    pub abandoned: u64,
    pub process_resident: Option<u64>,
    pub host_available: Option<u64>,
    pub last_reclaims: BTreeMap<String, Reclaimed>,
}

#[derive(Debug, Serialize)]
pub struct GenerationMemory {
    pub generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(flatten)]
    pub held: Held,
}

impl Supervisor {
    /// Finds the models and starts their controllers, which bring up what was live. `wait_until_up` follows.
    pub async fn start(
        config: SupervisorConfig,
        engine: Engine,
        journal: Journal,
        registry: Arc<Registry>,
    ) -> Result<(Arc<Supervisor>, Vec<oneshot::Receiver<()>>)> {
        let ctx = Arc::new(Context {
            repository: config.repository,
            engine,
            device: config.opened.device,
            budget: config.budget,
            journal,
            ids: GenerationIds::after(config.last_generation),
            default_batch_tokens: config.default_batch_tokens,
            faults: config.faults,
            lingering: Lingering::default(),
        });
        let sight = Sight::start(Arc::clone(&ctx.repository), ctx.journal.clone())?;
        let supervisor = Arc::new(Supervisor {
            ctx,
            sight: std::sync::Mutex::new(sight),
            registry,
            only: config.only,
            device: config.opened.name,
            controllers: Mutex::default(),
        });
        let up = supervisor.refresh().await?;
        for name in &supervisor.only {
            if supervisor.registry.get(name).is_none() {
                let known = supervisor.ctx.repository.scan()?.into_iter().map(|entry| entry.name).collect();
                return Err(Error::Unknown { reference: name.clone(), known });
            }
        }
        Ok((supervisor, up))
    }

    /// Looks at the folders again: new models get controllers, known ones their list of versions.
    pub async fn refresh(&self) -> Result<Vec<oneshot::Receiver<()>>> {
        let mut controllers = self.controllers.lock().await;
        let repository = Arc::clone(&self.ctx.repository);
        let entries = super::load::blocking(move || repository.scan()).await?;
        let mut starting = Vec::new();
        for ModelEntry { name, config, versions, .. } in entries {
            if !self.only.is_empty() && !self.only.contains(&name) {
                continue;
            }
            if let Ok(config) = &config {
                let mut sight = self.sight.lock().unwrap_or_else(|e| e.into_inner());
                sight.found(&name, &versions, config);
            }
            if let Some(reins) = controllers.get(&name) {
                reins.slot.set_versions(versions);
                continue;
            }
            let task = match &config {
                Ok(config) => config.task,
                Err(error) => {
                    tracing::error!(model = name, %error, "not serving");
                    continue;
                }
            };
            let slot = Arc::new(Slot::new(name.clone(), task));
            slot.set_versions(versions);
            self.registry.add(Arc::clone(&slot));
            let (reins, up) = Controller::start(Arc::clone(&self.ctx), slot);
            controllers.insert(name, reins);
            starting.push(up);
        }
        Ok(starting)
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

    pub async fn promote(&self, reference: &str, options: Options) -> Result<Answer> {
        let (model, version) = self.version_of(reference).await?;
        self.order(&model, |reply| Command::Promote(version, options, reply)).await
    }

    pub async fn release(&self, reference: &str) -> Result<Answer> {
        let (model, version) = self.version_of(reference).await?;
        self.order(&model, |reply| Command::Release(version, reply)).await
    }

    pub async fn rollback(&self, model: Option<&str>, options: Options) -> Result<Answer> {
        let model = self.one_model(model).await?;
        self.order(&model, |reply| Command::Rollback(options, reply)).await
    }

    pub async fn settle(&self, model: Option<&str>) -> Result<Answer> {
        let model = self.one_model(model).await?;
        self.order(&model, Command::Settle).await
    }

    pub async fn abort(&self, rollout: &str, options: Options) -> Result<Answer> {
        let record = self.rollout(rollout).await?;
        let id = Some(rollout.to_owned());
        self.order(&record.record.model, |reply| Command::Abort(id, options, reply)).await
    }

    /// A rollout, as it is now or as it ended.
    pub async fn rollout(&self, id: &str) -> Result<View> {
        if let Some(handle) = self.handle(id).await {
            return Ok(handle.now().as_ref().clone());
        }
        let wanted = id.to_owned();
        let record = self.ctx.journal.with(move |ledger| ledger.rollout(&wanted)).await?;
        record.map(ended).ok_or_else(|| Error::NotFound { what: "rollout", id: id.to_owned() })
    }

    /// Newest first.
    pub async fn rollouts(&self, model: Option<String>, limit: usize) -> Result<Vec<RolloutRecord>> {
        let filter = Filter { model, limit, open_only: false };
        self.ctx.journal.with(move |ledger| ledger.rollouts(&filter)).await
    }

    pub async fn figures(&self, model: Option<String>) -> Result<Figures> {
        self.ctx.journal.with(move |ledger| ledger.figures(model.as_deref())).await
    }

    pub async fn events_after(&self, seq: i64, limit: usize) -> Result<Vec<Event>> {
        self.ctx.journal.with(move |ledger| ledger.events(seq, None, limit)).await
    }

    /// To follow a rollout that goes on or was the model's last.
    pub async fn handle(&self, id: &str) -> Option<Handle> {
        let controllers = self.controllers.lock().await;
        let handles = controllers.values().filter_map(|reins| reins.status.handle.load_full());
        handles.into_iter().find(|handle| handle.now().record.id == id).map(|handle| handle.as_ref().clone())
    }

    pub async fn models(&self) -> Vec<ModelReport> {
        if let Err(error) = self.refresh().await {
            tracing::warn!(%error, "the model folders could not be read");
        }
        let controllers = self.controllers.lock().await;
        controllers.values().map(report).collect()
    }

    pub async fn model(&self, name: &str) -> Option<ModelReport> {
        self.controllers.lock().await.get(name).map(report)
    }

    /// Every resident generation with its counters, for metrics.
    pub async fn generations(&self) -> Vec<(&'static str, crate::generation::Stamp, Snapshot, usize)> {
        let controllers = self.controllers.lock().await;
        let routes = controllers.values().filter_map(|reins| reins.slot.route());
        let mut all = Vec::new();
        for route in routes {
            let mut add = |role, generation: &Arc<Generation>| {
                all.push((role, generation.stamp.clone(), generation.stats.snapshot(), generation.lane.waiting()));
            };
            add("live", &route.live);
            route.previous.iter().for_each(|generation| add("previous", generation));
            route.standby.iter().for_each(|generation| add("candidate", generation));
        }
        all
    }

    /// The phase of each model's rollout, where one goes on.
    pub async fn phases(&self) -> Vec<(String, Option<Phase>)> {
        let controllers = self.controllers.lock().await;
        let phase = |reins: &Reins| {
            let handle = reins.status.handle.load_full();
            handle.map(|handle| handle.now().phase).filter(|phase| !phase.is_end())
        };
        controllers.iter().map(|(name, reins)| (name.clone(), phase(reins))).collect()
    }

    pub async fn memory(&self) -> Result<MemoryReport> {
        let held = self.ctx.engine.memory().await?;
        // What other threads kept of freed memory for a moment has come back since the last reclaim.
        self.ctx.lingering.sweep()?;
        let names: BTreeMap<GenerationId, (String, String)> = self
            .generations()
            .await
            .into_iter()
            .map(|(_, stamp, ..)| (stamp.generation, (stamp.model.to_string(), stamp.version.to_string())))
            .collect();
        let mut generations: Vec<GenerationMemory> = held
            .into_iter()
            .map(|(id, held)| {
                let (model, version) = names.get(&id).cloned().unzip();
                GenerationMemory { generation: id.0, model, version, held }
            })
            .collect();
        generations.sort_by_key(|memory| memory.generation);
        let controllers = self.controllers.lock().await;
        let last = controllers
            .iter()
            .filter_map(|(name, reins)| Some((name.clone(), reins.status.last_reclaim.load_full()?.as_ref().clone())));
        Ok(MemoryReport {
            device: self.device.clone(),
            capacity: self.ctx.budget.capacity(),
            reserved: self.ctx.budget.reserved(),
            reservations: self.ctx.budget.holders(),
            generations,
            abandoned: self.ctx.lingering.abandoned_bytes(),
            process_resident: resident_bytes(),
            host_available: HostMemory::read().map(|memory| memory.available),
            last_reclaims: last.collect(),
        })
    }

    /// Whether every model that has a version serves.
    pub fn is_ready(&self) -> bool {
        let slots = self.registry.slots();
        slots.values().all(|slot| slot.route().is_some() || slot.versions().is_empty())
    }

    /// Ends every rollout and controller.
    pub async fn shut_down(&self) {
        let controllers = self.controllers.lock().await;
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
        let Target { slot, version } = self.resolve(reference).await?;
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
            [] => Err(Error::conflict("no model is serving")),
            several => {
                let names: Vec<&str> = several.iter().map(|name| name.as_str()).collect();
                let message = format!("several models are serving; name one of {}", names.join(", "));
                Err(Error::bad_param("model", message))
            }
        }
    }

    async fn order(
        &self,
        model: &str,
        command: impl FnOnce(oneshot::Sender<Result<Answer>>) -> Command,
    ) -> Result<Answer> {
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

fn report(reins: &Reins) -> ModelReport {
    let route = reins.slot.route();
    let handle = reins.status.handle.load_full().map(|handle| handle.now());
    let going = handle.filter(|view| !view.phase.is_end());
    let place = |generation: &Arc<Generation>, phase| Place {
        version: generation.version().to_owned(),
        generation: generation.id().0,
        phase,
        rollout: going.as_ref().map(|view| view.record.id.clone()),
    };
    let phase = going.as_ref().filter(|view| view.switched).map_or(Phase::Settled, |view| view.phase);
    let candidate = reins.status.candidate.load_full().map(|candidate| {
        let CandidateStatus { version, generation, phase, rollout } = candidate.as_ref().clone();
        Place { version, generation, phase, rollout: Some(rollout) }
    });
    ModelReport {
        name: reins.slot.name().to_owned(),
        task: reins.slot.task(),
        live: route.as_ref().map(|route| place(&route.live, phase)),
        candidate,
        previous: route.as_ref().and_then(|route| Some(place(route.previous.as_ref()?, phase))),
        versions: reins.slot.versions().as_ref().clone(),
        not_serving: reins.slot.reason(),
    }
}

/// A rollout that is only in the ledger any more.
fn ended(record: RolloutRecord) -> View {
    let phase = serde_json::from_value(serde_json::Value::String(record.phase.clone())).unwrap_or(Phase::Interrupted);
    View { record, progress: None, switched: false, phase, error: None }
}
