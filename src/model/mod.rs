//! Architectures: from a version's description and weights to a forward pass.
//!
//! One row of [`FAMILIES`] and one file for each architecture, on layers that they share. Batches are packed:
//! rows of all sequences one after another, no padding, so a row's answer does not depend on its neighbours.
//! This room knows `Spec`, weights and ops; nothing of HTTP, generations, queues or who asks.

mod bert;
mod checkpoint;
mod decoder;
mod frames;
mod input;
mod layers;
mod llama;
mod packed;
mod pass;
mod recorded_steps;
mod recordings;
mod scoring;
mod together;
mod vit;

use std::ops::Range;

pub use self::decoder::{
    Begun, Decoder, Likeliest, Likely, Logits, ROWS_PER_STEP, SEQUENCES, Scored, StepInput, StepSequence,
    TOKENS_PER_STEP, Wants,
};
pub use self::input::{Input, Pixels, Tokens};
pub use self::packed::Packed;
pub use self::pass::{OneShot, Pending, TOKENS_PER_PASS};
pub use self::recordings::Warmth;
pub use self::scoring::Scoring;
use crate::error::{Error, Result};
use crate::ops::{Device, Keeping};
pub use crate::ops::{KvCache, KvSpec};
use crate::repository::Spec;
use crate::weights::{Footprint, Index, Progress, Weights};

/// An architecture: what it needs, and how it is built.
pub struct Family {
    pub name: &'static str,
    /// The `model_type`s of `config.json` that it builds.
    pub model_types: &'static [&'static str],
    /// From headers alone: every tensor that is wanted, with its shape, and the memory that a forward pass takes.
    /// Fails, naming file and reason, for configurations and checkpoints that this architecture cannot be built from.
    pub footprint: fn(&Spec, &Index, Keeping) -> Result<Footprint>,
    /// Builds the model from the tensors of its footprint.
    pub load: fn(&Spec, Weights, &Device) -> Result<Model>,
    /// Tensors that checkpoints hold and that are not needed: buffers, heads of pre-training.
    pub ignored: fn(&str) -> bool,
    /// What an image costs in a batch, in tokens; for families that take images.
    pub tokens_per_image: Option<fn(&Spec) -> Result<usize>>,
    /// Tokens of the longest text, prompt and continuation together, that its positions and its cache have room for; for families
    /// that write.
    pub longest: Option<fn(&Spec) -> Result<usize>>,
}

/// Every architecture there is.
pub const FAMILIES: &[Family] = &[bert::FAMILY, vit::FAMILY, llama::FAMILY];

/// The family that builds `spec`.
pub fn family(spec: &Spec) -> Result<&'static Family> {
    let builds = |family: &&Family| family.name == spec.family || family.model_types.contains(&spec.family.as_str());
    FAMILIES.iter().find(builds).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        spec.config_error("model_type", format!("'{}' is not supported; known are {}", spec.family, known.join(", ")))
    })
}

/// A model that is ready for forward passes, by what it takes.
pub enum Model {
    Text(Box<dyn OneShot<Tokens>>),
    Image(Box<dyn OneShot<Pixels>>),
    /// Text, token by token, with the cache that what it writes is kept in.
    Decoder(Box<dyn Decoder>, Box<KvCache>),
}

impl Model {
    /// One row for each input of `part`, in order: a pooled embedding, or raw logits; of a model that writes, how likely the
    /// tokens of the input are.
    ///
    /// Errors: [`Error::BadRequest`] for an input that the model cannot take (of another kind, too long, an id
    /// outside the vocabulary). The processor refuses those first; here they would reach past a table.
    pub fn forward(&mut self, batch: &Packed, part: Range<usize>) -> Result<Pending> {
        match (self, batch) {
            (Model::Text(model), Packed::Tokens(all)) => model.forward(cut(all, part)?),
            (Model::Image(model), Packed::Pixels(all)) => model.forward(cut(all, part)?),
            (Model::Text(_), Packed::Pixels(_)) => Err(Error::bad_request("the model takes text, not images")),
            (Model::Image(_), Packed::Tokens(_)) => Err(Error::bad_request("the model takes images, not text")),
            (Model::Decoder(model, _), Packed::Tokens(all)) => scoring::score(model.as_mut(), cut(all, part)?),
            (Model::Decoder(..), Packed::Pixels(_)) => Err(Error::bad_request("the model takes text, not images")),
        }
    }

    /// What a batch is computed by that may take long, turn by turn ([`Model::go_on`]); `None` of models that answer each input in
    /// one pass.
    ///
    /// Errors: as [`Model::forward`]'s.
    pub fn scoring(&self, batch: &Packed) -> Result<Option<Scoring>> {
        match (self, batch) {
            (Model::Decoder(model, _), Packed::Tokens(all)) => Scoring::new(model.as_ref(), all).map(Some),
            _ => Ok(None),
        }
    }

    /// A turn of that, of so many tokens at most. Whether it was the last.
    ///
    /// Errors: as [`Model::forward`]'s.
    pub fn go_on(&mut self, scoring: &mut Scoring, tokens: usize) -> Result<bool> {
        match self {
            Model::Decoder(model, _) => scoring.go_on(model.as_mut(), tokens),
            Model::Text(_) | Model::Image(_) => Err(Error::internal("texts are scored by models that write")),
        }
    }

    /// Makes ready what first passes would wait for: before the first of them, by whoever loads it ([`OneShot::warm`]).
    pub fn warm(&mut self, records: bool, progress: &Progress) -> Warmth {
        match self {
            Model::Text(model) => model.warm(records, progress),
            Model::Image(model) => model.warm(records, progress),
            Model::Decoder(model, cache) => model.warm(cache, (records, progress)),
        }
    }
}

impl Model {
    /// One row for each of `inputs`: [`Model::forward`] where nothing will be run again.
    pub fn forward_all(&mut self, inputs: Vec<Input>) -> Result<Pending> {
        let packed = Packed::new(inputs)?;
        self.forward(&packed, packed.all())
    }
}

fn cut<T>(all: &[T], part: Range<usize>) -> Result<&[T]> {
    all.get(part).ok_or_else(|| Error::internal("a part outside its batch"))
}

#[cfg(test)]
mod tests;
