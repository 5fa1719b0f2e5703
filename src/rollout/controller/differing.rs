//! What a rollout changes, measured: begun when the gate has passed, so that it is in nobody's way, and let go with the rollout.

use std::sync::Arc;

use super::super::difference;
use super::{Controller, Report};
use crate::repository::Difference;
use crate::weights::Progress;

/// A measurement that goes on; dropping this ends it.
pub(super) struct Measuring(Arc<Progress>);

impl Drop for Measuring {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Controller {
    /// Begins to measure how far the candidate's tensors are from those that were live.
    pub(super) fn measure_differences(&mut self) {
        let Some(active) = &mut self.active else { return };
        let mut tensors =
            active.recorder.view().record.diff.iter().filter_map(|difference| difference.tensors.as_ref());
        // A version that is ready once more, after an experiment, is what it was.
        if active.measuring.is_some() || tensors.any(|tensors| tensors.measured > 0) {
            return;
        }
        let contract =
            active.candidate.as_ref().and_then(|candidate| Some(candidate.resident.as_ref()?.contract.clone()));
        let (Some(before), Some(contract)) = (active.before.clone(), contract) else { return };
        let record = &active.recorder.view().record;
        let (rollout, now) = (active.id.clone(), (record.model.clone(), record.to.clone(), contract));
        let progress = Arc::new(Progress::new());
        active.measuring = Some(Measuring(Arc::clone(&progress)));
        let (ctx, reporter, config) = (Arc::clone(&self.ctx), self.reporter.clone(), active.config.clone());
        tokio::spawn(async move {
            match difference::measured(ctx, before, now, (config, progress)).await {
                // Nobody listens when the process stops.
                Ok(differences) => drop(reporter.send(Report::Measured { rollout, differences })),
                // What is known without distances stays in the record.
                Err(error) => tracing::debug!(%error, rollout, "what a rollout changes was not measured"),
            }
        });
    }

    /// Takes what was measured into the record; it is written with whatever is written next.
    pub(super) fn measured(&mut self, differences: Vec<Difference>) {
        let Some(active) = &mut self.active else { return };
        active.measuring = None;
        active.recorder.differences(differences);
        active.recorder.publish();
    }
}
