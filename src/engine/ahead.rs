//! Steps that a device is given before the tokens of the one before are here: it goes on while those are read and told.
//!
//! That can be where no more than the likeliest token is wanted of each row: the device has it, and takes it as what the same
//! sequence goes on with. Only then is anybody told; who has ended by then, or failed, or is not wanted any more, is in one step more,
//! of which nothing comes. What is begun is of the generation alone that has the engine: nothing else may run before it has ended.

use super::decoding::{Began, Decoding, How, Stepped};
use super::draws::Row;
use super::resident::guarded;
use crate::error::{Error, Result};
use crate::faults::{At, Strike};
use crate::model::{Begun, Decoder, KvCache, Wants};
use crate::schedule::decode::{Plan, Run};

/// A step that the device has.
pub(super) struct OnItsWay {
    plan: Plan,
    /// Of its runs, which it has none of any more.
    keys: Vec<u64>,
    begun: Begun,
}

impl Decoding {
    pub(super) fn is_on_its_way(&self) -> bool {
        self.on_its_way.is_some()
    }

    /// Gives a step to the device; the plan, where that cannot be done without waiting for it.
    pub(super) fn begin(
        &mut self,
        (model, cache): (&mut dyn Decoder, &mut KvCache),
        mut plan: Plan,
        after: Option<&mut OnItsWay>,
    ) -> Result<OnItsWay, Plan> {
        let is_plain = |run: &Run| run.tokens.len() == 1 && self.last_of(run, true) == Wants::Likeliest;
        if !model.begins() || !plan.runs.iter().all(is_plain) {
            return Err(plan);
        }
        let input = self.input(&plan.runs, true);
        let after = after.map(|step| &mut step.begun);
        match guarded(&self.name, || model.begin(&input, after, cache)) {
            Ok(Some(begun)) => {
                let keys = std::mem::take(&mut plan.runs).into_iter().map(|run| run.key).collect();
                Ok(OnItsWay { plan, keys, begun })
            }
            Ok(None) => Err(plan),
            Err(error) => {
                tracing::warn!(version = self.name, %error, "a step could not be begun; it runs by itself");
                Err(plan)
            }
        }
    }

    /// Ends a step that is on its way; the one after it is begun before that.
    pub(super) fn go_on(
        &mut self,
        (model, cache): (&mut dyn Decoder, &mut KvCache),
        mut step: OnItsWay,
        (began, how): (Began, How<'_>),
    ) -> Stepped {
        if how.goes_ahead
            && let Some(plan) = self.scheduler.plan_ahead()
        {
            match self.begin((&mut *model, &mut *cache), plan, Some(&mut step)) {
                Ok(next) => self.on_its_way = Some(next),
                Err(plan) => self.scheduler.discard(plan),
            }
        }
        let OnItsWay { plan, keys, begun } = step;
        match self.rows(&keys, begun) {
            Ok(rows) => self.conclude((plan, &keys), rows, (began, how)),
            Err(error) => {
                self.give_up(plan);
                tracing::warn!(version = self.name, sequences = keys.len(), %error, "a step that was on its way failed");
                let Some(plan) = self.scheduler.plan() else { return Stepped { sequences: 0, tokens: 0 } };
                // Whose fault it is shows where each runs alone; that one was alone already, where it still is. Whoever came
                // since, or is left of several, has not failed.
                let again = plan.runs.iter().map(|run| run.key).eq(keys.iter().copied());
                self.step_at_once((model, cache), (plan, again.then_some(error)), (began, how))
            }
        }
    }

    /// What is told of a step's rows, which faults on purpose may strike, once it is here.
    fn rows(&self, keys: &[u64], begun: Begun) -> Result<Vec<(u64, Row)>> {
        let (strike, told) = guarded(&self.name, || {
            let strike = self.faults.strike(At::Serving)?;
            Ok((strike, begun.wait().map_err(Error::internal)?))
        })?;
        if told.len() != keys.len() {
            let message = format!("{} rows where {} were wanted", told.len(), keys.len());
            return Err(Error::ForwardFailed { version: self.name.clone(), message });
        }
        let row = |(key, likeliest)| {
            let mut row = Row::Likeliest(likeliest);
            if strike == Strike::Poison {
                row.poison();
            }
            (key, row)
        };
        Ok(keys.iter().copied().zip(told).map(row).collect())
    }

    /// A step failed, and with it the one that goes on from it.
    fn give_up(&mut self, plan: Plan) {
        if let Some(OnItsWay { plan, begun, .. }) = self.on_its_way.take() {
            begun.abandon();
            self.scheduler.discard(plan);
        }
        self.scheduler.discard(plan);
    }
}
