//! From a version folder to a model in memory, off the request path.
//!
//! What the folder holds is `survey`'s to say. `load` reads the weights on a thread of its own, at the lowest priority
//! in a rollout, verifies digests on the way, and shares whatever is resident already.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Context;
use super::journal::Journal;
use super::quiet::{Late, Urgency, quietly, within};
use super::residents::ThreadLife;
use super::survey::Inspected;
use crate::device::{Memory, flush_thread_cache};
use crate::engine::{Engine, guarded};
use crate::error::{Error, Result};
use crate::faults::{At, Faults};
use crate::generation::GenerationId;
use crate::model::{Model, Warmth};
use crate::ops::{Machine, Tensor};
use crate::weights::{self, Known, Manifest, Parked, Progress, TensorKey};

/// The version's digests: those of its first sight when its files are the same, else computed now and compared.
///
/// # Errors
/// `Unloadable` when the folder changed after it was first seen; `Conflict` when `progress` was cancelled.
pub(super) async fn manifest(
    ctx: &Context,
    inspected: &Inspected,
    (urgency, progress): (Urgency, &Arc<Progress>),
) -> Result<Manifest> {
    let journal = &ctx.journal;
    if let Some(known) = recorded(journal, inspected).await?
        && known.fingerprint == inspected.fingerprint
    {
        return Ok(known);
    }
    let (dir, index) = (inspected.spec.dir.clone(), inspected.index.clone());
    let (processors, progress) = (ctx.engine.processors(), Arc::clone(progress));
    let digests = move || Manifest::compute_watched(&dir, &index, &progress);
    let now = quietly((urgency, processors), "digest", digests).await?;
    match recorded(journal, inspected).await? {
        Some(known) if known.digest == now.digest => Ok(now),
        Some(known) => {
            let what = known.differences(&now).join(", ");
            let reason = format!("the version folder changed after it was first seen: {what}; versions are immutable");
            Err(Error::unloadable(inspected.spec.reference(), reason))
        }
        None => {
            let value = serde_json::to_value(&now).map_err(Error::internal)?;
            let (model, version) = (inspected.spec.model.clone(), inspected.spec.version.clone());
            journal.with(move |ledger| ledger.record_manifest(&model, &version, &value)).await?;
            Ok(now)
        }
    }
}

/// The manifest of first sight, when there was one.
pub(super) async fn recorded(journal: &Journal, inspected: &Inspected) -> Result<Option<Manifest>> {
    let (model, version) = (inspected.spec.model.clone(), inspected.spec.version.clone());
    let value = journal.with(move |ledger| ledger.manifest(&model, &version)).await?;
    value.map(serde_json::from_value).transpose().map_err(|e| Error::Ledger { reason: format!("a manifest: {e}") })
}

pub(super) struct Loading {
    pub(super) generation: GenerationId,
    pub(super) manifest: Manifest,
    /// The same version in host memory.
    pub(super) parked: Option<Arc<Parked>>,
    pub(super) machine: Machine,
    pub(super) memory: Arc<Memory>,
    pub(super) progress: Arc<Progress>,
    /// A load that reads nothing for this long hangs and is abandoned.
    pub(super) patience: Duration,
    pub(super) faults: Faults,
    pub(super) urgency: Urgency,
    /// Whether small passes are recorded.
    pub(super) graphs: bool,
}

pub(super) struct Loaded {
    pub(super) model: Model,
    pub(super) bytes: u64,
    pub(super) shared: u64,
    /// Of its own bytes, those that no file was read for.
    pub(super) parked: u64,
    /// Of the time that all took, until its weights were on the device.
    pub(super) brought: Duration,
    /// What making its first passes ready came to, in the time that all took.
    pub(super) warmth: Warmth,
    pub(super) took: Duration,
}

/// Why a load ended without a model.
pub(super) enum LoadError {
    Failed(Error),
    /// The loader's thread hangs: whatever it holds must stay.
    Hung(Error, ThreadLife),
}

impl From<Error> for LoadError {
    fn from(error: Error) -> Self {
        LoadError::Failed(error)
    }
}

/// Loads the weights and builds the model.
pub(super) async fn load(engine: &Engine, inspected: &Arc<Inspected>, loading: Loading) -> Result<Loaded, LoadError> {
    let began = Instant::now();
    let Loading { generation, manifest, parked, machine, memory, progress, patience, faults, urgency, graphs } =
        loading;
    let wanted = &inspected.footprint.wanted;
    let keys = wanted.iter().map(|w| weights::key_of(w, &inspected.index, &manifest)).collect::<Result<Vec<_>>>()?;
    let known = Known { resident: engine.lookup(generation, keys).await?, parked };

    let (sender, receiver) = oneshot::channel();
    let (running, thread) = ThreadLife::begin();
    let work = {
        let (inspected, progress) = (Arc::clone(inspected), Arc::clone(&progress));
        let processors = Arc::clone(engine.processors());
        move || {
            urgency.take(&processors);
            let name = inspected.spec.reference();
            let result = memory.enter(|| {
                // At its priority this thread may not come to its end for long: it must not be the last that holds the device.
                let machine = machine;
                guarded_load(&name, || {
                    faults.strike(At::Load)?;
                    let mut built = build(&inspected, &manifest, known, (&machine, &memory), &progress)?;
                    let warmth = warm(&name, &mut built.model, (graphs, &progress));
                    Ok((built, warmth))
                })
            });
            // Nobody listens when the load was given up; then everything is dropped here.
            let _ = sender.send(result.and_then(|result| result).map_err(moved_out));
            drop((memory, running));
        }
    };
    std::thread::Builder::new()
        .name("loader".into())
        .spawn(work)
        .map_err(|e| Error::internal(format!("could not start a loader thread: {e}")))?;
    let built = patiently((receiver, thread), patience, &progress, &inspected.spec.reference()).await?;
    let (Built { model, entries, bytes, shared, parked, brought }, warmth) = built;
    engine.keep(generation, entries).await?;
    Ok(Loaded { model, bytes, shared, parked, brought, warmth, took: began.elapsed() })
}

/// Makes a model's first passes ready on this thread, before the engine has it. A version serves without that as well.
fn warm(name: &str, model: &mut Model, (records, progress): (bool, &Progress)) -> Warmth {
    let warmth = model.warm(records, progress);
    let (graphs, took) = (warmth.recorded, warmth.took);
    match &warmth.failed {
        Some(error) => {
            tracing::warn!(
                version = name,
                graphs,
                ?took,
                error,
                "passes could not all be made ready; those run op by op"
            )
        }
        None if graphs > 0 => tracing::info!(version = name, graphs, ?took, "passes of small batches are recorded"),
        None => {}
    }
    warmth
}

/// A copy of an error that was made inside an arena: it goes into the rollout's record, which outlives the arena's use,
/// and a reservation only comes back when its arena holds nothing.
fn moved_out(error: Error) -> Error {
    let copy = error.clone();
    drop(error);
    flush_thread_cache();
    copy
}

/// A model, and what it is made of.
pub(super) struct Built {
    pub(super) model: Model,
    entries: Vec<(TensorKey, Tensor)>,
    bytes: u64,
    shared: u64,
    parked: u64,
    /// Until all weights were on the device.
    brought: Duration,
}

/// Reads the weights and builds the model, on this thread.
pub(super) fn build(
    inspected: &Inspected,
    manifest: &Manifest,
    known: impl Into<Known>,
    (machine, memory): (&Machine, &Memory),
    progress: &Progress,
) -> Result<Built> {
    let device = &machine.device(memory, (inspected.footprint.workspace, inspected.keeping))?;
    let began = Instant::now();
    let weights = weights::load(&inspected.index, manifest, &inspected.footprint.wanted, known, device, progress)?;
    let brought = began.elapsed();
    let (bytes, shared, parked) = (weights.exclusive_bytes(), weights.shared_bytes(), weights.parked_bytes());
    let entries = weights.entries().map(|(key, tensor)| (key.clone(), tensor.clone())).collect();
    let model = (inspected.family.load)(&inspected.spec, weights, device)?;
    Ok(Built { model, entries, bytes, shared, parked, brought })
}

/// A panic while loading is the version's failure, not the server's.
pub(super) fn guarded_load<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut unloadable = None;
    let result = guarded(name, || work().inspect_err(|error| unloadable = Some(error.clone())));
    match (result, unloadable) {
        (Ok(value), _) => Ok(value),
        // Whatever failed in a load is told as what cannot be loaded, so that it is the version's failure.
        (Err(_), Some(Error::ForwardFailed { message, .. })) => {
            Err(Error::unloadable(name, format!("loading failed: {message}")))
        }
        (Err(_), Some(error)) if error.is_model_fault() => Err(Error::unloadable(name, error)),
        (Err(_), Some(error)) => Err(error),
        (Err(Error::ForwardPanicked { message, .. }), None) => {
            Err(Error::unloadable(name, format!("loading panicked: {message}")))
        }
        (Err(panic), None) => Err(Error::unloadable(name, panic)),
    }
}

/// Waits for the loader as long as it gets on, and only a moment once it was cancelled.
async fn patiently<T>(
    (mut receiver, thread): (oneshot::Receiver<Result<T>>, ThreadLife),
    patience: Duration,
    progress: &Progress,
    name: &str,
) -> Result<T, LoadError> {
    let mut seen = progress.done();
    loop {
        match within(patience, progress, &mut receiver).await {
            Ok(Ok(result)) => return result.map_err(LoadError::Failed),
            Ok(Err(_)) => return Err(LoadError::Failed(Error::internal("the loader thread ended without an answer"))),
            Err(Late::Cancelled) => {
                let reason = "the load was cancelled and did not end";
                return Err(LoadError::Hung(Error::unloadable(name, reason), thread));
            }
            Err(Late::Out) if progress.done() == seen => {
                let reason = format!("loading hung: nothing was read for {} s", patience.as_secs_f64());
                return Err(LoadError::Hung(Error::unloadable(name, reason), thread));
            }
            Err(Late::Out) => seen = progress.done(),
        }
    }
}

/// Runs blocking work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| Error::internal(format!("a background task failed: {e}")))?
}
