//! `x · weightᵀ + bias`, with what follows it applied to the product while it is at hand.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use gemm::{Parallelism, gemm};

use super::activation::Activation;
use super::cpu::{Rows, for_row_blocks, output, require_f32, with_rows, with_vector};
use super::simd::wide;

/// What a linear layer ends with.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    None,
    Activate(Activation),
    /// Adds a residual of the result's shape.
    Add(&'a Tensor),
}

/// `[rows, in] · [out, in]ᵀ + [out]`, then the epilogue: `[rows, out]`.
///
/// The weight stays as checkpoints store it: it is read through its strides, never transposed in memory, so that
/// versions can share it.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epilogue: Epilogue<'_>) -> Result<Tensor> {
    require_f32(x, "a linear layer's input")?;
    x.apply_op2_no_bwd(weight, &Linear { bias, epilogue })
}

/// Rows up to which the product is computed column by column.
///
/// gemm packs one operand. Rows come out only when it packs the weight, which for few rows takes longer than the
/// product; columns come out when it packs the input, and turning them costs little. On 384 to 3072 features,
/// one thread: 8 rows 4.0 times as fast, 16 rows 2.6, 32 rows 1.7, 128 rows 1.1; from 256 on no gain.
const FEW_ROWS: usize = 128;

struct Linear<'a> {
    bias: Option<&'a Tensor>,
    epilogue: Epilogue<'a>,
}

impl CustomOp2 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Rows::<f32>::of(s1, l1, "a linear layer's input")?;
        let weight = Rows::<f32>::of(s2, l2, "a weight")?;
        if x.width != weight.width {
            bail!("a linear layer for {} features was given {}", weight.width, x.width);
        }
        let (m, n) = (x.count, weight.count);
        let mut out = vec![0f32; m * n];
        if out.is_empty() {
            return Ok(output(out, (m, n)));
        }
        let columns = if (2..=FEW_ROWS).contains(&m) {
            let mut columns = vec![0f32; m * n];
            multiply_transposed(&mut columns, &x, &weight, Order::Columns);
            columns
        } else {
            multiply_transposed(&mut out, &x, &weight, Order::Rows);
            Vec::new()
        };
        self.with_addends((m, n), |bias, residual| {
            for_row_blocks(&mut out, n, |first, block| {
                if !columns.is_empty() {
                    turn(block, &columns, (n, m, first));
                }
                match (bias, residual) {
                    (Some(bias), Some(rows)) => add_both(block, bias, &rows, first),
                    (Some(bias), None) => add_bias(block, bias),
                    (None, Some(rows)) => add_residual(block, &rows, first),
                    (None, None) => {}
                }
                if let Epilogue::Activate(activation) = self.epilogue {
                    activation.apply(block);
                }
            });
        })?;
        Ok(output(out, (m, n)))
    }
}

impl Linear<'_> {
    /// Runs `f` with the bias and the residual, checked against the result's shape.
    fn with_addends(&self, (m, n): (usize, usize), f: impl FnOnce(Option<&[f32]>, Option<Rows<'_>>)) -> Result<()> {
        let with_residual = |bias: Option<&[f32]>| match self.epilogue {
            Epilogue::Add(residual) => with_rows(residual, "a residual", |rows| {
                if (rows.count, rows.width) != (m, n) {
                    bail!("a residual has shape {:?}, the result is [{m}, {n}]", residual.dims());
                }
                f(bias, Some(rows));
                Ok(())
            }),
            _ => {
                f(bias, None);
                Ok(())
            }
        };
        match self.bias {
            Some(bias) => with_vector(bias, (n, "a bias"), |bias| with_residual(Some(bias))),
            None => with_residual(None),
        }
    }
}

/// Rows `first..` of the result from its columns, each `m` values.
fn turn(block: &mut [f32], columns: &[f32], (n, m, first): (usize, usize, usize)) {
    let rows = block.len() / n;
    for (c, column) in columns.chunks_exact(m).enumerate() {
        for (r, value) in column[first..first + rows].iter().enumerate() {
            block[r * n + c] = *value;
        }
    }
}

wide! {
    fn add_bias<_FMA>(block: &mut [f32], bias: &[f32]) {
        for row in block.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
    }
}

wide! {
    fn add_both<_FMA>(block: &mut [f32], bias: &[f32], rows: &Rows<'_>, first: usize) {
        for (i, row) in block.chunks_exact_mut(bias.len()).enumerate() {
            row.iter_mut().zip(bias).zip(rows.row(first + i)).for_each(|((x, b), r)| *x += b + r);
        }
    }
}

fn add_residual(block: &mut [f32], rows: &Rows<'_>, first: usize) {
    for (i, row) in block.chunks_exact_mut(rows.width).enumerate() {
        row.iter_mut().zip(rows.row(first + i)).for_each(|(x, r)| *x += r);
    }
}

/// How the product lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Rows,
    Columns,
}

/// `out = x · weightᵀ`, over the current pool.
fn multiply_transposed(out: &mut [f32], x: &Rows<'_>, weight: &Rows<'_>, order: Order) {
    let (m, n, k) = (x.count, weight.count, x.width);
    assert_eq!(out.len(), m * n);
    let (column_stride, row_stride) = match order {
        Order::Rows => (1, n as isize),
        Order::Columns => (m as isize, 1),
    };
    // a single thread is told so: gemm then blocks for one core
    let parallelism = if rayon::current_num_threads() == 1 { Parallelism::None } else { Parallelism::Rayon(0) };
    let (x, x_stride) = (x.data.as_ptr(), x.stride as isize);
    let (w, w_stride) = (weight.data.as_ptr(), weight.stride as isize);
    let (out, no) = (out.as_mut_ptr(), false);
    #[allow(unsafe_code)]
    // SAFETY: `out` is m * n values in either order; `Rows` guarantees that `x` and `weight` hold m and n rows of k
    // adjacent values at their strides; `out` is borrowed mutably, so it overlaps neither.
    unsafe {
        let (x, w) = ((x, 1, x_stride), (w, w_stride, 1));
        gemm(
            m,
            n,
            k,
            out,
            column_stride,
            row_stride,
            no,
            x.0,
            x.1,
            x.2,
            w.0,
            w.1,
            w.2,
            1f32,
            1f32,
            no,
            no,
            no,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::testing::{assert_close, matrix, values, vector};

    /// The definition, in f64.
    fn naive(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, residual: Option<&Tensor>) -> Vec<f64> {
        let ((m, k), n) = (x.dims2().unwrap(), weight.dims2().unwrap().0);
        let (x, w) = (values(x), values(weight));
        let (bias, residual) = (bias.map(values), residual.map(values));
        let mut out = Vec::new();
        for i in 0..m {
            for j in 0..n {
                let product: f64 = (0..k).map(|l| x[i * k + l] * w[j * k + l]).sum();
                out.push(
                    product + bias.as_ref().map_or(0.0, |b| b[j]) + residual.as_ref().map_or(0.0, |r| r[i * n + j]),
                );
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn it_is_the_product_with_bias_and_residual(
            (m, n, k) in (1usize..150, 1usize..70, 1usize..140), seed: u64, with_bias: bool, with_residual: bool,
        ) {
            let (x, w) = (matrix(m, k, seed), matrix(n, k, seed ^ 1));
            let (b, r) = (with_bias.then(|| vector(n, seed ^ 2)), with_residual.then(|| matrix(m, n, seed ^ 3)));
            let epilogue = r.as_ref().map_or(Epilogue::None, Epilogue::Add);
            let got = linear(&x, &w, b.as_ref(), epilogue).unwrap();
            assert_close(&got, &naive(&x, &w, b.as_ref(), r.as_ref()), 1e-5);
        }
    }

    #[test]
    fn the_activation_comes_after_the_bias() {
        let (x, w, b) = (matrix(5, 7, 1), matrix(9, 7, 2), vector(9, 3));
        let got = linear(&x, &w, Some(&b), Epilogue::Activate(Activation::Relu)).unwrap();
        let want: Vec<f64> = naive(&x, &w, Some(&b), None).into_iter().map(|v| v.max(0.0)).collect();
        assert_close(&got, &want, 1e-5);
    }

    #[test]
    fn strided_inputs_are_read_in_place() {
        let wide = matrix(6, 20, 4);
        let (x, w) = (wide.narrow(1, 3, 11).unwrap(), matrix(20, 11, 5).narrow(0, 2, 8).unwrap());
        let want = naive(&x.contiguous().unwrap(), &w.contiguous().unwrap(), None, None);
        assert_close(&linear(&x, &w, None, Epilogue::None).unwrap(), &want, 1e-5);
    }

    #[test]
    fn a_large_product_is_the_same_on_one_thread_and_on_several() {
        let (x, w, b) = (matrix(130, 257, 6), matrix(300, 257, 7), vector(300, 8));
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| linear(&x, &w, Some(&b), Epilogue::Activate(Activation::Gelu)).unwrap())
        };
        assert_close(&on(3), &values(&on(1)), 1e-6);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let x = matrix(2, 3, 1);
        assert!(linear(&x, &matrix(4, 5, 1), None, Epilogue::None).is_err());
        assert!(linear(&x, &matrix(4, 3, 1), Some(&vector(5, 1)), Epilogue::None).is_err());
        assert!(linear(&x, &matrix(4, 3, 1), None, Epilogue::Add(&matrix(1, 4, 1))).is_err());
        assert!(linear(&x, &matrix(4, 3, 1), None, Epilogue::Add(&matrix(4, 2, 1))).is_err());
        assert!(linear(&x.t().unwrap(), &matrix(4, 2, 1), None, Epilogue::None).is_err());
    }

    #[test]
    fn no_rows_give_no_rows() {
        let x = Tensor::zeros((0, 3), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert_eq!(linear(&x, &matrix(4, 3, 1), None, Epilogue::None).unwrap().dims(), [0, 4]);
    }
}
