//! A step through the model: what its runs are to it, and the rows that come back.
//!
//! It must not know what is chosen from them, nor who is told of that.

use std::sync::Arc;

use super::decoding::{Decoding, Step};
use super::draws::Row;
use super::resident::guarded;
use crate::error::{Error, Result};
use crate::faults::{At, Strike};
use crate::model::{Decoder, KvCache, StepInput, StepSequence, Wants};
use crate::schedule::decode::{self, Run};

impl Decoding {
    /// The row that each run wants sampled; those of runs that failed are told and cancelled.
    pub(super) fn compute(
        &mut self,
        (model, cache): (&mut dyn Decoder, &mut KvCache),
        (runs, failed): (&[Run], Option<Error>),
        step: &Step<'_>,
    ) -> Vec<(u64, Row)> {
        match failed.map_or_else(|| self.pass((&mut *model, &mut *cache), runs, step), Err) {
            Ok(rows) => rows,
            Err(error) if runs.len() == 1 => {
                self.fail(runs[0].key, error);
                Vec::new()
            }
            Err(error) => {
                tracing::warn!(version = self.name, sequences = runs.len(), %error, "a step failed; running its sequences alone");
                let mut rows = Vec::new();
                for run in runs {
                    match self.pass((&mut *model, &mut *cache), std::slice::from_ref(run), step) {
                        Ok(row) => rows.extend(row),
                        Err(error) => self.fail(run.key, error),
                    }
                }
                rows
            }
        }
    }

    /// One pass over runs, which faults on purpose may strike.
    fn pass(
        &mut self,
        (model, cache): (&mut dyn Decoder, &mut KvCache),
        runs: &[Run],
        step: &Step<'_>,
    ) -> Result<Vec<(u64, Row)>> {
        let is_far = !model.device().is_cpu();
        let input = self.input(runs, is_far);
        let faults = &self.faults;
        let (strike, logits) = guarded(&self.name, || {
            let strike = faults.strike(At::Serving)?;
            Ok((strike, step(model, &input, cache)?))
        })?;
        if logits.count() != input.rows() {
            let message = format!("{} rows where {} were wanted", logits.count(), input.rows());
            return Err(Error::ForwardFailed { version: self.name.clone(), message });
        }
        let (mut rows, mut likeliest, mut likely) = (logits.rows(), logits.likeliest().iter(), logits.likely().iter());
        let mut wanted = Vec::with_capacity(runs.len());
        for (run, StepSequence { tokens, wants, .. }) in runs.iter().zip(&input.sequences) {
            let row = match wants {
                Wants::Likeliest => likeliest.next().copied().map(Row::Likeliest),
                Wants::Likely { .. } => likely.next().cloned().map(Row::Likely),
                _ => {
                    let last = rows.by_ref().take(wants.rows(tokens.len())).last();
                    last.filter(|_| run.sample).map(|row| Row::Whole(row.to_vec()))
                }
            };
            if let Some(mut row) = row {
                if strike == Strike::Poison {
                    row.poison();
                }
                wanted.push((run.key, row));
            }
        }
        Ok(wanted)
    }

    /// What runs are to the model.
    pub(super) fn input(&self, runs: &[Run], is_far: bool) -> StepInput {
        StepInput { sequences: runs.iter().map(|run| self.sequence_of(run, is_far)).collect() }
    }

    /// What a run is to the model. Rows that are far away need not come whole, and no row from which nothing is drawn.
    fn sequence_of(&self, run: &Run, is_far: bool) -> StepSequence {
        let wants = match run.wants {
            decode::Wants::Nothing => Wants::Nothing,
            decode::Wants::Last => self.last_of(run, is_far),
            decode::Wants::Every => Wants::Every,
        };
        StepSequence { tokens: run.tokens.clone(), from: run.from, blocks: Arc::clone(&run.blocks), wants }
    }

    pub(super) fn last_of(&self, run: &Run, is_far: bool) -> Wants {
        match self.sequences.get(&run.key).filter(|_| run.sample).map(|sequence| &sequence.sampler) {
            Some(sampler) if sampler.takes_likeliest() => Wants::Likeliest,
            Some(sampler) if is_far => match sampler.draws_at() {
                Some(temperature) => Wants::Likely { temperature },
                None => Wants::Last,
            },
            _ => Wants::Last,
        }
    }
}
