//! A linear layer: its parameters and where a checkpoint keeps them.

use crate::device::give_way;
use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::ops::{Activation, Epilogue, LayerNorm, Matrix, Tensor, linear, linear_in_f32, linear_side_by_side};

/// Which side of a checkpoint a name is on: only the base model's may carry its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Part {
    Base,
    Head,
}

/// `x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub(in crate::model) struct Linear {
    weight: Matrix,
    /// `[out]`
    bias: Option<Tensor>,
}

impl Linear {
    /// `name.weight` and `name.bias`, for `(from, to)` features.
    pub(in crate::model) fn load(
        checkpoint: &mut Checkpoint<'_>,
        (part, name): (Part, &str),
        (from, to): (usize, usize),
    ) -> Result<Self> {
        let mut layer = Self::load_without_bias(checkpoint, (part, name), (from, to))?;
        let name = format!("{name}.bias");
        layer.bias = Some(match part {
            Part::Base => checkpoint.base(&name, &[to])?,
            Part::Head => checkpoint.head(&name, &[to])?,
        });
        Ok(layer)
    }

    pub(in crate::model) fn load_without_bias(
        checkpoint: &mut Checkpoint<'_>,
        (part, name): (Part, &str),
        (from, to): (usize, usize),
    ) -> Result<Self> {
        let (name, shape) = (format!("{name}.weight"), [to, from]);
        let weight = match part {
            Part::Base => checkpoint.base_matrix(&name, &shape)?,
            Part::Head => checkpoint.head_matrix(&name, &shape)?,
        };
        Ok(Linear { weight, bias: None })
    }

    /// Without a bias, of a weight that something else has too.
    pub(in crate::model) fn of(weight: Matrix) -> Self {
        Linear { weight, bias: None }
    }

    /// Layers of the base model with the same input, of so many outputs each, as one that gives their outputs side by side.
    pub(in crate::model) fn load_side_by_side(
        checkpoint: &mut Checkpoint<'_>,
        (layers, bias): (&[(&str, usize)], bool),
        from: usize,
    ) -> Result<Self> {
        let named = |part: &str| layers.iter().map(|(name, to)| (format!("{name}.{part}"), *to)).collect::<Vec<_>>();
        let (weights, biases) = (named("weight"), named("bias"));
        let weight = checkpoint.base_stacked_matrix(&by_reference(&weights), from)?;
        let biases = bias.then(|| checkpoint.base_stacked(&by_reference(&biases)));
        Ok(Linear { weight, bias: biases.transpose()? })
    }

    pub(in crate::model) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.run(x, Epilogue::None)
    }

    pub(in crate::model) fn forward_activated(&self, x: &Tensor, by: Activation) -> candle_core::Result<Tensor> {
        self.run(x, Epilogue::Activate(by))
    }

    /// `residual + forward(x)`
    pub(in crate::model) fn forward_added(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        self.run(x, Epilogue::Add(residual))
    }

    /// `norm(residual + forward(x))`
    pub(in crate::model) fn forward_added_and_normed(
        &self,
        x: &Tensor,
        residual: &Tensor,
        norm: &LayerNorm,
    ) -> candle_core::Result<Tensor> {
        self.run(x, Epilogue::AddNorm(residual, norm))
    }

    /// What each of some layers makes of `x`, side by side where it is on a GPU.
    pub(in crate::model) fn forward_side_by_side(layers: &[Linear], x: &Tensor) -> candle_core::Result<Vec<Tensor>> {
        give_way();
        let layers: Vec<_> = layers.iter().map(|layer| (&layer.weight, layer.bias.as_ref())).collect();
        linear_side_by_side(x, &layers)
    }

    /// `x · weightᵀ` as f32, of a layer without a bias.
    pub(in crate::model) fn forward_in_f32(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self.bias {
            None => linear_in_f32(x, &self.weight),
            Some(_) => candle_core::bail!("a layer with a bias whose result is not to be rounded"),
        }
    }

    fn run(&self, x: &Tensor, epilogue: Epilogue<'_>) -> candle_core::Result<Tensor> {
        // Most of what a pass does is done here: often enough for one that goes on beside live traffic.
        give_way();
        linear(x, &self.weight, self.bias.as_ref(), epilogue)
    }
}

fn by_reference(parts: &[(String, usize)]) -> Vec<(&str, usize)> {
    parts.iter().map(|(name, rows)| (name.as_str(), *rows)).collect()
}
