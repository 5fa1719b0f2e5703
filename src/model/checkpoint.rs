//! Where a model's constructor gets its tensors: first from headers, to say what it wants; later from loaded weights.
//!
//! The same constructor runs both times, so that what is declared, checked and reserved cannot differ from what
//! is built. Against headers it gets stand-ins: views of a single zero in the right shape, which take no memory.

use candle_core::DType;

use super::pass::failed;
use crate::error::{Error, Result};
use crate::ops::{Keeping, LayerNorm, Matrix, Tensor, WeightLayout};
use crate::repository::F32Matmul;
use crate::weights::{Index, Wanted, Weights, stacked};

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

    pub(super) fn keeping(&self) -> Keeping {
        self.keeping
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

    /// Tensors of the base model that have this shape, the rows of each below those of the one before, as one.
    pub(super) fn base_stacked(&mut self, names: [&str; 3], shape: &[usize]) -> Result<Tensor> {
        let names = names.map(|name| self.base_names(name).to_vec());
        self.stacked(&names, shape, WeightLayout::Rows)
    }

    /// The weight of a linear layer of the base model, `[out, …]`, whose other dimensions are its input.
    pub(super) fn base_matrix(&mut self, name: &str, shape: &[usize]) -> Result<Matrix> {
        self.matrix(&[self.base_names(name).to_vec()], shape)
    }

    /// The weights of linear layers of the base model with the same input, as that of one whose outputs are theirs in order.
    pub(super) fn base_stacked_matrix(&mut self, names: [&str; 3], shape: &[usize]) -> Result<Matrix> {
        let names = names.map(|name| self.base_names(name).to_vec());
        self.matrix(&names, shape)
    }

    /// The same beside the base model.
    pub(super) fn head_matrix(&mut self, name: &str, shape: &[usize]) -> Result<Matrix> {
        self.matrix(&[vec![name.to_owned()]], shape)
    }

    fn matrix(&mut self, parts: &[Vec<String>], shape: &[usize]) -> Result<Matrix> {
        let layout = match self.keeping {
            Keeping::Cpu => WeightLayout::Panels,
            Keeping::Cuda(_) => WeightLayout::Rows,
        };
        let stored = self.stacked(parts, shape, layout)?;
        let out = stacked(shape, parts.len()).first().copied().unwrap_or(1);
        let matrix = Matrix::new(stored, layout, out).map_err(failed)?;
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
        self.stacked(&[names.to_vec()], shape, layout)
    }

    /// The same of each part, and all of them as one tensor, from the top down.
    fn stacked(&mut self, parts: &[Vec<String>], shape: &[usize], layout: WeightLayout) -> Result<Tensor> {
        let stored = layout.stored(&stacked(shape, parts.len()));
        let dtype = match self.keeping {
            Keeping::Cpu => DType::F32,
            Keeping::Cuda(dtype) => dtype,
        };
        match &mut self.source {
            Source::Headers { index, wanted } => {
                let mut names = parts.iter().map(|names| {
                    let name = names.iter().find(|name| index.get(name).is_some()).or(names.first());
                    name.cloned().unwrap_or_default()
                });
                let (name, shape) = (names.next().unwrap_or_default(), shape.to_vec());
                wanted.push(Wanted { name, below: names.collect(), shape, dtype, layout });
                Tensor::stand_in(stored).map_err(failed)
            }
            Source::Loaded(weights) => {
                // All of it goes by its first part's name.
                let names = parts.first().map(Vec::as_slice).unwrap_or_default();
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
