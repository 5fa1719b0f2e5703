//! Choosing the next token from a row of logits.
//!
//! The order: log-probabilities are told of the row as it came; then the bias is added, penalties are taken off
//! (repetition over prompt and answer, presence and frequency over the answer: vLLM, `v1/sample/sampler.py`), the rest is
//! divided by the temperature, cut to the top k, then to the top p of what is left, then to the min p (transformers,
//! `_get_logits_processor`), and one draw is made.
//!
//! Constrained output has its door here: a row is the caller's to change, and a token whose logit was set to negative
//! infinity is never chosen.
//!
//! Pure: no clock, device, tensor or generator with a state. The i-th token depends on the row, the options, the tokens
//! before it and `(seed, i)` alone, so that a sequence goes on elsewhere as it would have here.

mod candidates;
mod likely;
mod logprobs;
mod options;
mod penalties;
mod random;
#[cfg(test)]
mod tests;

use self::candidates::{Candidates, Row};
use self::logprobs::Told;
use self::penalties::Penalties;
use crate::ops::Likeliest;
use crate::ops::logits::{first, peak};

pub use options::{MOST_LOGPROBS, SamplingOptions};

/// A row that no token can be chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The model's fault.
    #[error("a logit is NaN or infinite")]
    NotFinite,
    /// All logits are negative infinity: the model's fault, or that of a constraint that allows nothing.
    #[error("no token has a probability above zero")]
    Nothing,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub token: u32,
    /// Its natural log-probability in the row as it came; `None` where `SamplingOptions::logprobs` is.
    pub logprob: Option<f32>,
    /// As many of the likeliest tokens of the row as it came as were asked for, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
///
/// Its memory grows to what its rows need and is kept: a token costs no allocation of its own but for what `Choice` tells,
/// and for penalties now and then, whose table grows with the answer.
#[derive(Debug)]
pub struct Sampler {
    options: SamplingOptions,
    penalties: Option<Penalties>,
    /// Tokens of the answer so far.
    count: u64,
    candidates: Candidates,
}

impl Sampler {
    /// `options` were validated; `prompt` is what repetition is counted from.
    pub fn new(options: SamplingOptions, prompt: &[u32]) -> Sampler {
        let penalties = Penalties::new(&options, prompt);
        Sampler { options, penalties, count: 0, candidates: Candidates::default() }
    }

    /// Counts a token of the answer that was chosen elsewhere.
    pub fn accept(&mut self, token: u32) {
        self.count += 1;
        if let Some(penalties) = &mut self.penalties {
            penalties.count(token);
        }
    }

    /// Chooses the next token from a row of as many logits as there are tokens, and counts it. The row is left as
    /// bias and penalties made it.
    ///
    /// # Errors
    /// A row that cannot be chosen from; nothing is counted then.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<Choice, Unusable> {
        let mut best = usable(logits)?;
        let told = self.options.logprobs.map(|top| Told::of(logits, best, top, self.changed()));
        if !self.is_unchanged() {
            self.change(logits);
            best = usable(logits)?;
        }
        let token = match self.options.is_greedy() {
            true => first(logits, best),
            false => self.draw(&Row { logits, peak: best, scale: 1.0 / self.options.temperature, sum: None }),
        };
        let token = token.ok_or(Unusable::Nothing)?;
        let (logprob, top) = match told {
            Some(told) => (Some(told.logprob(token, logits)), told.into_top()),
            None => (None, Vec::new()),
        };
        self.accept(token);
        Ok(Choice { token, logprob, top })
    }

    /// Whether the likeliest token of a row is all that is asked of it: then [`Sampler::take`] does what `sample` would.
    pub fn takes_likeliest(&self) -> bool {
        self.is_unchanged() && self.options.logprobs.is_none() && self.options.is_greedy()
    }

    /// Whether rows are chosen from as they come.
    fn is_unchanged(&self) -> bool {
        self.penalties.is_none() && self.options.logit_bias.is_empty()
    }

    /// Takes the likeliest token of a row, and counts it.
    ///
    /// # Errors
    /// As for `sample`.
    pub fn take(&mut self, likeliest: &Likeliest) -> Result<Choice, Unusable> {
        debug_assert!(self.takes_likeliest());
        match *likeliest {
            Likeliest { sound: false, .. } => Err(Unusable::NotFinite),
            Likeliest { logit: f32::NEG_INFINITY, .. } => Err(Unusable::Nothing),
            Likeliest { token, .. } => {
                self.accept(token);
                Ok(Choice { token, logprob: None, top: Vec::new() })
            }
        }
    }

    /// Tokens whose logits bias and penalties change.
    fn changed(&self) -> impl Iterator<Item = u32> {
        let biased = self.options.logit_bias.iter().map(|(token, _)| *token);
        biased.chain(self.penalties.iter().flat_map(Penalties::tokens))
    }

    fn change(&self, logits: &mut [f32]) {
        for (token, bias) in &*self.options.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if let Some(penalties) = &self.penalties {
            penalties.penalize(logits);
        }
    }

    fn draw(&mut self, row: &Row) -> Option<u32> {
        let weight = self.cut(row);
        let target = random::uniform(self.options.seed, self.count) * weight;
        self.candidates.reach_weight(row, target);
        self.candidates.at(target).map(|candidate| candidate.id)
    }

    /// Leaves the tokens that may be drawn, and says what they weigh. Where nothing cuts them, they are all tokens of
    /// the row, taken in as far as the draw needs them.
    fn cut(&mut self, row: &Row) -> f64 {
        let (candidates, options) = (&mut self.candidates, &self.options);
        candidates.clear();
        let mut weight = None;
        if let Some(k) = options.top_k(row.logits.len()) {
            candidates.take_best(row, k);
            weight = Some(candidates.weight());
        }
        if options.top_p < 1.0 {
            let all = weight.unwrap_or_else(|| row.sum());
            // Of 0 it leaves the likeliest token.
            let heavy = f64::from(options.top_p).max(f64::MIN_POSITIVE) * all;
            if weight.is_none() {
                candidates.reach_weight(row, heavy);
            }
            candidates.keep_heaviest(heavy);
            weight = Some(candidates.weight());
        }
        if options.min_p > 0.0 {
            if weight.is_none() {
                candidates.reach_lightest(row, options.min_p);
            }
            candidates.keep_from(options.min_p);
            weight = Some(candidates.weight());
        }
        match weight {
            Some(weight) => {
                candidates.complete();
                weight
            }
            None => row.sum(),
        }
    }
}

/// The best logit of a row that can be chosen from.
fn usable(logits: &[f32]) -> Result<f32, Unusable> {
    match peak(logits) {
        None => Err(Unusable::NotFinite),
        Some(f32::NEG_INFINITY) => Err(Unusable::Nothing),
        Some(best) => Ok(best),
    }
}
