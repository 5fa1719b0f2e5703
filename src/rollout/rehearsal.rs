//! A version run by itself in this process: no server, no engine, no ledger.
//!
//! It is loaded, run and judged by the very code of a rollout, so that what passes here passes there.

use super::alone::Alone;
use super::gate::{self, Golden, Probation, Runner, SoftError, Trial};
use super::quiet::Urgency;
use super::survey::Survey;
use crate::device::{Opened, Processors};
use crate::error::{Error, Result};
use crate::faults::Faults;
use crate::ledger::GateCheck;
use crate::process::{FinishOptions, PrepareOptions, Processor};
use crate::repository::{Contract, ModelConfig};
use crate::value::{Output, RawInput};

pub struct Rehearsal {
    runner: Runner,
    processor: Processor,
    contract: Contract,
    config: ModelConfig,
    reference: String,
}

impl Rehearsal {
    /// Loads the version. Blocks, and reads every byte twice: for the digests, and against them.
    pub fn start(survey: Survey, config: &ModelConfig, opened: &Opened) -> Result<Rehearsal> {
        let Alone { model, processor, spec, contract, progress, .. } = Alone::load(survey, opened)?;
        let reference = spec.reference();
        let (name, faults, urgency) = (reference.clone(), Faults::default(), Urgency::Awaited);
        let processors = Processors::all();
        let trial = Trial { name, model, faults, urgency, processors, beside: None, progress };
        let probation = Probation::start(trial, &config.gate)?;
        Ok(Rehearsal { runner: Runner::Probation(probation), processor, contract, config: config.clone(), reference })
    }

    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// The gate's checks of correctness.
    pub async fn check(&mut self, golden: &Golden) -> Result<Vec<GateCheck>> {
        let prepared = gate::prepare(golden, &self.processor, &self.contract)?;
        let rules = &self.config.gate;
        let findings = gate::correctness(&mut self.runner, &prepared, &self.processor, rules).await;
        findings.map(|findings| findings.checks).map_err(|SoftError(error)| error)
    }

    /// What the version answers to one input.
    pub async fn answer(&mut self, input: &RawInput) -> Result<Output> {
        let prepared = self.processor.prepare(input, &PrepareOptions::default())?;
        let timed = self.runner.run(vec![prepared]).await.map_err(|SoftError(error)| error)??;
        let row = timed.rows.into_iter().next();
        let row = row.ok_or_else(|| Error::internal(format!("{} answered nothing", self.reference)))?;
        self.processor.finish(row, &FinishOptions::default())
    }
}
