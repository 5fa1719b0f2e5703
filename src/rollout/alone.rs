//! A version loaded in this process, and nothing beside it: no server, no engine, no ledger.
//!
//! It is loaded by the very code of a rollout. What is done with it is the caller's business: `rehearsal` judges it, `bench
//! forward` times it.

use std::collections::HashMap;
use std::sync::Arc;

use super::load::{build, guarded_load};
use super::survey::Survey;
use crate::device::{Memory, Opened, Owner};
use crate::error::Result;
use crate::model::Model;
use crate::ops::Machine;
use crate::process::Processor;
use crate::repository::{Contract, Spec};
use crate::weights::{Manifest, Progress};

pub struct Alone {
    pub model: Model,
    pub processor: Processor,
    pub spec: Spec,
    pub contract: Contract,
    /// What an image costs in a batch, in tokens; 1 for text.
    pub tokens_per_image: usize,
    pub(super) progress: Arc<Progress>,
}

impl Alone {
    /// Blocks, and reads every byte twice: for the digests, and against them.
    pub fn load(survey: Survey, opened: &Opened) -> Result<Alone> {
        let mut inspected = survey.into_inspected()?;
        let processor = inspected.take_processor()?;
        let reference = inspected.spec.reference();
        let manifest = Manifest::compute(&inspected.spec.dir, &inspected.index)?;
        let progress = Arc::new(Progress::new());
        let machine = Machine::start(opened)?;
        let owner = Owner { holder: reference.clone(), generation: None };
        let memory = Memory::acquire(opened, inspected.footprint.weight_bytes(), owner)?;
        let built =
            guarded_load(&reference, || build(&inspected, &manifest, HashMap::new(), (&machine, &memory), &progress))?;
        Ok(Alone {
            model: built.model,
            processor,
            spec: inspected.spec,
            contract: inspected.contract,
            tokens_per_image: inspected.tokens_per_image,
            progress,
        })
    }
}
