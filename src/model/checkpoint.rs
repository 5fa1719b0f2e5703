//! Where a model's constructor gets its tensors: first from headers, to say what it wants; later from loaded weights.
//!
//! The same constructor runs both times, so that what is declared, checked and reserved cannot differ from what
//! is built. Against headers it gets stand-ins: views of a single zero in the right shape, which take no memory.

use candle_core::DType;

use super::pass::failed;
use crate::error::{Error, Result};
use crate::ops::{Keeping, LayerNorm, Matrix, Tensor, WeightLayout};
use crate::repository::F32Matmul;
use crate::weights::{Index, Wanted, Weights};

/// The tensors of a version, under the names that its checkpoint uses.
pub(super) struct Checkpoint<'a> {
    source: Source<'a>,
    /// What the base model's names begin with in checkpoints that hold more than it (`bert.`, `vit.`).
    prefix: &'static str,
    keeping: Keeping,
    f32_matmul: F32Matmul,
}

enum Source<'a> {
    Headers { index: &'a Index, wanted: Vec<Wanted> },
    Loaded(Weights),
}

impl<'a> Checkpoint<'a> {
    pub(super) fn headers(index: &'a Index, prefix: &'static str, keeping: Keeping) -> Self {
        let f32_matmul = F32Matmul::default();
        Checkpoint { source: Source::Headers { index, wanted: Vec::new() }, prefix, keeping, f32_matmul }
    }

    pub(super) fn loaded(weights: Weights, prefix: &'static str, (keeping, f32_matmul): (Keeping, F32Matmul)) -> Self {
        Checkpoint { source: Source::Loaded(weights), prefix, keeping, f32_matmul }
    }

    /// What was asked for while there were only headers.
    pub(super) fn into_wanted(self) -> Vec<Wanted> {
        match self.source {
            Source::Headers { wanted, .. } => wanted,
            Source::Loaded(_) => Vec::new(),
        }
    }

    /// A tensor of the base model: with its prefix or, in a checkpoint of the base model alone, without.
    pub(super) fn base(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.first(&self.base_names(name), shape, WeightLayout::Rows)
    }

    /// A tensor beside the base model: a head's.
    pub(super) fn head(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.first(&[name.to_owned()], shape, WeightLayout::Rows)
    }

    /// The weight of a linear layer of the base model, `[out, …]`, whose other dimensions are its input.
    pub(super) fn base_matrix(&mut self, name: &str, shape: &[usize]) -> Result<Matrix> {
        self.matrix(&self.base_names(name), shape)
    }

    /// The same beside the base model.
    pub(super) fn head_matrix(&mut self, name: &str, shape: &[usize]) -> Result<Matrix> {
        self.matrix(&[name.to_owned()], shape)
    }

    fn matrix(&mut self, names: &[String], shape: &[usize]) -> Result<Matrix> {
        let layout = match self.keeping {
            Keeping::Cpu => WeightLayout::Panels,
            Keeping::Cuda(_) => WeightLayout::Rows,
        };
        let stored = self.first(names, shape, layout)?;
        let matrix = Matrix::new(stored, layout, shape.first().copied().unwrap_or(1)).map_err(failed)?;
        Ok(match self.f32_matmul {
            F32Matmul::F32 => matrix,
            F32Matmul::Tf32 => matrix.in_tf32(),
        })
    }

    fn base_names(&self, name: &str) -> [String; 2] {
        [format!("{}{name}", self.prefix), name.to_owned()]
    }

    /// A layer norm of the base model, which checkpoints converted from TensorFlow name after the paper's symbols.
    pub(super) fn norm(&mut self, name: &str, width: usize, eps: f64) -> Result<LayerNorm> {
        let mut part = |names: [&str; 2]| {
            let bare = names.map(|part| format!("{name}.{part}"));
            let prefixed = bare.each_ref().map(|name| format!("{}{name}", self.prefix));
            self.first(&[prefixed, bare].concat(), &[width], WeightLayout::Rows)
        };
        Ok(LayerNorm { weight: part(["weight", "gamma"])?, bias: part(["bias", "beta"])?, eps })
    }

    /// The first of these names that the checkpoint has. When it has none, the first is wanted, and found missing
    /// when the footprint is checked.
    fn first(&mut self, names: &[String], shape: &[usize], layout: WeightLayout) -> Result<Tensor> {
        let stored = layout.stored(shape);
        let dtype = match self.keeping {
            Keeping::Cpu => DType::F32,
            Keeping::Cuda(dtype) => dtype,
        };
        match &mut self.source {
            Source::Headers { index, wanted } => {
                let name = names.iter().find(|name| index.get(name).is_some()).or(names.first());
                let name = name.cloned().unwrap_or_default();
                wanted.push(Wanted { name, shape: shape.to_vec(), dtype, layout });
                Tensor::stand_in(stored).map_err(failed)
            }
            Source::Loaded(weights) => {
                let tensor = names.iter().find_map(|name| weights.take_optional(name));
                let missing = || Error::internal(format!("tensor '{}' was not loaded", names.join("' or '")));
                let tensor = tensor.ok_or_else(missing)?;
                if tensor.dims() != stored {
                    let (name, found) = (names.join("' or '"), tensor.dims());
                    return Err(Error::internal(format!("tensor '{name}' has shape {found:?}, not {stored:?}")));
                }
                Ok(tensor)
            }
        }
    }
}
