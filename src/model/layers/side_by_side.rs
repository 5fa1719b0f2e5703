//! Linear layers with the same input, as one product where their weights can be kept as one.

use candle_core::Result;

use super::linear::{Linear, Part};
use crate::error;
use crate::model::checkpoint::Checkpoint;
use crate::ops::Tensor;

/// `N` of them. Few rows wait for weights and for other threads, so that one product is faster than several.
#[derive(Debug)]
pub(in crate::model) struct SideBySide<const N: usize> {
    kept: Kept,
    outputs: [usize; N],
}

#[derive(Debug)]
enum Kept {
    Together(Linear),
    /// In formats of their own, as quantised checkpoints mix them.
    Apart(Vec<Linear>),
}

impl<const N: usize> SideBySide<N> {
    /// `layers`: names and outputs.
    pub(in crate::model) fn load(
        checkpoint: &mut Checkpoint<'_>,
        (layers, bias): ([(&str, usize); N], bool),
        from: usize,
    ) -> error::Result<Self> {
        let weights = layers.map(|(name, _)| format!("{name}.weight"));
        let kept = if checkpoint.stack_together(&weights.each_ref().map(String::as_str)) {
            Kept::Together(Linear::load_side_by_side(checkpoint, (&layers, bias), from)?)
        } else {
            let load = if bias { Linear::load } else { Linear::load_without_bias };
            let apart = layers.iter().map(|(name, to)| load(checkpoint, (Part::Base, name), (from, *to)));
            Kept::Apart(apart.collect::<error::Result<_>>()?)
        };
        Ok(SideBySide { kept, outputs: layers.map(|(_, to)| to) })
    }

    /// What each makes of `x`, in order: `[rows, outputs]`.
    pub(in crate::model) fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        match &self.kept {
            Kept::Together(layer) => {
                let all = layer.forward(x)?;
                let mut next = 0;
                let columns = self.outputs.iter().map(|count| {
                    next += count;
                    all.narrow_columns(next - count, *count)
                });
                columns.collect()
            }
            Kept::Apart(layers) => Linear::forward_side_by_side(layers, x),
        }
    }
}
