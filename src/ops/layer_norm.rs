//! Layer normalisation in two passes.
//!
//! Mean first, then the mean of squared deviations: the one-pass form `E[x²] − E[x]²` (candle's) cancels when
//! a row's mean is large beside its spread.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::cpu::{Reading, Rows, for_row_blocks, output, require_f32};
use super::simd::{madd, sum_of, wide};
use super::tensor::Tensor;

/// A layer norm's parameters: `(x − mean) / √(variance + eps) · weight + bias`, each row by itself.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[width]`
    pub weight: Tensor,
    /// `[width]`
    pub bias: Tensor,
    pub eps: f64,
}

/// Normalises every row of `[rows, width]`.
pub fn layer_norm(x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(x) = x {
        return super::cuda::layer_norm(x, norm).map(Tensor::Cuda);
    }
    require_f32(x, "a layer norm's input")?;
    x.apply1(norm)
}

/// A layer norm's parameters while they are read.
pub(super) struct Parameters<'a> {
    weight: Reading<'a>,
    bias: Reading<'a>,
    eps: f64,
}

/// The same as plain values, of the width of the rows that they are for.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl LayerNorm {
    pub(super) fn read(&self) -> Result<Parameters<'_>> {
        let weight = Reading::of(&self.weight, "a layer norm's weight")?;
        Ok(Parameters { weight, bias: Reading::of(&self.bias, "a layer norm's bias")?, eps: self.eps })
    }
}

impl Parameters<'_> {
    pub(super) fn of_width(&self, width: usize) -> Result<Norm<'_>> {
        Ok(Norm { weight: self.weight.vector(width)?, bias: self.bias.vector(width)?, eps: self.eps as f32 })
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Rows::<f32>::of(storage, layout, "a layer norm's input")?;
        if x.width == 0 {
            bail!("a layer norm of rows without values");
        }
        let mut out = vec![0f32; x.count * x.width];
        let parameters = self.read()?;
        let norm = parameters.of_width(x.width)?;
        for_row_blocks(&mut out, x.width, |first, block| {
            for (i, row) in block.chunks_exact_mut(x.width).enumerate() {
                row.copy_from_slice(x.row(first + i));
            }
            norm.apply(block);
        });
        Ok(output(out, layout.dims()))
    }
}

impl Norm<'_> {
    /// Normalises whole rows in place.
    pub(super) fn apply(&self, rows: &mut [f32]) {
        normalize_rows(rows, self.weight, self.bias, self.eps);
    }
}

wide! {
    /// Normalises rows of `weight.len()` values in place.
    fn normalize_rows<FMA>(rows: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        let width = weight.len();
        for row in rows.chunks_exact_mut(width) {
            let mean = sum_of(row, |x| x) / width as f32;
            let variance = sum_of(row, |x| (x - mean) * (x - mean)) / width as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *x = madd::<FMA>((*x - mean) * scale, *w, *b);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::Device;
    use crate::ops::testing::{assert_close, matrix, values, vector};

    /// The definition, in f64.
    fn naive(x: &Tensor, norm: &LayerNorm) -> Vec<f64> {
        let width = x.dims2().unwrap().1;
        let (w, b) = (values(&norm.weight), values(&norm.bias));
        let rows = values(x);
        let normalized = rows.chunks(width).flat_map(|row| {
            let mean = row.iter().sum::<f64>() / width as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
            let scale = 1.0 / (variance + norm.eps).sqrt();
            row.iter().zip(&w).zip(&b).map(|((x, w), b)| (x - mean) * scale * w + b).collect::<Vec<_>>()
        });
        normalized.collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn it_is_its_definition(rows in 1usize..60, width in 1usize..800, seed: u64) {
            let norm = LayerNorm { weight: vector(width, seed ^ 1), bias: vector(width, seed ^ 2), eps: 1e-5 };
            let x = matrix(rows, width, seed);
            assert_close(&layer_norm(&x, &norm).unwrap(), &naive(&x, &norm), 1e-5);
        }
    }

    #[test]
    fn a_large_mean_does_not_cancel() {
        let width = 384;
        let x: Vec<f32> = (0..width).map(|i| 4096.0 + (i % 7) as f32 * 0.25).collect();
        let x = Tensor::from_vec(x, (1, width), &Device::Cpu).unwrap();
        let norm = LayerNorm { weight: vector(width, 1), bias: vector(width, 2), eps: 1e-12 };
        assert_close(&layer_norm(&x, &norm).unwrap(), &naive(&x, &norm), 1e-5);
    }

    #[test]
    fn parameters_of_another_width_are_refused() {
        let norm = LayerNorm { weight: vector(4, 1), bias: vector(5, 2), eps: 1e-5 };
        assert!(layer_norm(&matrix(2, 4, 1), &norm).is_err());
        assert!(layer_norm(&matrix(2, 5, 1), &norm).is_err());
    }

    #[test]
    fn a_row_with_nan_is_nan_and_its_neighbour_is_not() {
        let x = Tensor::from_vec(vec![1f32, f32::NAN, 3., 1., 2., 3.], (2, 3), &Device::Cpu).unwrap();
        let norm = LayerNorm { weight: vector(3, 1), bias: vector(3, 2), eps: 1e-5 };
        let out = values(&layer_norm(&x, &norm).unwrap());
        assert!(out[..3].iter().all(|v| v.is_nan()) && out[3..].iter().all(|v| v.is_finite()));
    }
}
