//! What the supervisor tells: models, memory, rollouts and counters, read from what controllers publish.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::CandidateStatus;
use super::super::controller::Reins;
use super::super::record::{Handle, View};
use super::super::residents::Reclaimed;
use super::super::state::Phase;
use super::Supervisor;
use crate::device::{HostMemory, Pinning, Pooled, Vram, allocated_bytes, resident_bytes};
use crate::engine::{Held, Metered};
use crate::error::{Error, Result};
use crate::generation::{Generation, GenerationId, Snapshot, Stamp};
use crate::ledger::{Counts, Figures, Filter, Ledger, RolloutRecord};
use crate::value::Task;

/// A model as listings show it.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    pub name: String,
    /// Absent while no `model.toml` that can be read has said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
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
    /// What live allocations take of it.
    pub process_allocated: Option<u64>,
    pub host_available: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram: Option<Vram>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Pooled>,
    /// Versions that wait in host memory, or are on their way there.
    pub parked: Vec<ParkedMemory>,
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

#[derive(Debug, Serialize)]
pub struct ParkedMemory {
    pub model: String,
    pub version: String,
    /// Pinned, or promised to be.
    pub bytes: u64,
    /// A load may take it from there.
    pub ready: bool,
}

impl From<Pinning> for ParkedMemory {
    fn from(pinning: Pinning) -> Self {
        let Pinning { holder, bytes, ready, .. } = pinning;
        let (model, version) = holder.split_once('@').unwrap_or((&holder, ""));
        ParkedMemory { model: model.to_owned(), version: version.to_owned(), bytes, ready }
    }
}

impl Supervisor {
    /// A rollout, as it is now or as it ended.
    pub async fn rollout(&self, id: &str) -> Result<View> {
        if let Some(handle) = self.handle(id).await {
            return Ok(handle.now().as_ref().clone());
        }
        let wanted = id.to_owned();
        let record = self.ctx.journal.with(move |ledger| ledger.rollout(&wanted)).await?;
        record.map(ended).ok_or_else(|| Error::NotFound { what: "rollout", id: id.to_owned() })
    }

    /// Newest first; those that go on as they are now.
    pub async fn rollouts(&self, model: Option<String>, limit: usize) -> Result<Vec<RolloutRecord>> {
        let filter = Filter { model, limit, open_only: false };
        let mut records = self.ctx.journal.with(move |ledger| ledger.rollouts(&filter)).await?;
        let controllers = self.controllers.lock().await;
        // One that has ended may not have been written down yet.
        for view in controllers.values().filter_map(|reins| Some(reins.status.handle.load_full()?.now())) {
            if let Some(record) =
                records.iter_mut().find(|record| record.id == view.record.id && record.ended_ms.is_none())
            {
                *record = view.record.clone();
            }
        }
        Ok(records)
    }

    /// How many rollouts are kept, however few are listed.
    pub async fn rollouts_kept(&self, model: Option<String>) -> Result<u64> {
        self.ctx.journal.with(move |ledger| ledger.rollouts_kept(model.as_deref())).await
    }

    pub async fn figures(&self, model: Option<String>) -> Result<Figures> {
        self.ctx.journal.with(move |ledger| ledger.figures(model.as_deref())).await
    }

    /// How often each has happened since this process began.
    pub fn counts(&self) -> Counts {
        self.ctx.journal.counts()
    }

    /// Every model that serves, or that should.
    pub fn serving(&self) -> Vec<(String, bool)> {
        let slots = self.registry.slots();
        let expected = slots.values().filter(|slot| !slot.is_vacant());
        expected.map(|slot| (slot.name().to_owned(), slot.reason().is_none())).collect()
    }

    /// Whether the ledger takes what happens.
    pub async fn ledger_can_be_written(&self) -> Result<bool> {
        self.ctx.journal.with(|ledger| Ok(ledger.can_be_written())).await
    }

    /// What the ledger takes on disk.
    pub async fn ledger_bytes(&self) -> Result<u64> {
        self.ctx.journal.with(Ledger::bytes).await
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

    /// Every experiment that goes on, with what it says so far.
    pub async fn experiments(&self) -> Vec<Value> {
        let controllers = self.controllers.lock().await;
        let told = controllers.iter().filter_map(|(model, reins)| {
            let view = reins.status.handle.load().as_ref()?.now();
            let mut told = view.record.figures.get("experiment").filter(|_| view.phase == Phase::Experiment)?.clone();
            told["model"] = json!(model);
            told["rollout"] = json!(view.record.id);
            Some(told)
        });
        told.collect()
    }

    /// What a rollout's shadow saw. The worst cases of the model's last one are in memory; of others, and of those of a process
    /// before, the record has the figures.
    ///
    /// # Errors
    /// `NotFound` where there is no such rollout, or it had no shadow.
    pub async fn shadow(&self, rollout: &str) -> Result<Value> {
        let seen = {
            let controllers = self.controllers.lock().await;
            let mut all = controllers.values().filter_map(|reins| reins.status.shadow.load_full());
            all.find(|seen| seen.rollout == rollout)
        };
        if let Some(seen) = seen {
            let mut told = seen.figures();
            told["worst"] = json!(seen.worst());
            return Ok(told);
        }
        let record = self.rollout(rollout).await?.record;
        let told = ["shadow_after", "shadow"].into_iter().find_map(|name| record.figures.get(name));
        let mut told =
            told.cloned().ok_or_else(|| Error::NotFound { what: "shadow of rollout", id: rollout.to_owned() })?;
        told["worst"] = Value::Null;
        Ok(told)
    }

    /// Every resident generation with its counters, for metrics.
    pub async fn generations(&self) -> Vec<(&'static str, Stamp, Snapshot, usize)> {
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

    /// What each generation that writes is doing: those of the routes.
    pub async fn writers(&self) -> Vec<(Stamp, Metered)> {
        let controllers = self.controllers.lock().await;
        let mut all = Vec::new();
        for route in controllers.values().filter_map(|reins| reins.slot.route()) {
            for generation in [Some(&route.live), route.previous.as_ref(), route.standby.as_ref()].into_iter().flatten()
            {
                all.extend(generation.lane.metered().map(|metered| (generation.stamp.clone(), metered)));
            }
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

    /// What each model serves, and whether the folder of that is still there.
    pub fn live_on_disk(&self) -> Vec<(String, String, bool)> {
        let slots = self.registry.slots();
        let live = slots.values().filter_map(|slot| Some((slot.name().to_owned(), slot.live_on_disk()?)));
        live.map(|(model, (version, there))| (model, version, there)).collect()
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
            device: self.ctx.opened.name(),
            capacity: self.ctx.budget.capacity(),
            reserved: self.ctx.budget.reserved(),
            reservations: self.ctx.budget.holders(),
            generations,
            abandoned: self.ctx.lingering.abandoned_bytes(),
            process_resident: resident_bytes(),
            process_allocated: allocated_bytes(),
            host_available: HostMemory::read().map(|memory| memory.available),
            vram: self.ctx.opened.vram()?,
            pools: self.ctx.opened.pools()?,
            parked: self.ctx.host_room.pinnings().into_iter().map(ParkedMemory::from).collect(),
            last_reclaims: last.collect(),
        })
    }

    /// Whether every model serves that should.
    pub fn is_ready(&self) -> bool {
        self.registry.slots().values().all(|slot| slot.is_ready())
    }
}

pub(super) fn report(reins: &Reins) -> ModelReport {
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
    View { record, progress: None, warnings: Vec::new(), switched: false, phase, error: None }
}
