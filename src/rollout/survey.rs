//! What a version folder is and what it will cost, from its headers and small files: no weight is read.
//!
//! A rollout needs everything to be in order and stops at the first thing that is not; `cutover inspect` wants to hear of
//! every one. So a survey goes on where it can, and keeps what it found beside what was wrong.

use std::path::{Path, PathBuf};

use candle_core::DType;

use super::gate::{self, Golden};
use super::home::Home;
use crate::device::{Claim, Kind};
use crate::error::{Error, Result};
use crate::model::{self, Family};
use crate::ops::Keeping;
use crate::process::Processor;
use crate::repository::{Contract, F32Matmul, Fingerprint, ModelConfig, Spec};
use crate::weights::{self, Footprint, Index};

/// A GPU's memory pool grows by so much, and what is allocated in it begins on such a border (measured on an H100). Bytes.
const POOL_GROWTH: u64 = 32 << 20;
const POOL_BORDER: u64 = 512;

/// Everything of a version but its weights; what is `None` is explained in `problems`.
pub struct Survey {
    pub dir: PathBuf,
    pub fingerprint: Option<Fingerprint>,
    pub spec: Option<Spec>,
    pub family: Option<&'static Family>,
    pub index: Option<Index>,
    pub footprint: Option<Footprint>,
    /// How the device would keep it.
    pub keeping: Keeping,
    pub processor: Option<Processor>,
    pub contract: Option<Contract>,
    /// What an image costs in a batch, in tokens; 1 for text.
    pub tokens_per_image: Option<usize>,
    /// Why it cannot be loaded, in the order of loading; empty when it can.
    pub problems: Vec<Error>,
}

impl Survey {
    /// Looks at the folder `dir` of `model@version`, for such a home. Blocks.
    pub fn of(dir: &Path, (model, version): (&str, &str), config: &ModelConfig, home: Home) -> Survey {
        let mut problems = Vec::new();
        let fingerprint = kept(Fingerprint::of(dir), &mut problems);
        let spec = kept(Spec::read(dir, model, version, config), &mut problems);
        let mut survey = Survey {
            dir: dir.to_owned(),
            fingerprint,
            spec: None,
            family: None,
            index: None,
            footprint: None,
            keeping: Keeping::Cpu,
            processor: None,
            contract: None,
            tokens_per_image: None,
            problems,
        };
        if let Some(mut spec) = spec {
            survey.look_into(&mut spec, config, home);
            survey.spec = Some(spec);
        }
        survey
    }

    fn look_into(&mut self, spec: &mut Spec, config: &ModelConfig, home: Home) {
        let problems = &mut self.problems;
        self.family = kept(model::family(spec), problems);
        self.index = kept(Index::open(&self.dir, &spec.all_weight_files()), problems);
        if let (Some(family), Some(index)) = (self.family, &mut self.index) {
            index.direct_reads = config.rollout.direct_reads && home.kind == Kind::Cuda;
            self.keeping = match home.kind {
                Kind::Cpu => Keeping::Cpu,
                Kind::Cuda => Keeping::Cuda(index.main_format()),
            };
            self.footprint = kept((family.footprint)(spec, index, self.keeping), problems);
            if let Some(footprint) = &mut self.footprint {
                home.furnish(spec, footprint);
                kept(weights::check(index, &footprint.wanted, &family.ignored), problems);
            }
        }
        self.processor = kept(Processor::load(spec, &config.limits), problems);
        if let Some(longest) = self.family.and_then(|family| family.longest)
            && let (Some(longest), Some(processor)) = (kept(longest(spec), problems), &mut self.processor)
        {
            processor.shorten(longest);
        }
        if let Some(family) = self.family {
            self.tokens_per_image = kept(family.tokens_per_image.map_or(Ok(1), |count| count(spec)), problems);
        }
        if let Some(processor) = &self.processor {
            let contract = Contract::of(spec, processor.max_tokens(), processor.tokenizer_digest());
            let contract = contract.map(|contract| Contract { chats: processor.chats(), ..contract });
            self.contract = kept(contract, problems);
        }
    }

    /// Whether the golden cases suit the version: their expectations its task, their inputs its processor.
    pub fn fits(&self, golden: &Golden) -> Result<()> {
        match (&self.processor, &self.contract) {
            (Some(processor), Some(contract)) => gate::prepare(golden, processor, contract).map(drop),
            _ => Ok(()),
        }
    }

    /// What loading needs.
    ///
    /// # Errors
    /// The first problem.
    pub(super) fn into_inspected(self) -> Result<Inspected> {
        if let Some(problem) = self.problems.into_iter().next() {
            return Err(problem);
        }
        let incomplete = || Error::internal("a survey without problems is not complete");
        Ok(Inspected {
            spec: self.spec.ok_or_else(incomplete)?,
            family: self.family.ok_or_else(incomplete)?,
            index: self.index.ok_or_else(incomplete)?,
            footprint: self.footprint.ok_or_else(incomplete)?,
            keeping: self.keeping,
            processor: Some(self.processor.ok_or_else(incomplete)?),
            contract: self.contract.ok_or_else(incomplete)?,
            fingerprint: self.fingerprint.ok_or_else(incomplete)?,
            tokens_per_image: self.tokens_per_image.ok_or_else(incomplete)?,
        })
    }
}

fn kept<T>(found: Result<T>, problems: &mut Vec<Error>) -> Option<T> {
    found.map_err(|problem| problems.push(problem)).ok()
}

/// A version folder understood, before any weight was read.
pub(super) struct Inspected {
    pub(super) spec: Spec,
    pub(super) family: &'static Family,
    pub(super) index: Index,
    pub(super) footprint: Footprint,
    pub(super) keeping: Keeping,
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

    /// Why what is asked of matrix products means nothing, where it does.
    pub(super) fn unheard(&self) -> Option<String> {
        match (self.spec.f32_matmul, self.keeping) {
            (F32Matmul::F32, _) | (F32Matmul::Tf32, Keeping::Cuda(DType::F32)) => None,
            (F32Matmul::Tf32, Keeping::Cuda(dtype)) => Some(format!("its weights are {}", dtype.as_str())),
            (F32Matmul::Tf32, Keeping::Cpu) => Some("a CPU has no TF32".to_owned()),
        }
    }

    /// What to reserve. Unshared, unless a manifest of the very same files says which tensors are resident.
    pub(super) fn claim(&self, shared: u64) -> Claim {
        let weights = self.footprint.weight_bytes().saturating_sub(shared);
        let workspace = match self.keeping {
            Keeping::Cpu => self.footprint.workspace,
            // What a pool takes of its driver for these.
            Keeping::Cuda(_) => {
                let borders = self.footprint.wanted.len() as u64 * POOL_BORDER;
                let all = weights.saturating_add(borders).saturating_add(self.footprint.workspace);
                all.next_multiple_of(POOL_GROWTH).saturating_sub(weights)
            }
        };
        Claim { holder: self.spec.reference(), weights, workspace }
    }
}
