//! The steps of a candidate's way to readiness, each a future that takes the candidate and hands it back.
//!
//! They decide nothing about the rollout: each reports an event, and the state machine says what follows.

mod proving;

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

pub(super) use self::proving::{validate, warm};
use super::Context;
use super::difference::{self, Before};
use super::easing::{self, ease};
use super::gate::{self, Findings, Golden, Prepared, Runner};
use super::home::Home;
use super::load::{self, LoadError, Loading};
use super::quiet::{Urgency, quietly};
use super::residents::{Resident, Room, ThreadLife};
use super::state::Event;
use super::survey::{Inspected, Survey};
use crate::device::{Memory, Owner};
use crate::error::{Error, Result};
use crate::faults::Faults;
use crate::generation::{Generation, GenerationId};
use crate::ledger::GateCheck;
use crate::model::Model;
use crate::process::Processor;
use crate::repository::{Difference, LoadThrottle, ModelConfig};
use crate::weights::{self, Parked, Progress};

/// A version on its way to become a generation, with whatever it holds so far.
pub(super) struct Candidate {
    pub(super) id: GenerationId,
    pub(super) model_name: String,
    pub(super) version: String,
    pub(super) config: ModelConfig,
    /// Whether golden cases and latency are judged. Not when a version that was live is brought up again.
    pub(super) gated: bool,
    pub(super) urgency: Urgency,
    pub(super) progress: Arc<Progress>,
    pub(super) inspected: Option<Arc<Inspected>>,
    pub(super) processor: Option<Arc<Processor>>,
    pub(super) cases: Arc<Vec<Prepared>>,
    pub(super) digest: Option<String>,
    /// Where its tensors lie in host memory, until it is loaded.
    pub(super) parked: Option<Arc<Parked>>,
    /// No file was read for what it does not share.
    pub(super) came_parked: bool,
    pub(super) room: Option<Room>,
    /// Checks that it has passed in earlier steps.
    passed: usize,
    /// Behind a lock only so that a borrowed candidate may cross threads; a model itself need not be `Sync`.
    model: Mutex<Option<Model>>,
    runner: Option<Runner>,
    /// Once the gate has passed: the generation, until a route holds it, and its resident part.
    pub(super) generation: Option<Arc<Generation>>,
    pub(super) resident: Option<Resident>,
}

/// What a step found, for the record.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) figures: Vec<(&'static str, Value)>,
    pub(super) checks: Vec<GateCheck>,
    /// What the version would change, of the step that finds it out.
    pub(super) differences: Vec<Difference>,
    pub(super) error: Option<Error>,
}

pub(super) struct Done {
    pub(super) candidate: Candidate,
    pub(super) event: Event,
    pub(super) notes: Notes,
}

impl Candidate {
    pub(super) fn new(id: GenerationId, model: &str, version: &str, config: ModelConfig) -> Self {
        Candidate {
            id,
            model_name: model.to_owned(),
            version: version.to_owned(),
            config,
            gated: true,
            urgency: Urgency::Quiet,
            progress: Arc::new(Progress::new()),
            inspected: None,
            processor: None,
            cases: Arc::default(),
            digest: None,
            parked: None,
            came_parked: false,
            room: None,
            passed: 0,
            model: Mutex::new(None),
            runner: None,
            generation: None,
            resident: None,
        }
    }

    fn model(&mut self) -> &mut Option<Model> {
        self.model.get_mut().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn reference(&self) -> String {
        format!("{}@{}", self.model_name, self.version)
    }

    /// Takes the model off whatever thread runs it, so that it can be dropped on the engine's.
    pub(super) async fn withdraw(&mut self) -> Option<Box<Model>> {
        let on_probation = match self.runner.take() {
            Some(Runner::Probation(probation)) => probation.leave().await,
            Some(Runner::Engine { .. } | Runner::Gated { .. } | Runner::Observed { .. }) | None => None,
        };
        self.model().take().or(on_probation).map(Box::new)
    }

    fn inspected(&self) -> Result<Arc<Inspected>> {
        self.inspected.clone().ok_or_else(|| Error::internal("a step ran before the version was inspected"))
    }

    fn processor(&self) -> Result<Arc<Processor>> {
        self.processor.clone().ok_or_else(|| Error::internal("a step ran before the processor was made"))
    }

    fn failed(self, error: Error) -> Done {
        let notes = Notes { error: Some(error.clone()), ..Notes::default() };
        Done { event: Event::Failed(error.to_string()), candidate: self, notes }
    }

    fn refused(self, findings: Findings, figures: Vec<(&'static str, Value)>) -> Done {
        let error = findings.refusal(&self.reference(), self.passed);
        let notes = Notes { figures, checks: findings.checks, error: Some(error.clone()), ..Notes::default() };
        Done { event: Event::GateRefused(error.to_string()), candidate: self, notes }
    }
}

/// Reads the small files and headers, checks the contract, and takes room.
pub(super) async fn reserve(
    ctx: Arc<Context>,
    mut candidate: Candidate,
    before: Option<Before>,
    accept_change: bool,
) -> Done {
    let (repository, config) = (Arc::clone(&ctx.repository), candidate.config.clone());
    let device = (ctx.opened.kind(), ctx.budget.capacity());
    let (model, version, gated) = (candidate.model_name.clone(), candidate.version.clone(), candidate.gated);
    let (journal, live) = (ctx.journal.clone(), before.as_ref().map(|before| before.contract.clone()));
    let inspected = quietly((candidate.urgency, ctx.engine.processors()), "inspect", move || {
        let dir = repository.version_dir(&model, &version)?;
        let home = Home::of(device, &repository, &config)?;
        let mut inspected = Survey::of(&dir, (&model, &version), &config, home).into_inspected()?;
        let golden = if gated { Golden::read(&dir)? } else { Golden::default() };
        let processor = Arc::new(inspected.take_processor()?);
        let cases = gate::prepare(&golden, &processor, &inspected.contract)?;
        let differences = before.map(|before| {
            let now = (&inspected.spec, &inspected.index, &inspected.contract);
            difference::of_rollout((&repository, journal.ledger()), &before, now, &config)
        });
        Ok((inspected, processor, cases, differences.unwrap_or_default()))
    });
    let (inspected, processor, cases, differences) = match inspected.await {
        Ok(parts) => parts,
        Err(error) => return candidate.failed(error),
    };
    if let Some(why) = inspected.unheard() {
        tracing::info!(version = candidate.reference(), "f32_matmul = \"tf32\" means nothing here: {why}");
    }
    let findings = gate::contract(&inspected.contract, live.as_ref(), accept_change);
    candidate.inspected = Some(Arc::new(inspected));
    candidate.processor = Some(processor);
    candidate.cases = Arc::new(cases);
    if findings.failed() > 0 {
        let mut refused = candidate.refused(findings, Vec::new());
        refused.notes.differences = differences;
        return refused;
    }
    candidate.passed = findings.checks.len();
    match take_room(&ctx, &candidate).await {
        Ok((room, weights)) => {
            candidate.room = Some(room);
            let figures = vec![("weight_bytes", json!(weights))];
            let notes = Notes { figures, checks: findings.checks, differences, error: None };
            Done { candidate, event: Event::Reserved, notes }
        }
        Err(error) => {
            let mut failed = candidate.failed(error);
            failed.notes.differences = differences;
            failed
        }
    }
}

async fn take_room(ctx: &Context, candidate: &Candidate) -> Result<(Room, u64)> {
    let inspected = candidate.inspected()?;
    let mut shared = 0;
    // Only digests of the very same files prove what is shared before anything is read.
    if let Some(manifest) = load::recorded(&ctx.journal, &inspected).await?
        && manifest.fingerprint == inspected.fingerprint
    {
        let wanted = &inspected.footprint.wanted;
        let keys =
            wanted.iter().map(|w| weights::key_of(w, &inspected.index, &manifest)).collect::<Result<Vec<_>>>()?;
        let resident = ctx.engine.lookup(candidate.id, keys).await?;
        shared = resident.values().map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum();
    }
    let claim = inspected.claim(shared);
    ctx.lingering.sweep()?;
    let reservation = ctx.budget.reserve(&claim, ctx.opened.available()?)?;
    let bytes = inspected.footprint.weight_bytes();
    let owner = Owner { holder: candidate.reference(), generation: Some(candidate.id.0) };
    let memory = Arc::new(Memory::acquire(&ctx.opened, bytes - bytes.min(shared), owner)?);
    Ok((Room { memory, reservation }, bytes))
}

pub(super) async fn load(ctx: Arc<Context>, mut candidate: Candidate) -> Done {
    let parked = candidate.parked.take();
    let work = async {
        let inspected = candidate.inspected()?;
        let manifest = load::manifest(&ctx, &inspected, (candidate.urgency, &candidate.progress)).await?;
        let digest = manifest.digest.clone();
        let parked = parked.filter(|parked| parked.digest() == digest);
        let was_parked = parked.is_some();
        let memory = match &candidate.room {
            Some(room) => Arc::clone(&room.memory),
            None => return Err(LoadError::Failed(Error::internal("a load began without room"))),
        };
        let (generation, progress) = (candidate.id, Arc::clone(&candidate.progress));
        let machine = ctx.machine.clone();
        let faults = Faults::of(&ctx.faults, &candidate.reference());
        let patience = candidate.config.rollout.load_timeout;
        let (urgency, graphs) = (candidate.urgency, ctx.graphs);
        let loading =
            Loading { generation, manifest, parked, machine, memory, progress, faults, patience, urgency, graphs };
        Ok((load::load(&ctx.engine, &inspected, loading).await?, digest, was_parked))
    };
    let progress = Arc::clone(&candidate.progress);
    let setting = match candidate.urgency {
        Urgency::Quiet => candidate.config.rollout.throttle,
        Urgency::Awaited => LoadThrottle::None,
    };
    let live = || easing::live(&ctx.registry);
    let mut eased = 0;
    let loaded = tokio::select! {
        // The valve is turned before anything is read.
        biased;
        never = ease(live, setting, &progress, &mut eased) => match never {},
        loaded = work => loaded,
    };
    match loaded {
        Ok((loaded, digest, was_parked)) => {
            if let Some(room) = &candidate.room {
                // Sharing is proven now, so the promise can fall to what was really taken.
                let inspected = candidate.inspected.as_ref();
                let workspace = inspected.map_or(0, |inspected| inspected.footprint.workspace);
                // What a GPU's driver holds is known better than by adding up.
                let measured = room.memory.measured().ok().flatten().map(|measured| measured.reserved);
                room.reservation.settle(measured.unwrap_or(loaded.bytes + workspace));
            }
            let seconds = loaded.took.as_secs_f64();
            let mut figures = vec![
                ("load_ms", json!(seconds * 1e3)),
                ("weights_ms", json!(loaded.brought.as_secs_f64() * 1e3)),
                ("loaded_bytes", json!(loaded.bytes)),
                ("shared_bytes", json!(loaded.shared)),
                ("load_eased", json!(eased)),
            ];
            let warmth = &loaded.warmth;
            if warmth.recorded > 0 {
                figures.push(("graphs", json!(warmth.recorded)));
                figures.push(("graphs_ms", json!(warmth.took.as_secs_f64() * 1e3)));
            }
            if was_parked {
                figures.push(("parked_bytes", json!(loaded.parked)));
            }
            candidate.came_parked = was_parked && loaded.parked == loaded.bytes;
            candidate.digest = Some(digest);
            *candidate.model() = Some(loaded.model);
            Done { candidate, event: Event::Loaded, notes: Notes { figures, ..Notes::default() } }
        }
        Err(LoadError::Failed(error)) => candidate.failed(error),
        Err(LoadError::Hung(error, thread)) => {
            abandon(&ctx, &mut candidate, thread);
            candidate.failed(error)
        }
    }
}

/// Leaves to a hanging thread what it may still touch.
fn abandon(ctx: &Context, candidate: &mut Candidate, thread: ThreadLife) {
    candidate.runner = None;
    if let Some(room) = candidate.room.take() {
        tracing::error!(version = candidate.reference(), bytes = room.reservation.bytes(), "abandoned with its memory");
        ctx.lingering.abandon(room, thread);
    }
}
