//! Where a model's constructor gets its tensors: first from headers, to say what it wants; later from loaded weights.
//!
//! The same constructor runs both times, so that what is declared, checked and reserved cannot differ from what
//! is built. Against headers it gets stand-ins: views of a single zero in the right shape, which take no memory.

use candle_core::DType;

use super::pass::failed;
use crate::error::{Error, Result};
use crate::ops::{Keeping, LayerNorm, Matrix, RmsNorm, Tensor, WeightLayout};
use crate::repository::F32Matmul;
use crate::weights::{Below, Index, SourceDtype, Wanted, Weights, stacked};

/// The tensors of a version, under the names that its checkpoint uses.
pub(super) struct Checkpoint<'a> {
    source: Source<'a>,
    /// What the base model's names begin with in checkpoints that hold more than it (`bert.`, `vit.`).
    prefix: &'static str,
    keeping: Keeping,
    f32_matmul: F32Matmul,
    /// Whether the weights of linear layers stay quantised, and on a CPU f16 and bf16 too.
    compact: bool,
}

enum Source<'a> {
    Headers { index: &'a Index, wanted: Vec<Wanted> },
    Loaded(Weights),
}

impl<'a> Checkpoint<'a> {
    pub(super) fn headers(index: &'a Index, prefix: &'static str, keeping: Keeping) -> Self {
        let f32_matmul = F32Matmul::default();
        Checkpoint {
            source: Source::Headers { index, wanted: Vec::new() },
            prefix,
            keeping,
            f32_matmul,
            compact: false,
        }
    }

    pub(super) fn loaded(weights: Weights, prefix: &'static str, (keeping, f32_matmul): (Keeping, F32Matmul)) -> Self {
        Checkpoint { source: Source::Loaded(weights), prefix, keeping, f32_matmul, compact: false }
    }

    /// The same where the weights of linear layers stay quantised, and f16 or bf16 on a CPU too: for models that read all of them
    /// for a few rows, and wait for memory.
    pub(super) fn kept_compact(self) -> Self {
        Checkpoint { compact: true, ..self }
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

    /// Vectors of the base model, of so many values each, one after the other.
    pub(super) fn base_stacked(&mut self, parts: &[(&str, usize)]) -> Result<Tensor> {
        self.stacked(&self.base_parts(parts), &[], (WeightLayout::Rows, self.dtype()))
    }

    /// The weight of a linear layer of the base model, `[out, …]`, whose other dimensions are its input.
    pub(super) fn base_matrix(&mut self, name: &str, shape: &[usize]) -> Result<Matrix> {
        let names = self.base_names(name).to_vec();
        self.matrix(names, shape)
    }

    /// The weights of linear layers of the base model with the same `input`, of so many outputs each, as that of one whose
    /// outputs are theirs in order.
    pub(super) fn base_stacked_matrix(&mut self, parts: &[(&str, usize)], input: usize) -> Result<Matrix> {
        self.stacked_matrix(&self.base_parts(parts), &[input])
    }

    /// Whether tensors of the base model can be stacked: those that are kept in one number format, since all of a tensor is.
    pub(super) fn stack_together(&self, names: &[&str]) -> bool {
        let mut others = names.iter().skip(1).map(|name| self.base_names(name));
        match &self.source {
            // What does not stay quantised on a GPU becomes one format on its way there.
            Source::Headers { .. } if self.keeping != Keeping::Cpu && !self.compact => true,
            Source::Headers { index, .. } => {
                let format = |name: &&str| {
                    let found = self.base_names(name).iter().find_map(|name| index.get(name)).map(|info| info.dtype)?;
                    let kept = found.blocks().is_some() || self.keeping == Keeping::Cpu;
                    Some(kept.then_some(found))
                };
                let mut formats = names.iter().filter_map(format);
                let first = formats.next();
                formats.all(|format| Some(format) == first)
            }
            // A part of another goes by the other's name.
            Source::Loaded(weights) => !others.any(|names| names.iter().any(|name| weights.has(name))),
        }
    }

    /// The same beside the base model.
    pub(super) fn head_matrix(&mut self, name: &str, shape: &[usize]) -> Result<Matrix> {
        self.matrix(vec![name.to_owned()], shape)
    }

    fn matrix(&mut self, names: Vec<String>, shape: &[usize]) -> Result<Matrix> {
        let (rows, rest) = shape.split_first().map_or((1, shape), |(rows, rest)| (*rows, rest));
        self.stacked_matrix(&[(names, rows)], rest)
    }

    fn stacked_matrix(&mut self, parts: &[(Vec<String>, usize)], rest: &[usize]) -> Result<Matrix> {
        let (layout, dtype) = self.kept_as(parts, rest);
        let stored = self.stacked(parts, rest, (layout, dtype))?;
        let out = parts.iter().map(|(_, rows)| rows).sum();
        let matrix = Matrix::new(stored, layout, out).map_err(failed)?;
        let matrix = if self.compact { matrix.of_steps() } else { matrix };
        Ok(match self.f32_matmul {
            F32Matmul::F32 => matrix,
            F32Matmul::Tf32 => matrix.in_tf32(),
        })
    }

    fn base_parts(&self, parts: &[(&str, usize)]) -> Vec<(Vec<String>, usize)> {
        parts.iter().map(|(name, rows)| (self.base_names(name).to_vec(), *rows)).collect()
    }

    fn dtype(&self) -> DType {
        match self.keeping {
            Keeping::Cpu => DType::F32,
            Keeping::Cuda(dtype) => dtype,
        }
    }

    /// How a matrix of these parts is kept: what headers say, and once it is loaded, as it was loaded.
    fn kept_as(&self, parts: &[(Vec<String>, usize)], rest: &[usize]) -> (WeightLayout, DType) {
        let usual = match self.keeping {
            Keeping::Cpu => (WeightLayout::Panels, DType::F32),
            Keeping::Cuda(dtype) => (WeightLayout::Rows, dtype),
        };
        match &self.source {
            Source::Loaded(weights) => {
                let names = parts.first().map(|(names, _)| names.as_slice()).unwrap_or_default();
                names.iter().find_map(|name| weights.kept_as(name)).unwrap_or(usual)
            }
            Source::Headers { index, .. } if self.compact => {
                let format = |names: &[String]| names.iter().find_map(|name| index.get(name)).map(|info| info.dtype);
                let mut formats = parts.iter().map(|(names, _)| format(names));
                let Some(one) = formats.next().flatten().filter(|one| formats.all(|format| format == Some(*one)))
                else {
                    return usual;
                };
                let blocks =
                    one.blocks().filter(|blocks| rest.iter().product::<usize>().is_multiple_of(blocks.block()));
                match (one, blocks) {
                    (_, Some(blocks)) if self.keeping == Keeping::Cpu => (WeightLayout::Quantized(blocks), DType::U8),
                    (_, Some(blocks)) => (WeightLayout::Packed(blocks), DType::U8),
                    _ if self.keeping != Keeping::Cpu => usual,
                    (SourceDtype::F16, _) => (WeightLayout::Panels, DType::F16),
                    (SourceDtype::Bf16, _) => (WeightLayout::Panels, DType::BF16),
                    _ => usual,
                }
            }
            Source::Headers { .. } => usual,
        }
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

    /// An RMS norm of the base model.
    pub(super) fn rms_norm(&mut self, name: &str, (width, eps): (usize, f64)) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.base(&format!("{name}.weight"), &[width])?, eps })
    }

    /// The first of these names that the checkpoint has. When it has none, the first is wanted, and found missing
    /// when the footprint is checked.
    fn first(&mut self, names: &[String], shape: &[usize], layout: WeightLayout) -> Result<Tensor> {
        let (rows, rest) = shape.split_first().map_or((1, shape), |(rows, rest)| (*rows, rest));
        self.stacked(&[(names.to_vec(), rows)], rest, (layout, self.dtype()))
    }

    /// The same of each part, which has so many rows of `rest`, and all of them as one tensor, from the top down.
    fn stacked(
        &mut self,
        parts: &[(Vec<String>, usize)],
        rest: &[usize],
        (layout, dtype): (WeightLayout, DType),
    ) -> Result<Tensor> {
        let Some(((first, rows), below)) = parts.split_first() else {
            return Err(Error::internal("a tensor that is made of nothing"));
        };
        let shape = [&[*rows], rest].concat();
        let stored = layout.stored(&stacked(&shape, below.iter().map(|(_, rows)| *rows)));
        match &mut self.source {
            Source::Headers { index, wanted } => {
                let found = |names: &[String]| {
                    let name = names.iter().find(|name| index.get(name).is_some()).or(names.first());
                    name.cloned().unwrap_or_default()
                };
                let below = below.iter().map(|(names, rows)| Below { name: found(names), rows: *rows }).collect();
                wanted.push(Wanted { name: found(first), below, shape, dtype, layout });
                Tensor::stand_in(stored).map_err(failed)
            }
            Source::Loaded(weights) => {
                // All of it goes by its first part's name.
                let tensor = first.iter().find_map(|name| weights.take_optional(name));
                let missing = || Error::internal(format!("tensor '{}' was not loaded", first.join("' or '")));
                let tensor = tensor.ok_or_else(missing)?;
                if tensor.dims() != stored {
                    let (name, found) = (first.join("' or '"), tensor.dims());
                    return Err(Error::internal(format!("tensor '{name}' has shape {found:?}, not {stored:?}")));
                }
                Ok(tensor)
            }
        }
    }
}
