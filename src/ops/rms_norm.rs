//! Normalisation by the root of the mean square: a layer norm without mean and bias.
//!
//! Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; `LlamaRMSNorm` of transformers. In a decoder's block
//! a sum is both normalised and kept for the next sum, so this is an op of its own and not what a product ends with.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};

use super::cpu::{Reading, Rows, for_row_blocks, output, require_f32};
use super::simd::{sum_of, wide};
use super::tensor::Tensor;

/// `x / √(mean(x²) + eps) · weight`, each row by itself.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[width]`
    pub weight: Tensor,
    pub eps: f64,
}

/// Normalises every row of `[rows, width]`.
pub fn rms_norm(x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(x) = x {
        return super::cuda::rms_norm(x, norm).map(Tensor::Cuda);
    }
    require_f32(x, "an RMS norm's input")?;
    x.apply1(norm)
}

/// A norm's weight while it is read.
pub(super) struct Parameters<'a> {
    weight: Reading<'a>,
    eps: f64,
}

/// The same as plain values, of the width of the rows that they are for.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
}

impl RmsNorm {
    pub(super) fn read(&self) -> Result<Parameters<'_>> {
        Ok(Parameters { weight: Reading::of(&self.weight, "an RMS norm's weight")?, eps: self.eps })
    }
}

impl Parameters<'_> {
    pub(super) fn of_width(&self, width: usize) -> Result<Norm<'_>> {
        Ok(Norm { weight: self.weight.vector(width)?, eps: self.eps as f32 })
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Rows::<f32>::of(storage, layout, "an RMS norm's input")?;
        if x.width == 0 {
            bail!("an RMS norm of rows without values");
        }
        let mut out = vec![0f32; x.count * x.width];
        let parameters = self.read()?;
        let norm = parameters.of_width(x.width)?;
        for_row_blocks(&mut out, x.width, |first, block| {
            for (i, row) in block.chunks_exact_mut(x.width).enumerate() {
                row.copy_from_slice(x.row(first + i));
            }
            normalize_rows(block, norm);
        });
        Ok(output(out, layout.dims()))
    }
}

wide! {
    fn normalize_rows<_FMA>(rows: &mut [f32], norm: Norm<'_>) {
        for row in rows.chunks_exact_mut(norm.weight.len()) {
            normalize(row, norm);
        }
    }
}

/// One row in place, inside a loop that is compiled for wide registers.
#[inline(always)]
pub(super) fn normalize(row: &mut [f32], norm: Norm<'_>) {
    let mean_square = sum_of(row, |x| x * x) / norm.weight.len() as f32;
    let scale = 1.0 / (mean_square + norm.eps).sqrt();
    for (x, w) in row.iter_mut().zip(norm.weight) {
        *x = *x * scale * *w;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::Device;
    use crate::ops::testing::{assert_close, matrix, values, vector};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn it_is_its_definition(rows in 1usize..60, width in 1usize..800, seed: u64) {
            let norm = RmsNorm { weight: vector(width, seed ^ 1), eps: 1e-5 };
            let x = matrix(rows, width, seed);
            let (all, weight) = (values(&x), values(&norm.weight));
            let want: Vec<f64> = all.chunks(width).flat_map(|row| {
                let scale = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / width as f64 + norm.eps).sqrt();
                row.iter().zip(&weight).map(|(x, w)| x * scale * w).collect::<Vec<_>>()
            }).collect();
            assert_close(&rms_norm(&x, &norm).unwrap(), &want, 1e-6);
        }
    }

    #[test]
    fn zeroes_stay_zeroes_and_a_weight_of_another_width_is_refused() {
        let zeros = Tensor::from_vec(vec![0f32; 6], (2, 3), &Device::Cpu).unwrap();
        let norm = RmsNorm { weight: vector(3, 1), eps: 1e-6 };
        assert_eq!(values(&rms_norm(&zeros, &norm).unwrap()), [0.0; 6]);
        assert!(rms_norm(&matrix(2, 4, 1), &norm).is_err());
    }

    #[test]
    fn a_row_with_nan_is_nan_and_its_neighbour_is_not() {
        let x = Tensor::from_vec(vec![1f32, f32::NAN, 3., 1., 2., 3.], (2, 3), &Device::Cpu).unwrap();
        let out = values(&rms_norm(&x, &RmsNorm { weight: vector(3, 1), eps: 1e-5 }).unwrap());
        assert!(out[..3].iter().all(|v| v.is_nan()) && out[3..].iter().all(|v| v.is_finite()));
    }
}
