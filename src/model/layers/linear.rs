//! A linear layer: its parameters and where a checkpoint keeps them.

use candle_core::Tensor;

use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::ops::{Activation, Epilogue, linear};

/// Which side of a checkpoint a name is on: only the base model's may carry its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Part {
    Base,
    Head,
}

/// `x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub(in crate::model) struct Linear {
    /// `[out, in]`, as stored
    weight: Tensor,
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
        layer.bias = Some(get(checkpoint, (part, &format!("{name}.bias")), &[to])?);
        Ok(layer)
    }

    pub(in crate::model) fn load_without_bias(
        checkpoint: &mut Checkpoint<'_>,
        (part, name): (Part, &str),
        (from, to): (usize, usize),
    ) -> Result<Self> {
        Ok(Linear { weight: get(checkpoint, (part, &format!("{name}.weight")), &[to, from])?, bias: None })
    }

    pub(in crate::model) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref(), Epilogue::None)
    }

    pub(in crate::model) fn forward_activated(&self, x: &Tensor, by: Activation) -> candle_core::Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref(), Epilogue::Activate(by))
    }

    /// `residual + forward(x)`
    pub(in crate::model) fn forward_added(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref(), Epilogue::Add(residual))
    }
}

fn get(checkpoint: &mut Checkpoint<'_>, (part, name): (Part, &str), shape: &[usize]) -> Result<Tensor> {
    match part {
        Part::Base => checkpoint.base(name, shape),
        Part::Head => checkpoint.head(name, shape),
    }
}
