//! Dynamic batching by token budget, without added wait.
//!
//! A batch takes what is waiting when the engine is free. Each input is due at `arrived + patience × its own
//! expected service time`, and batches are cut in the order of what is due first. So a short input overtakes
//! long ones that arrived a little earlier (it never waits behind a batch of long ones it could have gone
//! before), while a long one is overtaken only for a time in proportion to its own length and cannot starve.
//! Urgent inputs (failover) are due at once.

use std::collections::BTreeMap;

use super::Nanos;

/// How much waiting an input's own length justifies. With 4, an input that takes 10 ms may be overtaken by
/// shorter ones that arrive up to 40 ms after it.
const PATIENCE: u64 = 4;
/// Weight of a new measurement in the running estimate of the service time per token, 1/N.
const SMOOTHING: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Tokens that one batch may hold; a single longer input still runs, alone.
    pub max_tokens: usize,
    pub max_items: usize,
    /// How long an input may be held back in the hope of company. Zero: never.
    pub max_wait: Nanos,
}

/// One waiting input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queued {
    /// The caller's handle.
    pub key: u64,
    /// Tokens that it adds to a batch.
    pub tokens: usize,
    pub arrived: Nanos,
    /// Goes before all that are not.
    pub urgent: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub items: Vec<Queued>,
    pub tokens: usize,
}

#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    /// By (not urgent, due, sequence): the order in which batches are cut.
    queue: BTreeMap<(bool, Nanos, u64), Queued>,
    sequence: u64,
    tokens: usize,
    nanos_per_token: u64,
}

impl Batcher {
    pub fn new(limits: BatchLimits) -> Self {
        Batcher { limits, queue: BTreeMap::new(), sequence: 0, tokens: 0, nanos_per_token: 0 }
    }

    pub fn push(&mut self, item: Queued) {
        let allowance = (item.tokens as u64).saturating_mul(self.nanos_per_token).saturating_mul(PATIENCE);
        let due = item.arrived.saturating_add(allowance);
        self.queue.insert((!item.urgent, due, self.sequence), item);
        self.sequence += 1;
        self.tokens += item.tokens;
    }

    /// Learns what a batch cost, for the order of inputs to come.
    pub fn observe(&mut self, tokens: usize, nanos: Nanos) {
        let measured = nanos / tokens.max(1) as u64;
        self.nanos_per_token = match self.nanos_per_token {
            0 => measured,
            old => (old * (SMOOTHING - 1) + measured) / SMOOTHING,
        };
    }

    /// Expected service time of what waits.
    pub fn backlog(&self) -> Nanos {
        (self.tokens as u64).saturating_mul(self.nanos_per_token)
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// When the next batch may be cut: at once, unless `max_wait` hopes for more. `None`: nothing waits.
    pub fn ready_at(&self) -> Option<Nanos> {
        let oldest = self.oldest()?;
        let full = self.tokens >= self.limits.max_tokens || self.queue.len() >= self.limits.max_items;
        let urgent = self.queue.values().next().is_some_and(|item| item.urgent);
        Some(if full || urgent { oldest } else { oldest.saturating_add(self.limits.max_wait) })
    }

    /// Arrival of the input that has waited longest; urgent ones count as older than all.
    pub fn oldest(&self) -> Option<Nanos> {
        self.queue.values().map(|item| if item.urgent { 0 } else { item.arrived }).min()
    }

    /// Cuts the next batch, if one may be cut now.
    ///
    /// What is due first leads. Others join in due order as long as they fit the token budget; one that does not
    /// fit is passed over, and leads the next batch at the latest when it is the first due.
    pub fn plan(&mut self, now: Nanos) -> Option<Batch> {
        if self.ready_at()? > now {
            return None;
        }
        let mut tokens = 0;
        let mut chosen = Vec::new();
        for (at, item) in &self.queue {
            if chosen.len() >= self.limits.max_items.max(1) || tokens >= self.limits.max_tokens {
                break;
            }
            if chosen.is_empty() || tokens + item.tokens <= self.limits.max_tokens {
                tokens += item.tokens;
                chosen.push(*at);
            }
        }
        let items: Vec<Queued> = chosen.iter().filter_map(|at| self.queue.remove(at)).collect();
        self.tokens -= tokens;
        Some(Batch { items, tokens })
    }

    /// Takes out whatever `gone` says has no client any more.
    pub fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) {
        self.queue.retain(|_, item| keep(item.key));
        self.tokens = self.queue.values().map(|item| item.tokens).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batcher(max_tokens: usize) -> Batcher {
        Batcher::new(BatchLimits { max_tokens, max_items: 64, max_wait: 0 })
    }

    fn item(key: u64, tokens: usize, arrived: Nanos) -> Queued {
        Queued { key, tokens, arrived, urgent: false }
    }

    fn keys(batch: Option<Batch>) -> Vec<u64> {
        batch.map(|b| b.items.iter().map(|i| i.key).collect()).unwrap_or_default()
    }

    #[test]
    fn what_waits_goes_together_without_added_wait() {
        let mut b = batcher(100);
        b.push(item(1, 40, 0));
        assert_eq!(b.ready_at(), Some(0));
        b.push(item(2, 40, 1));
        b.push(item(3, 40, 2));
        assert_eq!(keys(b.plan(2)), [1, 2]);
        assert_eq!(keys(b.plan(2)), [3]);
        assert_eq!(b.plan(2), None);
    }

    #[test]
    fn a_short_input_goes_before_long_ones_that_came_a_little_earlier() {
        let mut b = batcher(256);
        b.observe(100, 100 * 50_000); // 50 µs a token
        for key in 0..8 {
            b.push(item(key, 256, key));
        }
        b.push(item(99, 8, 1_000_000)); // one millisecond later
        assert_eq!(keys(b.plan(1_000_000)), [99]);
    }

    #[test]
    fn a_long_input_is_overtaken_only_for_a_time_in_proportion_to_its_length() {
        let mut b = batcher(256);
        b.observe(1, 1_000); // 1 µs a token
        b.push(item(1, 256, 0)); // due after 4 × 256 µs
        b.push(item(2, 200, 1_100_000)); // arrives after that
        assert_eq!(keys(b.plan(1_100_000)), [1]);
    }

    #[test]
    fn an_input_longer_than_the_budget_runs_alone() {
        let mut b = batcher(10);
        b.push(item(1, 50, 0));
        b.push(item(2, 1, 0));
        assert_eq!(keys(b.plan(0)), [1]);
        assert_eq!(keys(b.plan(0)), [2]);
    }

    #[test]
    fn urgent_inputs_lead_and_are_never_held_back() {
        let mut b = Batcher::new(BatchLimits { max_tokens: 10, max_items: 8, max_wait: 1_000 });
        b.push(item(1, 10, 0));
        b.push(Queued { key: 2, tokens: 10, arrived: 5, urgent: true });
        assert_eq!(keys(b.plan(5)), [2]);
    }

    #[test]
    fn max_wait_holds_a_part_filled_batch_but_not_a_full_one() {
        let mut b = Batcher::new(BatchLimits { max_tokens: 10, max_items: 8, max_wait: 1_000 });
        b.push(item(1, 4, 100));
        assert_eq!((b.ready_at(), b.plan(1_099)), (Some(1_100), None));
        b.push(item(2, 6, 200));
        assert_eq!(keys(b.plan(200)), [1, 2]);
    }

    proptest! {
        /// Against a model that is a plain list: nothing is lost, doubled or run over budget, and the one that
        /// is due first always leads.
        #[test]
        fn every_input_runs_exactly_once_and_within_the_budget(
            arrivals in prop::collection::vec((1usize..300, 0u64..50, any::<bool>()), 1..80),
            max_tokens in 1usize..400, max_items in 1usize..20, per_token in 0u64..100,
        ) {
            let mut b = Batcher::new(BatchLimits { max_tokens, max_items, max_wait: 0 });
            b.observe(1, per_token);
            let mut waiting: Vec<(u64, Queued)> = Vec::new();
            let mut now = 0;
            for (key, (tokens, gap, run)) in arrivals.iter().copied().enumerate() {
                now += gap;
                let item = item(key as u64, tokens, now);
                waiting.push((now + tokens as u64 * per_token * PATIENCE, item));
                b.push(item);
                if run {
                    check(&mut b, &mut waiting, now, max_tokens, max_items)?;
                }
            }
            while !b.is_empty() {
                check(&mut b, &mut waiting, now, max_tokens, max_items)?;
            }
            prop_assert!(waiting.is_empty());
        }
    }

    fn check(
        b: &mut Batcher,
        waiting: &mut Vec<(u64, Queued)>,
        now: Nanos,
        max_tokens: usize,
        max_items: usize,
    ) -> Result<(), TestCaseError> {
        let batch = b.plan(now).ok_or_else(|| TestCaseError::fail("work waits but no batch was cut"))?;
        let first = waiting.iter().map(|(due, item)| (*due, item.key)).min().unwrap();
        prop_assert_eq!(batch.items[0].key, first.1);
        prop_assert!(batch.items.len() <= max_items);
        prop_assert!(batch.tokens <= max_tokens || batch.items.len() == 1);
        for item in &batch.items {
            let at = waiting.iter().position(|(_, w)| w == item);
            prop_assert!(at.is_some(), "an input ran twice");
            waiting.remove(at.unwrap());
        }
        prop_assert_eq!(b.len(), waiting.len());
        Ok(())
    }
}
