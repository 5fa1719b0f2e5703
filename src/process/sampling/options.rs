//! How a request wants its tokens chosen, and what is possible.
//!
//! Names and ranges are those of OpenAI's API (temperature, top_p, penalties, logit_bias, logprobs) and of vLLM's
//! `SamplingParams` (the rest). It must not know logits.

use std::fmt::Display;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Below this a temperature is none, as in vLLM (`_SAMPLING_EPS`): the division by it would lose all differences.
pub(super) const GREEDY_BELOW: f32 = 1e-5;
/// Alternatives that may be told beside a token.
pub const MOST_LOGPROBS: usize = 20;

#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// 0 to 2. 0 takes the likeliest token, of equals the one with the lowest id.
    pub temperature: f32,
    /// Only so many of the likeliest tokens, and those that are as likely as the last of them; 0 or -1: all.
    pub top_k: i64,
    /// Above 0, up to 1. Only the likeliest tokens that have this probability together.
    pub top_p: f32,
    /// 0 to 1. Only tokens that are at least this many times as likely as the likeliest.
    pub min_p: f32,
    /// Above 0. Divides the logits (multiplies those below zero) of tokens in the prompt or the answer; 1: nothing.
    pub repetition_penalty: f32,
    /// -2 to 2. Taken from the logits of tokens in the answer, once.
    pub presence_penalty: f32,
    /// -2 to 2. The same for every time that a token stands in the answer.
    pub frequency_penalty: f32,
    /// The same seed, prompt and options give the same answer from the same version.
    pub seed: u64,
    /// Added to the logits of these tokens, -100 to 100 each.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Tell the log-probability of a token, and of so many of the likeliest.
    pub logprobs: Option<usize>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        SamplingOptions {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: Arc::default(),
            logprobs: None,
        }
    }
}

impl SamplingOptions {
    /// # Errors
    /// `BadRequest` with the field, its value and what is possible; `vocabulary` is how many tokens there are.
    pub fn validate(&self, vocabulary: usize) -> Result<()> {
        between("temperature", self.temperature, 0.0, 2.0)?;
        if self.top_k < -1 {
            return Err(wrong("top_k", self.top_k, "at least 1, or 0 or -1 for all tokens"));
        }
        between("top_p", self.top_p, 0.0, 1.0)?;
        between("min_p", self.min_p, 0.0, 1.0)?;
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return Err(wrong("repetition_penalty", self.repetition_penalty, "above 0"));
        }
        between("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        for (id, bias) in &*self.logit_bias {
            if *id as usize >= vocabulary {
                let message =
                    format!("logit_bias names the token {id}; tokens are 0 to {}", vocabulary.saturating_sub(1));
                return Err(Error::bad_param("logit_bias", message));
            }
            if !(-100.0..=100.0).contains(bias) {
                let message = format!("logit_bias of the token {id} is {bias}; it must be from -100 to 100");
                return Err(Error::bad_param("logit_bias", message));
            }
        }
        match self.logprobs {
            Some(n) if n > MOST_LOGPROBS => Err(wrong("logprobs", n, &format!("from 0 to {MOST_LOGPROBS}"))),
            _ => Ok(()),
        }
    }

    pub(super) fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }

    /// How many of the likeliest, where not all of `vocabulary`.
    pub(super) fn top_k(&self, vocabulary: usize) -> Option<usize> {
        usize::try_from(self.top_k).ok().filter(|k| (1..vocabulary).contains(k))
    }

    pub(super) fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

fn between(field: &str, value: f32, least: f32, most: f32) -> Result<()> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(wrong(field, value, &format!("from {least} to {most}"))) }
}

fn wrong(field: &str, value: impl Display, possible: &str) -> Error {
    Error::bad_param(field, format!("{field} is {value}; it must be {possible}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_told_with_field_value_and_range() {
        let plain = SamplingOptions::default;
        let told = |options: SamplingOptions| match options.validate(100).unwrap_err() {
            Error::BadRequest { message, param } => (param.unwrap(), message),
            other => panic!("{other:?}"),
        };
        for (options, field, message) in [
            (
                SamplingOptions { temperature: 2.1, ..plain() },
                "temperature",
                "temperature is 2.1; it must be from 0 to 2",
            ),
            (
                SamplingOptions { temperature: -0.1, ..plain() },
                "temperature",
                "temperature is -0.1; it must be from 0 to 2",
            ),
            (
                SamplingOptions { temperature: f32::NAN, ..plain() },
                "temperature",
                "temperature is NaN; it must be from 0 to 2",
            ),
            (
                SamplingOptions { top_k: -2, ..plain() },
                "top_k",
                "top_k is -2; it must be at least 1, or 0 or -1 for all tokens",
            ),
            (SamplingOptions { top_p: -0.1, ..plain() }, "top_p", "top_p is -0.1; it must be from 0 to 1"),
            (SamplingOptions { top_p: f32::NAN, ..plain() }, "top_p", "top_p is NaN; it must be from 0 to 1"),
            (SamplingOptions { min_p: 1.5, ..plain() }, "min_p", "min_p is 1.5; it must be from 0 to 1"),
            (
                SamplingOptions { repetition_penalty: 0.0, ..plain() },
                "repetition_penalty",
                "repetition_penalty is 0; it must be above 0",
            ),
            (
                SamplingOptions { repetition_penalty: f32::INFINITY, ..plain() },
                "repetition_penalty",
                "repetition_penalty is inf; it must be above 0",
            ),
            (
                SamplingOptions { presence_penalty: 3.0, ..plain() },
                "presence_penalty",
                "presence_penalty is 3; it must be from -2 to 2",
            ),
            (
                SamplingOptions { frequency_penalty: -2.5, ..plain() },
                "frequency_penalty",
                "frequency_penalty is -2.5; it must be from -2 to 2",
            ),
            (
                SamplingOptions { logit_bias: [(99, 1.0), (100, 1.0)].into(), ..plain() },
                "logit_bias",
                "logit_bias names the token 100; tokens are 0 to 99",
            ),
            (
                SamplingOptions { logit_bias: [(5, -101.0)].into(), ..plain() },
                "logit_bias",
                "logit_bias of the token 5 is -101; it must be from -100 to 100",
            ),
            (SamplingOptions { logprobs: Some(21), ..plain() }, "logprobs", "logprobs is 21; it must be from 0 to 20"),
        ] {
            assert_eq!(told(options), (field.to_owned(), message.to_owned()));
        }
    }

    #[test]
    fn the_ends_of_every_range_are_possible() {
        let least = SamplingOptions {
            temperature: 0.0,
            top_k: -1,
            top_p: 1e-6,
            min_p: 0.0,
            repetition_penalty: 0.01,
            presence_penalty: -2.0,
            frequency_penalty: -2.0,
            seed: 0,
            logit_bias: [(0, -100.0)].into(),
            logprobs: Some(0),
        };
        least.validate(1).unwrap();
        let most = SamplingOptions {
            temperature: 2.0,
            top_k: i64::MAX,
            top_p: 1.0,
            min_p: 1.0,
            repetition_penalty: 100.0,
            presence_penalty: 2.0,
            frequency_penalty: 2.0,
            seed: u64::MAX,
            logit_bias: [(0, 100.0)].into(),
            logprobs: Some(20),
        };
        most.validate(1).unwrap();
        SamplingOptions::default().validate(1).unwrap();
    }
}
