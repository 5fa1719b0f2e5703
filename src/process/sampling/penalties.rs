//! What tokens that were there before lose.
//!
//! Source: vLLM, `model_executor/layers/utils.py`, `apply_penalties` (repetition, then frequency, then presence);
//! repetition is that of transformers' `RepetitionPenaltyLogitsProcessor` (Keskar et al., "CTRL", 2019).

use std::collections::HashMap;

use super::SamplingOptions;

/// Which tokens a sequence has. Kept only where an option asks for it.
#[derive(Debug)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    seen: Vec<Seen>,
    /// Places in `seen`.
    places: HashMap<u32, usize>,
}

#[derive(Debug)]
struct Seen {
    token: u32,
    /// How often it stands in the answer; 0 for tokens of the prompt.
    answered: u32,
}

impl Penalties {
    pub(super) fn new(options: &SamplingOptions, prompt: &[u32]) -> Option<Penalties> {
        let mut penalties = Penalties {
            repetition: options.repetition_penalty,
            presence: options.presence_penalty,
            frequency: options.frequency_penalty,
            seen: Vec::new(),
            places: HashMap::new(),
        };
        if !options.penalizes() {
            return None;
        }
        if options.repetition_penalty != 1.0 {
            for token in prompt {
                penalties.place(*token);
            }
        }
        Some(penalties)
    }

    /// One more token of the answer.
    pub(super) fn count(&mut self, token: u32) {
        let place = self.place(token);
        self.seen[place].answered += 1;
    }

    fn place(&mut self, token: u32) -> usize {
        *self.places.entry(token).or_insert_with(|| {
            self.seen.push(Seen { token, answered: 0 });
            self.seen.len() - 1
        })
    }

    /// The tokens that `penalize` changes.
    pub(super) fn tokens(&self) -> impl Iterator<Item = u32> {
        self.seen.iter().map(|seen| seen.token)
    }

    pub(super) fn penalize(&self, logits: &mut [f32]) {
        for seen in &self.seen {
            let Some(logit) = logits.get_mut(seen.token as usize).filter(|logit| **logit > f32::NEG_INFINITY) else {
                continue;
            };
            let repeated = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            let often = self.frequency * seen.answered as f32;
            let once = if seen.answered > 0 { self.presence } else { 0.0 };
            // An odd penalty must not make an infinity, which would look like a fault of the model.
            *logit = (repeated - often - once).clamp(f32::MIN, f32::MAX);
        }
    }
}
