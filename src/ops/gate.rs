//! The middle of a gated feed-forward: `activation(gate) · up`.
//!
//! Source: Shazeer, "GLU Variants Improve Transformer", 2020; with SiLU it is what Llama and its relatives have.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, bail};

use super::activation::Activation;
use super::cpu::{Rows, for_row_blocks, output, require_f32};
use super::simd::wide;
use super::tensor::Tensor;

/// `gate`, `up`: `[rows, width]`, rows possibly strided, and on a GPU columns of one product; `[rows, width]` comes back.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(gate) = gate {
        return super::cuda::gated(gate, up.on_gpu("what is gated")?, activation).map(Tensor::Cuda);
    }
    require_f32(gate, "a gate")?;
    require_f32(up, "what is gated")?;
    gate.apply2(up, &Gated(activation))
}

struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (Rows::<f32>::of(s1, l1, "a gate")?, Rows::<f32>::of(s2, l2, "what is gated")?);
        if (gate.count, gate.width) != (up.count, up.width) {
            bail!("a gate of [{}, {}] for [{}, {}]", gate.count, gate.width, up.count, up.width);
        }
        let mut out = vec![0f32; gate.count * gate.width];
        for_row_blocks(&mut out, gate.width.max(1), |first, block| {
            for (i, row) in block.chunks_exact_mut(gate.width).enumerate() {
                row.copy_from_slice(gate.row(first + i));
                self.0.apply(row);
                multiply(row, up.row(first + i));
            }
        });
        Ok(output(out, (gate.count, gate.width)))
    }
}

wide! {
    fn multiply<_FMA>(row: &mut [f32], by: &[f32]) {
        row.iter_mut().zip(by).for_each(|(x, y)| *x *= y);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::testing::{assert_close, columns, contiguous, matrix, values};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn halves_of_one_product_are_gated_in_place(rows in 1usize..40, width in 1usize..700, seed: u64) {
            let both = matrix(rows, 2 * width, seed);
            let (gate, up) = (columns(&both, 0, width), columns(&both, width, width));
            let pairs = values(&contiguous(&gate)).into_iter().zip(values(&contiguous(&up)));
            let want: Vec<f64> = pairs.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            assert_close(&gated(&gate, &up, Activation::Silu).unwrap(), &want, 1e-6);
        }
    }

    #[test]
    fn shapes_that_differ_are_errors() {
        assert!(gated(&matrix(2, 3, 1), &matrix(2, 4, 1), Activation::Silu).is_err());
        assert!(gated(&matrix(2, 3, 1), &matrix(1, 3, 1), Activation::Silu).is_err());
    }
}
