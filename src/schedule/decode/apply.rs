//! What came of a step; and who is not wanted any more.

use std::hash::BuildHasher;

use super::sequence::Sequence;
use super::{DecodeScheduler, Effect, Finish, Plan, Sampled};

impl<S: BuildHasher> DecodeScheduler<S> {
    /// The step was computed. `sampled`: one for every run with `sample`, best in the order of the runs; one whose sequence was
    /// cancelled meanwhile is ignored, and a sequence whose own is missing computes its last token again.
    ///
    /// Preemptions since the last `apply` are told first, then tokens and ends.
    pub fn apply(&mut self, plan: Plan, sampled: &[Sampled]) -> Vec<Effect> {
        if !self.close(plan) {
            return Vec::new();
        }
        let mut effects = std::mem::take(&mut self.told);
        effects.reserve(self.order.len());
        let mut samples = Samples { sampled, at: 0 };
        let is_ahead = self.out.is_some();
        for &at in &self.order {
            let sequence = &mut self.running[at];
            // Its step before this one ended it.
            if sequence.planned() == 0 {
                continue;
            }
            let sample = sequence.samples().then(|| samples.of(sequence.key));
            sequence.advance();
            if let Some(Some(_)) = sample {
                sequence.vouch(&mut self.blocks, self.limits.block_tokens);
            }
            match sample {
                _ if sequence.over => {}
                Some(None) => sequence.repeat_last(),
                Some(Some(sampled)) => grow(sequence, sampled, &mut effects),
                None => finish_if_complete(sequence, &mut effects),
            }
            // Where none was chosen of one that nobody waits for, nobody has said whether its keys are numbers.
            if !(sequence.over && matches!(sample, Some(None))) {
                sequence.publish(&mut self.blocks, self.limits.block_tokens, is_ahead);
            }
            if is_ahead && !sequence.over && matches!(sample, Some(Some(_))) {
                sequence.plan(1);
            }
        }
        self.sweep();
        effects
    }

    /// The step failed: nothing of it counts, and nothing that it wrote can be found. Its sequences run on from where they
    /// were, unless they are cancelled.
    pub fn discard(&mut self, plan: Plan) {
        if self.ahead == Some(plan.number) {
            // Nothing was planned of any sequence yet.
            self.ahead = None;
            return;
        }
        debug_assert!(self.ahead.is_none(), "the plan ahead goes first");
        if self.close(plan) {
            self.order.iter().for_each(|at| self.running[*at].discard());
            self.sweep();
        }
    }

    /// Nobody wants this sequence any more; false: there is none. Its blocks are free at once, or, when plans are out, after
    /// the last of these. No token and no end is told of it.
    pub fn cancel(&mut self, key: u64) -> bool {
        if self.line.cancel(key).is_some() {
            return true;
        }
        let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.key == key) else { return false };
        sequence.over = true;
        self.sweep();
        true
    }

    /// What was computed for this sequence is not to be trusted: it is cancelled, and what it computed is not found any more by
    /// anybody, nor is what it found and nobody has chosen a token after. So no later request is handed keys that are not
    /// numbers. Those who hold such blocks already go on with them. False: there is no such sequence.
    pub fn condemn(&mut self, key: u64) -> bool {
        if let Some(at) = self.running.iter().position(|sequence| sequence.key == key) {
            self.running[at].forget(&mut self.blocks);
            for other in &mut self.running {
                other.notice_forgotten(&self.blocks);
            }
        }
        self.cancel(key)
    }

    /// Takes back the plan that is out; the one ahead is then that.
    fn close(&mut self, plan: Plan) -> bool {
        let is_out = self.out == Some(plan.number);
        debug_assert!(is_out, "a plan of another scheduler");
        if is_out {
            self.out = self.ahead.take();
        }
        is_out
    }

    /// Sequences that are over leave, and nobody holds their blocks any more; not while a plan is out.
    fn sweep(&mut self) {
        if self.out.is_some() {
            return;
        }
        let before = self.running.len();
        let blocks = &mut self.blocks;
        self.running.retain_mut(|sequence| {
            if sequence.over {
                sequence.release(blocks);
            }
            !sequence.over
        });
        if self.running.len() < before {
            self.arrange();
        }
    }
}

/// The sequence goes on by what was sampled, or ends by it.
fn grow(sequence: &mut Sequence, sampled: &Sampled, effects: &mut Vec<Effect>) {
    if sampled.stop {
        finish(sequence, Finish::Stop, effects);
        return;
    }
    sequence.append(sampled.token);
    effects.push(Effect::Token { key: sequence.key, token: sampled.token });
    finish_if_complete(sequence, effects);
}

fn finish_if_complete(sequence: &mut Sequence, effects: &mut Vec<Effect>) {
    if sequence.is_complete() {
        finish(sequence, Finish::Length, effects);
    }
}

fn finish(sequence: &mut Sequence, finish: Finish, effects: &mut Vec<Effect>) {
    sequence.over = true;
    effects.push(Effect::Finished { key: sequence.key, finish });
}

/// What was sampled, looked up by key; at once where it is asked for in its own order.
struct Samples<'a> {
    sampled: &'a [Sampled],
    at: usize,
}

impl<'a> Samples<'a> {
    fn of(&mut self, key: u64) -> Option<&'a Sampled> {
        let next = self.sampled.get(self.at).filter(|sampled| sampled.key == key);
        match next {
            Some(sampled) => {
                self.at += 1;
                Some(sampled)
            }
            None => self.sampled.iter().find(|sampled| sampled.key == key),
        }
    }
}
