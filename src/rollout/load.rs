//! From a version folder to a model in memory, off the request path.
//!
//! `inspect` reads headers and small files only, so that room can be reserved before a weight is read.
//! `load` then reads on a thread of its own at the lowest priority, verifies digests on the way, and shares
//! whatever is resident already.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use tokio::sync::oneshot;

use super::journal::Journal;
use crate::device::{Arena, Claim, lower_thread_priority};
use crate::engine::{Engine, guarded};
use crate::error::{Error, Result};
use crate::faults::{At, Faults};
use crate::generation::GenerationId;
use crate::model::{self, Family, Model};
use crate::process::Processor;
use crate::repository::{Contract, Fingerprint, ModelConfig, Repository, Spec};
use crate::weights::{self, Footprint, Index, Manifest, Progress, TensorKey};

/// A version folder understood, before any weight was read.
pub(super) struct Inspected {
    pub(super) spec: Spec,
    pub(super) family: &'static Family,
    pub(super) index: Index,
    pub(super) footprint: Footprint,
    processor: Option<Processor>,
    pub(super) contract: Contract,
    pub(super) fingerprint: Fingerprint,
    /// What an image costs in a batch, in tokens; 1 for text.
    pub(super) tokens_per_image: usize,
}

impl Inspected {
    /// The processor, which moves on by itself.
    pub(super) fn take_processor(&mut self) -> Result<Processor> {
        self.processor.take().ok_or_else(|| Error::internal("the processor was taken before"))
    }
}

/// Reads everything of a version but its weights. Blocks.
pub(super) fn inspect(repository: &Repository, model: &str, version: &str, config: &ModelConfig) -> Result<Inspected> {
    let dir: PathBuf = repository.version_dir(model, version)?;
    let fingerprint = Fingerprint::of(&dir)?;
    let spec = Spec::read(&dir, model, version, config)?;
    let family = model::family(&spec)?;
    let index = Index::open(&dir, &spec.all_weight_files())?;
    let footprint = (family.footprint)(&spec, &index)?;
    weights::check(&index, &footprint.wanted, &family.ignored)?;
    let processor = Processor::load(&spec, &config.limits)?;
    let tokens_per_image = family.tokens_per_image.map_or(Ok(1), |count| count(&spec))?;
    let contract = Contract::of(&spec, processor.max_tokens())?;
    Ok(Inspected {
        spec,
        family,
        index,
        footprint,
        processor: Some(processor),
        contract,
        fingerprint,
        tokens_per_image,
    })
}

/// What to reserve. Unshared, unless a manifest of the very same files says which tensors are resident.
pub(super) fn claim(inspected: &Inspected, shared: u64) -> Claim {
    Claim {
        holder: format!("{}@{}", inspected.spec.model, inspected.spec.version),
        weights: inspected.footprint.weight_bytes().saturating_sub(shared),
        workspace: inspected.footprint.workspace,
    }
}

/// The version's digests: those of its first sight when its files are the same, else computed now and compared.
///
/// # Errors
/// `Unloadable` when the folder changed after it was first seen.
pub(super) async fn manifest(journal: &Journal, inspected: &Inspected) -> Result<Manifest> {
    if let Some(known) = recorded(journal, inspected).await?
        && known.fingerprint == inspected.fingerprint
    {
        return Ok(known);
    }
    let (dir, index) = (inspected.spec.dir.clone(), inspected.index.clone());
    let now = blocking(move || Manifest::compute(&dir, &index)).await?;
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
    pub(super) device: Device,
    pub(super) arena: Arc<Arena>,
    pub(super) progress: Arc<Progress>,
    pub(super) faults: Faults,
    /// A load that reads nothing for this long hangs and is abandoned.
    pub(super) patience: Duration,
}

pub(super) struct Loaded {
    pub(super) model: Model,
    pub(super) bytes: u64,
    pub(super) shared: u64,
    pub(super) took: Duration,
}

/// Why a load ended without a model.
pub(super) enum LoadError {
    Failed(Error),
    /// The loader's thread hangs: whatever it holds must stay.
    Hung(Error),
}

impl From<Error> for LoadError {
    fn from(error: Error) -> Self {
        LoadError::Failed(error)
    }
}

/// Loads the weights and builds the model.
pub(super) async fn load(engine: &Engine, inspected: &Arc<Inspected>, loading: Loading) -> Result<Loaded, LoadError> {
    let began = Instant::now();
    let Loading { generation, manifest, device, arena, progress, faults, patience } = loading;
    let wanted = &inspected.footprint.wanted;
    let keys = wanted.iter().map(|w| weights::key_of(w, &inspected.index, &manifest)).collect::<Result<Vec<_>>>()?;
    let resident = engine.lookup(generation, keys).await?;

    let (sender, receiver) = oneshot::channel();
    let work = {
        let (inspected, progress) = (Arc::clone(inspected), Arc::clone(&progress));
        move || {
            lower_thread_priority();
            let name = inspected.spec.reference();
            let result = arena.enter(|| {
                guarded_load(&name, || {
                    faults.strike(At::Load)?;
                    let wanted = &inspected.footprint.wanted;
                    let weights = weights::load(&inspected.index, &manifest, wanted, resident, &device, &progress)?;
                    let (bytes, shared) = (weights.exclusive_bytes(), weights.shared_bytes());
                    let entries: Vec<_> = weights.entries().map(|(key, t)| (key.clone(), t.clone())).collect();
                    let model = (inspected.family.load)(&inspected.spec, weights, &device)?;
                    Ok((model, entries, bytes, shared))
                })
            });
            // Nobody listens when the load was given up; then everything is dropped here.
            let _ = sender.send(result.and_then(|result| result));
        }
    };
    std::thread::Builder::new()
        .name("loader".into())
        .spawn(work)
        .map_err(|e| Error::internal(format!("could not start a loader thread: {e}")))?;
    let (model, entries, bytes, shared) = patiently(receiver, &progress, patience, &inspected.spec.reference()).await?;
    keep(engine, generation, entries).await?;
    Ok(Loaded { model, bytes, shared, took: began.elapsed() })
}

async fn keep(engine: &Engine, generation: GenerationId, entries: Vec<(TensorKey, Tensor)>) -> Result<()> {
    engine.keep(generation, entries).await
}

/// A panic while loading is the version's failure, not the server's.
fn guarded_load<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut unloadable = None;
    let result = guarded(name, || work().inspect_err(|error| unloadable = Some(error.clone())));
    match (result, unloadable) {
        (Ok(value), _) => Ok(value),
        // Whatever failed in a load is told as what cannot be loaded, so that it is the version's failure.
        (Err(_), Some(error)) if error.is_model_fault() => Err(Error::unloadable(name, error)),
        (Err(_), Some(error)) => Err(error),
        (Err(panic), None) => Err(Error::unloadable(name, panic)),
    }
}

/// Waits for the loader as long as it gets on.
async fn patiently<T>(
    mut receiver: oneshot::Receiver<Result<T>>,
    progress: &Progress,
    patience: Duration,
    name: &str,
) -> Result<T, LoadError> {
    let mut seen = progress.done();
    loop {
        match tokio::time::timeout(patience, &mut receiver).await {
            Ok(Ok(result)) => return result.map_err(LoadError::Failed),
            Ok(Err(_)) => return Err(LoadError::Failed(Error::internal("the loader thread ended without an answer"))),
            Err(_) if progress.done() == seen => {
                let reason = format!("loading hung: nothing was read for {} s", patience.as_secs_f64());
                return Err(LoadError::Hung(Error::unloadable(name, reason)));
            }
            Err(_) => seen = progress.done(),
        }
    }
}

/// Runs blocking work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| Error::internal(format!("a background task failed: {e}")))?
}
