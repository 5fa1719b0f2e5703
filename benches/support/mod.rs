//! What benches share: a version loaded as the server loads it, without the server.
#![allow(dead_code, reason = "each bench takes what it needs")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cutover::device::Arena;
use cutover::error::Result;
use cutover::model::{Model, family};
use cutover::ops::{Device, Keeping};
use cutover::process::Processor;
use cutover::repository::{Contract, ModelConfig, Repository, Spec};
use cutover::weights::{Index, Manifest, Progress, load};

pub(crate) struct Loaded {
    pub(crate) spec: Spec,
    pub(crate) config: ModelConfig,
    pub(crate) processor: Processor,
    pub(crate) contract: Contract,
    pub(crate) model: Model,
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

/// Loads `model@version` of the repository onto the CPU.
pub(crate) fn loaded(model: &str, version: &str) -> Result<Loaded> {
    let repository = Repository::open(repository())?;
    let config = repository.model(model)?.config?;
    let dir = repository.version_dir(model, version)?;
    let spec = Spec::read(&dir, model, version, &config)?;
    let index = Index::open(&dir, &spec.all_weight_files())?;
    let family = family(&spec)?;
    let footprint = (family.footprint)(&spec, &index, Keeping::Cpu)?;
    let manifest = Manifest::compute(&dir, &index)?;
    let device = Device::Cpu;
    // Never dropped: the model lives in it as long as the bench.
    let arena: &Arena = Box::leak(Box::new(Arena::acquire(footprint.weight_bytes())?));
    let model = arena.enter(|| {
        let weights = load(&index, &manifest, &footprint.wanted, HashMap::new(), &device, &Progress::new())?;
        (family.load)(&spec, weights, &device)
    })??;
    let processor = Processor::load(&spec, &config.limits)?;
    let contract = Contract::of(&spec, processor.max_tokens(), processor.tokenizer_digest())?;
    Ok(Loaded { spec, config, processor, contract, model })
}
