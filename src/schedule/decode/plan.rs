//! What the next step computes.

use std::hash::BuildHasher;

use super::sequence::Sequence;
use super::{BlockId, DecodeScheduler, Effect, Plan};

impl<S: BuildHasher> DecodeScheduler<S> {
    /// Plans the next step. `None`: nothing waits or runs, or a plan is out, which `apply` or `discard` must have back first.
    pub fn plan(&mut self) -> Option<Plan> {
        self.plan_within(usize::MAX)
    }

    /// The same with at most so many tokens of prompts, and one at least where the budget has it.
    pub fn plan_within(&mut self, prompts: usize) -> Option<Plan> {
        if self.out.is_some() || self.is_idle() {
            return None;
        }
        let mut budget = self.limits.step_tokens;
        let nobody_preempted = self.plan_writers(&mut budget);
        let writing = self.limits.step_tokens - budget;
        budget = budget.min(prompts.max(1));
        let before = budget;
        self.plan_prompts(&mut budget);
        if nobody_preempted {
            self.admit(&mut budget);
        }
        self.counts.planned += 1;
        self.out = Some(self.counts.planned);
        self.set_order();
        let runs = self.order.iter().map(|at| self.running[*at].run()).collect();
        let prompts = before - budget;
        Some(Plan { runs, tokens: writing + prompts, prompts, number: self.counts.planned })
    }

    /// Plans the step after the one that is out, while nobody knows yet what that one tells: the same runs in the same order, each of
    /// the token that is sampled from the other's. `None`: somebody ends by then or is over already, or is no writer; somebody
    /// might be let in; blocks run out; or there is such a plan.
    ///
    /// `apply` or `discard` must have the plans back in turn: where the first one is discarded, the second one goes before it. The
    /// steps run one after the other. What the second one samples for a sequence that the first one ended is ignored.
    pub fn plan_ahead(&mut self) -> Option<Plan> {
        if self.out.is_none() || self.ahead.is_some() {
            return None;
        }
        let all_go_on = self.order.len() == self.running.len() && self.running.iter().all(Sequence::goes_on);
        let nobody_comes = self.line.is_empty() || self.running.len() == self.limits.sequences;
        let block_tokens = self.limits.block_tokens;
        let full = self.running.iter().filter(|sequence| sequence.is_full(block_tokens)).count();
        if !all_go_on || !nobody_comes || full > self.blocks.available() {
            return None;
        }
        for sequence in self.running.iter_mut().filter(|sequence| sequence.is_full(block_tokens)) {
            sequence.extend(&mut self.blocks);
        }
        self.counts.planned += 1;
        self.ahead = Some(self.counts.planned);
        let runs: Vec<_> = self.order.iter().map(|at| self.running[*at].run_ahead()).collect();
        Some(Plan { tokens: runs.len(), prompts: 0, runs, number: self.counts.planned })
    }

    /// Whether anybody waits for no more than the next token.
    pub fn writes(&self) -> bool {
        self.running.iter().any(Sequence::is_writing)
    }

    /// One token for each that lacks one only, in order. Whoever gives up its blocks for that is the last in order, so it
    /// never is one that this plan runs already. True: nobody had to.
    fn plan_writers(&mut self, budget: &mut usize) -> bool {
        let before = self.counts.preemptions;
        let mut at = 0;
        while let Some(sequence) = self.running.get_mut(at) {
            if !sequence.is_writing() {
                at += 1;
            } else if sequence.make_room(&mut self.blocks, self.limits.block_tokens) {
                *budget -= sequence.plan(1);
                at += 1;
            } else {
                self.preempt_last();
            }
        }
        before == self.counts.preemptions
    }

    fn preempt_last(&mut self) {
        let Some(mut last) = self.running.pop() else { return };
        last.preempt(&mut self.blocks);
        self.told.push(Effect::Preempted { key: last.key });
        self.counts.preemptions += 1;
        self.line.push(last);
    }

    /// Chunks of prompts that run already, in order: all that is left of the budget for the first, and so on.
    fn plan_prompts(&mut self, budget: &mut usize) {
        for sequence in self.running.iter_mut().filter(|sequence| sequence.planned() == 0) {
            *budget -= sequence.plan(*budget);
        }
    }

    /// Lets sequences in from the waiting line. Where the next one has to wait, all wait: nobody slips past it.
    fn admit(&mut self, budget: &mut usize) {
        let before = self.running.len();
        while *budget > 0 && self.running.len() < self.limits.sequences {
            let Some(found) = self.admissible() else { break };
            let Some(mut sequence) = self.line.take() else { break };
            if sequence.rank.fresh {
                self.counts.prefix_asked += sequence.len() as u64;
                self.counts.prefix_hits += (found.len() * self.limits.block_tokens) as u64;
            }
            sequence.begin(found, &mut self.blocks, self.limits.block_tokens);
            *budget -= sequence.plan(*budget);
            self.running.push(sequence);
        }
        if self.running.len() > before {
            self.arrange();
        }
    }

    /// The blocks in which the beginning of the next waiting sequence was found, if there are enough for the rest of it now
    /// and nobody is computing just what it needs.
    fn admissible(&mut self) -> Option<Vec<BlockId>> {
        let next = self.line.next()?;
        let block_tokens = self.limits.block_tokens;
        let growing = self.running.iter().filter(|sequence| sequence.may_grow(block_tokens)).count();
        let room = self.blocks.available().saturating_sub(growing);
        let number = next.rank.age.number;
        if self.stuck.is_some_and(|(stuck, had)| stuck == number && room <= had) {
            return None;
        }
        let found = next.find_prefix(&self.blocks, block_tokens);
        let idle = found.iter().filter(|block| self.blocks.is_idle(**block)).count();
        if next.blocks(block_tokens) - found.len() + idle > room {
            self.stuck = Some((number, room));
            return None;
        }
        let computed_now = |other: &Sequence| next.follows(&found, other, block_tokens);
        (!self.running.iter().any(computed_now)).then_some(found)
    }

    /// Those that write first, then parts of prompts.
    fn set_order(&mut self) {
        let places = |writing: bool| {
            let running = self.running.iter().enumerate();
            running.filter(move |(_, s)| s.planned() > 0 && s.is_writing() == writing).map(|(at, _)| at)
        };
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(places(true).chain(places(false)));
        self.order = order;
    }
}
