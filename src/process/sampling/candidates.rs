//! The likeliest tokens of a row, as many as are needed, without sorting it.
//!
//! It knows numbers and ids. It must not know options or randomness.

use std::cmp::Ordering;

use crate::ops::logits::{between, exp_sum};

/// How far below the best token is looked for candidates, one step after the other while more weight is needed; in units
/// of the temperature, so that the last step but one leaves out what is less likely than e^-16 of the best.
const REACHES: [f32; 8] = [3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 16.0, f32::INFINITY];
/// A top k is looked for in so many logits at a time.
const STRETCH: usize = 1024;
/// So few candidates are sorted rather than cut in two.
const FEW: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
    /// `e^((logit − peak) / temperature)`: 1 for the best.
    pub(super) weight: f32,
}

/// One row of logits: where its best is, and the inverse of the temperature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) logits: &'a [f32],
    pub(super) peak: f32,
    pub(super) scale: f32,
    /// What all weigh together, where that is known: the row may then be without tokens that count for nothing else.
    pub(super) sum: Option<f64>,
}

impl Row<'_> {
    pub(super) fn weight(&self, logit: f32) -> f32 {
        ((logit - self.peak) * self.scale).exp()
    }

    /// What all weigh together.
    pub(super) fn sum(&self) -> f64 {
        self.sum.unwrap_or_else(|| f64::from(exp_sum(self.logits, self.peak, self.scale)))
    }

    /// A logit below which no token has this weight.
    pub(super) fn least(&self, weight: f32) -> f32 {
        // a little further, for what rounding does to weights
        self.peak + (weight.ln() - 1e-3) / self.scale
    }
}

/// Candidates in no order; all tokens down to some logit. Kept from row to row for its memory.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    ids: Vec<u32>,
    /// The list has all tokens from here on.
    floor: f32,
    steps: usize,
    weight: f64,
}

impl Candidates {
    pub(super) fn clear(&mut self) {
        self.list.clear();
        (self.floor, self.steps, self.weight) = (f32::INFINITY, 0, 0.0);
    }

    /// All that weigh together; those that were dropped no longer count.
    pub(super) fn weight(&self) -> f64 {
        self.weight
    }

    #[cfg(test)]
    pub(super) fn list(&self) -> &[Candidate] {
        &self.list
    }

    /// Takes in the `k` best, and those that are as good as the last of them (transformers' `TopKLogitsWarper`).
    ///
    /// One pass, in which the best so far say what is still looked at.
    pub(super) fn take_best(&mut self, row: &Row, k: usize) {
        // tokens at negative infinity cannot be chosen
        let mut floor = f32::MIN;
        let mut limit = STRETCH.max(4 * k);
        for (at, stretch) in row.logits.chunks(STRETCH).enumerate() {
            self.ids.clear();
            between(stretch, floor, f32::INFINITY, &mut self.ids);
            for place in &self.ids {
                let id = *place + (at * STRETCH) as u32;
                let logit = row.logits[id as usize];
                self.list.push(Candidate { id, logit, weight: row.weight(logit) });
            }
            if self.list.len() >= limit {
                floor = self.keep_best(k).unwrap_or(floor);
                // equals may be many more than k
                limit = limit.max(2 * self.list.len());
            }
        }
        self.keep_best(k);
        self.keep_first(self.list.len());
    }

    /// Takes tokens in until they weigh so much, or there are no more.
    pub(super) fn reach_weight(&mut self, row: &Row, weight: f64) {
        while self.weight < weight && self.step(row) {}
    }

    /// Takes in all tokens of at least this weight, and perhaps more.
    pub(super) fn reach_lightest(&mut self, row: &Row, lightest: f32) {
        self.gather(row, row.least(lightest));
    }

    /// Nothing more is taken in.
    pub(super) fn complete(&mut self) {
        self.steps = REACHES.len();
    }

    fn step(&mut self, row: &Row) -> bool {
        let Some(reach) = REACHES.get(self.steps) else { return false };
        self.steps += 1;
        self.gather(row, row.peak - reach / row.scale);
        true
    }

    fn gather(&mut self, row: &Row, floor: f32) {
        // tokens at negative infinity cannot be chosen
        let floor = floor.max(f32::MIN);
        self.ids.clear();
        between(row.logits, floor, self.floor, &mut self.ids);
        self.floor = self.floor.min(floor);
        for &id in &self.ids {
            let logit = row.logits[id as usize];
            let weight = row.weight(logit);
            self.weight += f64::from(weight);
            self.list.push(Candidate { id, logit, weight });
        }
    }

    /// Leaves the `k` best and their equals, where there are more; the logit of the last.
    fn keep_best(&mut self, k: usize) -> Option<f32> {
        if self.list.len() <= k {
            return None;
        }
        let (_, last, rest) = self.list.select_nth_unstable_by(k - 1, better);
        let (last, rest) = (last.logit, rest.len());
        let mut kept = k;
        for at in k..k + rest {
            if self.list[at].logit == last {
                self.list.swap(kept, at);
                kept += 1;
            }
        }
        self.list.truncate(kept);
        Some(last)
    }

    /// Keeps the best that weigh at least `weight` together, and no more than are needed.
    pub(super) fn keep_heaviest(&mut self, weight: f64) {
        let kept = heaviest(&mut self.list, weight);
        self.keep_first(kept);
    }

    /// Keeps what weighs at least this much; the best does.
    pub(super) fn keep_from(&mut self, lightest: f32) {
        self.list.retain(|candidate| candidate.weight >= lightest);
        self.keep_first(self.list.len());
    }

    /// The candidate at which the weights, from the best on, first reach `weight`.
    pub(super) fn at(&mut self, weight: f64) -> Option<Candidate> {
        let count = heaviest(&mut self.list, weight);
        self.list[..count].last().copied()
    }

    fn keep_first(&mut self, count: usize) {
        self.list.truncate(count);
        self.weight = weight(&self.list);
    }
}

/// The best first: the larger logit, of equals the lower id.
fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

fn weight(list: &[Candidate]) -> f64 {
    list.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// Orders the list so that the best come first, as far as they are needed to reach `target`, and says how many those are:
/// at least one where there is any, all where even all do not reach it. The last of them is in its place.
///
/// A quickselect by weight: the part in which the target lies is cut in two until it is small.
fn heaviest(list: &mut [Candidate], target: f64) -> usize {
    let (mut from, mut to, mut before) = (0, list.len(), 0.0);
    while to - from > FEW {
        let middle = (to - from) / 2;
        list[from..to].select_nth_unstable_by(middle, better);
        let half = weight(&list[from..from + middle]);
        if before + half >= target {
            to = from + middle;
        } else {
            before += half;
            from += middle;
        }
    }
    list[from..to].sort_unstable_by(better);
    for (at, candidate) in list[from..to].iter().enumerate() {
        before += f64::from(candidate.weight);
        if before >= target {
            return from + at + 1;
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(weights: &[f32]) -> Vec<Candidate> {
        let candidate = |(id, weight): (usize, &f32)| Candidate { id: id as u32, logit: weight.ln(), weight: *weight };
        weights.iter().enumerate().map(candidate).collect()
    }

    proptest! {
        #[test]
        fn the_heaviest_are_what_sorting_finds(
            // whole numbers, so that sums are exact in any order, and ties are many
            weights in proptest::collection::vec((0u8..20).prop_map(f32::from), 1..200),
            target in 0u32..3000,
        ) {
            let mut candidates = list(&weights);
            let count = heaviest(&mut candidates, f64::from(target));
            let mut sorted = list(&weights);
            sorted.sort_by(better);
            let mut sum = 0.0;
            let reaches = |candidate: &Candidate| { sum += f64::from(candidate.weight); sum >= f64::from(target) };
            let want = sorted.iter().position(reaches).map_or(weights.len(), |at| at + 1);
            prop_assert_eq!(count, want);
            prop_assert_eq!(candidates[count - 1], sorted[count - 1]);
            let mut first: Vec<u32> = candidates[..count].iter().map(|c| c.id).collect();
            let mut wanted: Vec<u32> = sorted[..count].iter().map(|c| c.id).collect();
            first.sort_unstable();
            wanted.sort_unstable();
            prop_assert_eq!(first, wanted);
        }
    }
}
