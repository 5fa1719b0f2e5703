//! Drawing from those tokens of a row that are told, where that is the same as drawing from all of it.
//!
//! The likeliest come first in every cut and in every draw: a row's tail counts by its weight alone, until a draw falls into it.

use super::candidates::Row;
use super::{Choice, Sampler, Unusable, random};
use crate::ops::Likely;

impl Sampler {
    /// The temperature of the draw, where that and cuts are all that is asked of a row: then [`Sampler::draw_from`] does what
    /// `sample` would.
    pub fn draws_at(&self) -> Option<f32> {
        let is_plain = self.is_unchanged() && self.options.logprobs.is_none() && !self.options.is_greedy();
        is_plain.then_some(self.options.temperature)
    }

    /// Chooses the next token from what is told of a row, and counts it; nothing, and nothing is counted, where all of the row is
    /// needed.
    ///
    /// # Errors
    /// As for `sample`.
    pub fn draw_from(&mut self, likely: &Likely) -> Result<Option<Choice>, Unusable> {
        debug_assert_eq!(self.draws_at(), Some(self.options.temperature));
        if !likely.likeliest.sound {
            return Err(Unusable::NotFinite);
        }
        if likely.likeliest.logit == f32::NEG_INFINITY {
            return Err(Unusable::Nothing);
        }
        let Some(tokens) = &likely.tokens else { return Ok(None) };
        let logits: Vec<f32> = tokens.iter().map(|(_, logit)| *logit).collect();
        let (peak, scale) = (likely.likeliest.logit, 1.0 / self.options.temperature);
        let row = Row { logits: &logits, peak, scale, sum: Some(likely.sum) };
        if !self.is_covered(&row, likely) {
            return Ok(None);
        }
        let Some((token, _)) = self.draw(&row).and_then(|place| tokens.get(place as usize)) else { return Ok(None) };
        let token = *token;
        self.accept(token);
        Ok(Some(Choice { token, logprob: None, top: Vec::new() }))
    }

    /// Whether tokens that are not told would neither survive the cuts nor be drawn.
    fn is_covered(&self, row: &Row<'_>, likely: &Likely) -> bool {
        let options = &self.options;
        if let Some(k) = options.top_k(likely.vocabulary()) {
            // And those that are as likely as the last of them are told with it.
            return k < row.logits.len();
        }
        let told: f64 = row.logits.iter().map(|logit| f64::from(row.weight(*logit))).sum();
        if options.top_p < 1.0 {
            return told >= f64::from(options.top_p) * likely.sum;
        }
        if options.min_p > 0.0 {
            return row.least(options.min_p) >= likely.floor;
        }
        told >= random::uniform(options.seed, self.count) * likely.sum
    }
}
