//! The golden cases once more, on the generation that serves: what the window asks for every so often.
//!
//! It runs and finds; whether that ends the window is `watch`'s to say. It must not hold the generation.

use std::sync::Arc;

use super::Context;
use super::gate::{self, Findings, Prepared, Runner, SoftError};
use crate::faults::Faults;
use crate::generation::GenerationId;
use crate::process::Processor;
use crate::repository::ModelConfig;

/// The golden cases once more on a live generation, at low priority (a quiet service is observed all the same).
pub(super) async fn recheck(ctx: Arc<Context>, watched: Watched) -> Option<Findings> {
    let faults = Box::new(Faults::of(&ctx.faults, &watched.reference));
    let mut runner = Runner::Observed { engine: ctx.engine.clone(), generation: watched.generation, faults };
    match gate::correctness(&mut runner, &watched.cases, &watched.processor, &watched.config.gate).await {
        Ok(findings) => Some(findings),
        Err(SoftError(error)) => {
            // The generation went meanwhile, or the server stops: nothing was observed.
            tracing::debug!(%error, "the golden cases could not be run again");
            None
        }
    }
}

/// What it takes to run the golden cases without holding the generation.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) generation: GenerationId,
    /// `model@version`
    pub(super) reference: String,
    pub(super) cases: Arc<Vec<Prepared>>,
    pub(super) processor: Arc<Processor>,
    pub(super) config: ModelConfig,
}
