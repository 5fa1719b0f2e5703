//! What benches share: a version loaded as the server loads it, without the server.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use cutover::error::Result;
use cutover::model::{Model, family};
use cutover::process::Processor;
use cutover::repository::{Contract, ModelConfig, Repository, Spec};
use cutover::weights::{Index, Manifest, Progress, load};

pub struct Loaded {
    pub spec: Spec,
    pub config: ModelConfig,
    pub processor: Processor,
    pub contract: Contract,
    pub model: Model,
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

/// Loads `model@version` of the repository onto the CPU.
pub fn loaded(model: &str, version: &str) -> Result<Loaded> {
    let repository = Repository::open(repository())?;
    let config = repository.model(model)?.config?;
    let dir = repository.version_dir(model, version)?;
    let spec = Spec::read(&dir, model, version, &config)?;
    let index = Index::open(&dir, &spec.all_weight_files())?;
    let family = family(&spec)?;
    let footprint = (family.footprint)(&spec, &index)?;
    let manifest = Manifest::compute(&dir, &index)?;
    let device = Device::Cpu;
    let weights = load(&index, &manifest, &footprint.wanted, HashMap::new(), &device, &Progress::new())?;
    let model = (family.load)(&spec, weights, &device)?;
    let processor = Processor::load(&spec, &config.limits)?;
    let contract = Contract::of(&spec, processor.max_tokens())?;
    Ok(Loaded { spec, config, processor, contract, model })
}
