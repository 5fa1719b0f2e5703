//! A transformer encoder block: self-attention and feed-forward, each with a residual and a layer norm.

use candle_core::Result;

use super::attention::SelfAttention;
use super::config::Encoder;
use super::linear::{Linear, Part};
use crate::error;
use crate::model::checkpoint::Checkpoint;
use crate::model::together::Share;
use crate::ops::{Activation, LayerNorm, Tensor, layer_norm};

/// Where the norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum NormOrder {
    /// `norm(x + f(x))`, as in BERT.
    Post,
    /// `x + f(norm(x))`, as in ViT.
    Pre,
}

/// What a checkpoint calls the parts of a block, below the block's own name.
#[derive(Debug)]
pub(in crate::model) struct BlockNames {
    /// What comes before the block's number: `encoder.layer`.
    pub(in crate::model) blocks: &'static str,
    pub(in crate::model) query: &'static str,
    pub(in crate::model) key: &'static str,
    pub(in crate::model) value: &'static str,
    pub(in crate::model) attention_output: &'static str,
    pub(in crate::model) attention_norm: &'static str,
    pub(in crate::model) up: &'static str,
    pub(in crate::model) down: &'static str,
    pub(in crate::model) feed_forward_norm: &'static str,
    pub(in crate::model) order: NormOrder,
}

#[derive(Debug)]
pub(in crate::model) struct Block {
    attention: SelfAttention,
    attention_output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    feed_forward_norm: LayerNorm,
    activation: Activation,
    order: NormOrder,
}

impl Block {
    /// Every block of an encoder, in order.
    pub(in crate::model) fn load_all(
        checkpoint: &mut Checkpoint<'_>,
        names: &BlockNames,
        encoder: &Encoder,
    ) -> error::Result<Vec<Block>> {
        (0..encoder.layers).map(|number| Block::load(checkpoint, (names, number), encoder)).collect()
    }

    fn load(
        checkpoint: &mut Checkpoint<'_>,
        (names, number): (&BlockNames, usize),
        encoder: &Encoder,
    ) -> error::Result<Block> {
        let &Encoder { hidden, intermediate, activation, eps, .. } = encoder;
        let block = format!("{}.{number}", names.blocks);
        let at = |part: &str| format!("{block}.{part}");
        let attention = SelfAttention::load(checkpoint, (names, &block), encoder)?;
        let mut linear = |name, size| Linear::load(checkpoint, (Part::Base, &at(name)), size);
        Ok(Block {
            attention,
            attention_output: linear(names.attention_output, (hidden, hidden))?,
            up: linear(names.up, (hidden, intermediate))?,
            down: linear(names.down, (intermediate, hidden))?,
            attention_norm: checkpoint.norm(&at(names.attention_norm), hidden, eps)?,
            feed_forward_norm: checkpoint.norm(&at(names.feed_forward_norm), hidden, eps)?,
            activation,
            order: names.order,
        })
    }

    /// `x`: `[rows of the share, hidden]`, given up as soon as it is used.
    pub(in crate::model) fn forward(&self, x: Tensor, share: &Share<'_>) -> Result<Tensor> {
        match self.order {
            NormOrder::Post => {
                let context = self.attention.forward(&x, share)?;
                let attended = self.attention_output.forward_added_and_normed(&context, &x, &self.attention_norm)?;
                drop((x, context));
                let up = self.up.forward_activated(&attended, self.activation)?;
                self.down.forward_added_and_normed(&up, &attended, &self.feed_forward_norm)
            }
            NormOrder::Pre => {
                let context = self.attention.forward(&layer_norm(&x, &self.attention_norm)?, share)?;
                let summed = self.attention_output.forward_added(&context, &x)?;
                drop((x, context));
                let up = self.up.forward_activated(&layer_norm(&summed, &self.feed_forward_norm)?, self.activation)?;
                self.down.forward_added(&up, &summed)
            }
        }
    }
}
