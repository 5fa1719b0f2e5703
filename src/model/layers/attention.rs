//! Self-attention up to its output layer: how queries, keys and values are made of rows.

use candle_core::Result;

use super::block::BlockNames;
use super::config::Encoder;
use super::linear::{Linear, Part};
use crate::error;
use crate::model::checkpoint::Checkpoint;
use crate::model::together::Share;
use crate::ops::{Keeping, Tensor};

#[derive(Debug)]
pub(super) struct SelfAttention {
    projections: Projections,
    heads: usize,
}

/// What makes queries, keys and values.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a block has one")]
enum Projections {
    /// On a CPU, where threads hand each other keys and values and keep their queries.
    Apart { query: Linear, key: Linear, value: Linear },
    /// On a GPU: thirds of one product, which is one launch in place of three.
    Together(Linear),
}

impl SelfAttention {
    /// `block`: what the names of a block's parts begin with.
    pub(super) fn load(
        checkpoint: &mut Checkpoint<'_>,
        (names, block): (&BlockNames, &str),
        &Encoder { hidden, heads, qkv_bias, .. }: &Encoder,
    ) -> error::Result<Self> {
        let names = [names.query, names.key, names.value].map(|name| format!("{block}.{name}"));
        let size = (hidden, hidden);
        let projections = match checkpoint.keeping() {
            Keeping::Cpu => {
                let load = if qkv_bias { Linear::load } else { Linear::load_without_bias };
                let [query, key, value] = names.each_ref().map(|name| load(checkpoint, (Part::Base, name), size));
                Projections::Apart { query: query?, key: key?, value: value? }
            }
            Keeping::Cuda(_) => {
                let layers = names.each_ref().map(|name| (name.as_str(), hidden));
                Projections::Together(Linear::load_side_by_side(checkpoint, (&layers, qkv_bias), hidden)?)
            }
        };
        Ok(SelfAttention { projections, heads })
    }

    /// What each row of the share makes of its sequence: `[rows, hidden]`.
    pub(super) fn forward(&self, x: &Tensor, share: &Share<'_>) -> Result<Tensor> {
        match &self.projections {
            Projections::Apart { query, key, value } => {
                let [q, k, v] = [query.forward(x)?, key.forward(x)?, value.forward(x)?];
                share.attention(&q, k, v, self.heads)
            }
            Projections::Together(qkv) => share.self_attention(&qkv.forward(x)?, self.heads),
        }
    }
}
