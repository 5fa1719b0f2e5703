//! Where the gate's forward passes run: on a probation thread before the model is resident, or on the engine.

use super::Probation;
use crate::engine::{Engine, Timed};
use crate::error::{Error, Result};
use crate::faults::{At, Faults, Strike};
use crate::generation::GenerationId;
use crate::model::Input;
use crate::schedule::Class;

/// The run as such could not go on (hung, cancelled, engine gone); a forward pass that fails is no such error.
#[derive(Debug)]
pub(in crate::rollout) struct SoftError(pub(in crate::rollout) Error);

impl From<Error> for SoftError {
    fn from(error: Error) -> Self {
        SoftError(error)
    }
}

pub(in crate::rollout) enum Runner {
    Probation(Probation),
    Engine {
        engine: Engine,
        generation: GenerationId,
    },
    /// As `Engine`, in place of probation: faults on purpose may strike, on the engine's own thread.
    Gated {
        engine: Engine,
        generation: GenerationId,
    },
    /// As `Engine`, after the switch, where faults on purpose may strike.
    Observed {
        engine: Engine,
        generation: GenerationId,
        faults: Box<Faults>,
    },
}

impl Runner {
    /// One forward pass. The outer error ends the run, the inner one is the model's.
    pub(in crate::rollout) async fn run(&mut self, inputs: Vec<Input>) -> Result<Result<Timed>, SoftError> {
        match self {
            Runner::Probation(probation) => probation.run(inputs).await,
            Runner::Engine { engine, generation } => on_engine(engine, *generation, inputs).await,
            Runner::Gated { engine, generation } => sorted(engine.on_probation(*generation, inputs).await),
            Runner::Observed { engine, generation, faults } => {
                // A delay or hang on purpose must not keep a thread of the runtime.
                let strike = match tokio::task::block_in_place(|| faults.strike(At::Window)) {
                    Ok(strike) => strike,
                    Err(error) => return Ok(Err(error)),
                };
                let mut answer = on_engine(engine, *generation, inputs).await?;
                if let (Strike::Poison, Ok(timed)) = (strike, &mut answer) {
                    timed.rows.iter_mut().flatten().for_each(|value| *value = f32::NAN);
                }
                Ok(answer)
            }
        }
    }
}

async fn on_engine(engine: &Engine, generation: GenerationId, inputs: Vec<Input>) -> Result<Result<Timed>, SoftError> {
    sorted(engine.background(generation, Class::Validation, inputs).await)
}

/// The model's errors apart from those that end the run.
fn sorted(answer: Result<Timed>) -> Result<Result<Timed>, SoftError> {
    match answer {
        Err(error) if !error.is_model_fault() => Err(SoftError(error)),
        answer => Ok(answer),
    }
}
