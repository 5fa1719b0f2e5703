//! `x · weightᵀ + bias`, with what follows it applied to the product while it is at hand.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use super::activation::Activation;
use super::cpu::{Fresh, Reading, Rows, for_row_blocks, require_f32, threads, values_of};
use super::layer_norm::{LayerNorm, Norm, Parameters};
use super::matmul::{Element, Left, Matrix, PANEL, Right, Target, Tiles, WeightLayout, multiply};
use super::quantized::{self, Blocks};
use super::simd::wide;
use super::tensor::Tensor;

/// What a linear layer ends with.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    None,
    Activate(Activation),
    /// Adds a residual of the result's shape.
    Add(&'a Tensor),
    /// Adds a residual, then normalises each row.
    AddNorm(&'a Tensor, &'a LayerNorm),
}

/// `[rows, in] · [out, in]ᵀ + [out]`, then the epilogue: `[rows, out]`.
pub fn linear(x: &Tensor, weight: &Matrix, bias: Option<&Tensor>, epilogue: Epilogue<'_>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(x) = x {
        return super::cuda::linear(x, weight, bias, epilogue).map(Tensor::Cuda);
    }
    require_f32(x, "a linear layer's input")?;
    x.apply2(weight.stored(), &Linear { weight, bias, epilogue })
}

/// `[rows, in] · [out, in]ᵀ` as f32, whatever activations are otherwise: of logits, which are not to be rounded.
pub fn linear_in_f32(x: &Tensor, weight: &Matrix) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(x) = x {
        return super::cuda::linear_in_f32(x, weight).map(Tensor::Cuda);
    }
    linear(x, weight, None, Epilogue::None)
}

/// What layers with the same input make of it, each with its bias: on a GPU columns of one result, side by side.
pub fn linear_side_by_side(x: &Tensor, layers: &[(&Matrix, Option<&Tensor>)]) -> Result<Vec<Tensor>> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(x) = x {
        let parts = super::cuda::linear_side_by_side(x, layers)?;
        return Ok(parts.into_iter().map(Tensor::Cuda).collect());
    }
    layers.iter().map(|(weight, bias)| linear(x, weight, *bias, Epilogue::None)).collect()
}

/// Multiply-adds below which waking another thread costs more than it saves: some 80 µs of one core.
const PARALLEL_WORK: usize = 4 << 20;
/// Rows that take no longer than one: reading the weight does.
const READ: usize = 8;
/// Rows of the result that are finished while they are in the second-level cache: this many values.
const AT_HAND: usize = 64 * 1024;
/// With fewer rows for each thread than this, threads share the outputs instead.
const FEW_ROWS: usize = 16;

struct Linear<'a> {
    weight: &'a Matrix,
    bias: Option<&'a Tensor>,
    epilogue: Epilogue<'a>,
}

impl CustomOp2 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Rows::<f32>::of(s1, l1, "a linear layer's input")?;
        let (n, k) = (self.weight.out_features(), self.weight.in_features());
        if x.width != k {
            bail!("a linear layer for {k} features was given {}", x.width);
        }
        let mut out = Fresh::new((x.count, n));
        let bias = self.bias.map(|bias| Reading::of(bias, "a bias")).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.vector(n)).transpose()?;
        let after = After::of(&self.epilogue)?;
        let then = after.then((x.count, n))?;
        let finish = Finish { bias, then };
        match self.weight.layout() {
            WeightLayout::Quantized(format) => {
                let blocks = Blocks::new(format, values_of(s2, l2, "a weight")?, (n, k))?;
                quantized_product(x, blocks, &finish, &mut out);
            }
            WeightLayout::Panels => {
                let left = Left { data: x.data, rows: x.count, inner: k, stride: x.stride };
                let (what, out) = ("a weight", &mut out);
                match s2 {
                    CpuStorage::F16(_) => {
                        product(left, Right::panels(values_of::<f16>(s2, l2, what)?, k, n), &finish, out)
                    }
                    CpuStorage::BF16(_) => {
                        product(left, Right::panels(values_of::<bf16>(s2, l2, what)?, k, n), &finish, out)
                    }
                    _ => product(left, Right::panels(values_of::<f32>(s2, l2, what)?, k, n), &finish, out),
                }
            }
            WeightLayout::Rows | WeightLayout::Packed(_) => bail!("a linear layer's weight is not in a CPU's panels"),
        }
        #[allow(unsafe_code)]
        // SAFETY: either product wrote every row.
        Ok(unsafe { out.into_output() })
    }
}

/// An epilogue whose tensors are being read.
enum After<'a> {
    Nothing,
    Activate(Activation),
    Add(Reading<'a>),
    AddNorm(Reading<'a>, Parameters<'a>),
}

impl<'a> After<'a> {
    fn of(epilogue: &Epilogue<'a>) -> Result<Self> {
        let residual = |tensor| Reading::of(tensor, "a residual");
        Ok(match *epilogue {
            Epilogue::None => After::Nothing,
            Epilogue::Activate(by) => After::Activate(by),
            Epilogue::Add(tensor) => After::Add(residual(tensor)?),
            Epilogue::AddNorm(tensor, norm) => After::AddNorm(residual(tensor)?, norm.read()?),
        })
    }

    /// Its values, checked against the result's shape.
    fn then(&self, shape: (usize, usize)) -> Result<Then<'_>> {
        Ok(match self {
            After::Nothing => Then::Nothing,
            After::Activate(by) => Then::Activate(*by),
            After::Add(residual) => Then::Add(fitting(residual, shape)?),
            After::AddNorm(residual, norm) => Then::AddNorm(fitting(residual, shape)?, norm.of_width(shape.1)?),
        })
    }
}

fn fitting<'a>(residual: &'a Reading<'_>, shape: (usize, usize)) -> Result<Rows<'a>> {
    let rows = residual.rows()?;
    if (rows.count, rows.width) != shape {
        bail!("a residual is [{}, {}], the result is {shape:?}", rows.count, rows.width);
    }
    Ok(rows)
}

/// The bias, and what is done to rows of the product once they are whole.
struct Finish<'a> {
    bias: Option<&'a [f32]>,
    then: Then<'a>,
}

enum Then<'a> {
    Nothing,
    Activate(Activation),
    Add(Rows<'a>),
    AddNorm(Rows<'a>, Norm<'a>),
}

impl Finish<'_> {
    /// `block`: whole rows of the result, from `first` on.
    fn rows(&self, block: &mut [f32], first: usize) {
        match &self.then {
            Then::Nothing => {}
            Then::Activate(activation) => activation.apply(block),
            Then::Add(residual) => add_rows(block, residual, first),
            Then::AddNorm(residual, norm) => {
                add_rows(block, residual, first);
                norm.apply(block);
            }
        }
    }
}

/// The product, by blocks of rows or of outputs, over the current pool where there is enough of it.
fn product<W: Element>(left: Left<'_>, right: Right<'_, W>, finish: &Finish<'_>, out: &mut Fresh) {
    let (m, n, k) = (left.rows, right.columns, left.inner);
    if m == 0 || n == 0 {
        return;
    }
    let tiles = Tiles::best();
    let target = Target { start: out.start(), stride: n };
    let threads = if m.max(READ) * n * k < PARALLEL_WORK { 1 } else { threads() };
    if threads > 1 && m < threads * FEW_ROWS {
        let panels = n.div_ceil(PANEL);
        let each = panels.div_ceil(threads);
        (0..panels.div_ceil(each)).into_par_iter().for_each(|i| {
            let (from, to) = (i * each, panels.min((i + 1) * each));
            let bias = finish.bias.map(|bias| &bias[from * PANEL..]);
            #[allow(unsafe_code)]
            // SAFETY: `out` has m rows of n values; every thread has columns of its own.
            unsafe {
                multiply(tiles, left, right.part(from, to), bias, target.at(0, from * PANEL));
            }
        });
        #[allow(unsafe_code)]
        // SAFETY: all panels of all rows were just written.
        finish.rows(unsafe { out.values(0, m) }, 0);
        return;
    }
    let most = (AT_HAND / n).clamp(24, super::matmul::BLOCK);
    let each = m.div_ceil(threads * m.div_ceil(threads * most));
    let block = |i: usize| {
        let (first, rows) = (i * each, each.min(m - i * each));
        let data = &left.data[first * left.stride..];
        #[allow(unsafe_code)]
        // SAFETY: `out` has m rows of n values; every block has rows of its own, and they are whole when it is read.
        let done = unsafe {
            multiply(tiles, Left { data, rows, ..left }, right, finish.bias, target.at(first, 0));
            std::slice::from_raw_parts_mut(target.at(first, 0).start, rows * n)
        };
        finish.rows(done, first);
    };
    match threads {
        1 => (0..m.div_ceil(each)).for_each(block),
        _ => (0..m.div_ceil(each)).into_par_iter().for_each(block),
    }
}

/// The product with a weight that stays quantised: threads always share the outputs, since activations are small.
fn quantized_product(x: Rows<'_>, weight: Blocks<'_>, finish: &Finish<'_>, out: &mut Fresh) {
    let (m, n) = out.shape();
    if m == 0 || n == 0 {
        return;
    }
    let target = Target { start: out.start(), stride: n };
    #[allow(unsafe_code)]
    // SAFETY: `out` has m rows of n values, and nobody else has it.
    let done = unsafe {
        quantized::multiply(quantized::Path::best(), x, weight, finish.bias, target);
        out.values(0, m)
    };
    if !matches!(finish.then, Then::Nothing) {
        for_row_blocks(done, n, |first, block| finish.rows(block, first));
    }
}

wide! {
    fn add_rows<_FMA>(block: &mut [f32], rows: &Rows<'_>, first: usize) {
        for (i, row) in block.chunks_exact_mut(rows.width).enumerate() {
            row.iter_mut().zip(rows.row(first + i)).for_each(|(x, r)| *x += r);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::testing::{assert_close, columns, contiguous, matrix, values, vector};

    fn panels(rows: &Tensor) -> Matrix {
        Matrix::from_rows(rows).unwrap()
    }

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
            let got = linear(&x, &panels(&w), b.as_ref(), epilogue).unwrap();
            assert_close(&got, &naive(&x, &w, b.as_ref(), r.as_ref()), 1e-5);
        }
    }

    /// Weights of half the bits are numbers that f32 has too: the product is the same, to the bit.
    #[test]
    fn weights_of_16_bits_multiply_as_what_they_are() {
        for dtype in [candle_core::DType::F16, candle_core::DType::BF16] {
            for rows in [1, 2, 5, 40] {
                let (x, w, b) = (matrix(rows, 61, 1), matrix(70, 61, 2), vector(70, 3));
                let stored = panels(&w).stored().host().unwrap().to_dtype(dtype).unwrap();
                let wide = Tensor::Host(stored.to_dtype(candle_core::DType::F32).unwrap());
                let halves = Matrix::new(Tensor::Host(stored), WeightLayout::Panels, 70).unwrap();
                let wide = Matrix::new(wide, WeightLayout::Panels, 70).unwrap();
                let of = |weight| linear(&x, weight, Some(&b), Epilogue::Activate(Activation::Gelu)).unwrap();
                assert_eq!(values(&of(&halves)), values(&of(&wide)), "{dtype:?}, {rows} rows");
                let numbers = [69u32, 0, 16];
                assert_eq!(values(&halves.rows(&numbers).unwrap()), values(&wide.rows(&numbers).unwrap()));
            }
        }
    }

    #[test]
    fn the_activation_comes_after_the_bias() {
        let (x, w, b) = (matrix(5, 7, 1), matrix(9, 7, 2), vector(9, 3));
        let got = linear(&x, &panels(&w), Some(&b), Epilogue::Activate(Activation::Relu)).unwrap();
        let want: Vec<f64> = naive(&x, &w, Some(&b), None).into_iter().map(|v| v.max(0.0)).collect();
        assert_close(&got, &want, 1e-5);
    }

    #[test]
    fn the_norm_comes_after_the_residual() {
        let (x, w, r) = (matrix(40, 30, 1), matrix(33, 30, 2), matrix(40, 33, 3));
        let norm = LayerNorm { weight: vector(33, 4), bias: vector(33, 5), eps: 1e-5 };
        let got = linear(&x, &panels(&w), None, Epilogue::AddNorm(&r, &norm)).unwrap();
        let summed = linear(&x, &panels(&w), None, Epilogue::Add(&r)).unwrap();
        assert_close(&got, &values(&crate::ops::layer_norm(&summed, &norm).unwrap()), 1e-6);
        let other = LayerNorm { weight: vector(30, 4), ..norm };
        assert!(linear(&x, &panels(&w), None, Epilogue::AddNorm(&r, &other)).is_err());
    }

    #[test]
    fn strided_inputs_are_read_in_place() {
        let wide = matrix(6, 20, 4);
        let (x, w) = (columns(&wide, 3, 11), matrix(20, 11, 5).narrow_rows(2, 8).unwrap());
        let want = naive(&contiguous(&x), &contiguous(&w), None, None);
        assert_close(&linear(&x, &panels(&w), None, Epilogue::None).unwrap(), &want, 1e-5);
    }

    #[test]
    fn a_large_product_is_the_same_to_the_bit_on_one_thread_and_on_several() {
        for rows in [10, 130] {
            let (x, w, b) = (matrix(rows, 457, 6), matrix(300, 457, 7), vector(300, 8));
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let run = || linear(&x, &panels(&w), Some(&b), Epilogue::Activate(Activation::Gelu)).unwrap();
                values(&pool.install(run))
            };
            assert_eq!(on(3), on(1));
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let x = matrix(2, 3, 1);
        assert!(linear(&x, &panels(&matrix(4, 5, 1)), None, Epilogue::None).is_err());
        assert!(linear(&x, &panels(&matrix(4, 3, 1)), Some(&vector(5, 1)), Epilogue::None).is_err());
        assert!(linear(&x, &panels(&matrix(4, 3, 1)), None, Epilogue::Add(&matrix(1, 4, 1))).is_err());
        assert!(linear(&x, &panels(&matrix(4, 3, 1)), None, Epilogue::Add(&matrix(4, 2, 1))).is_err());
        assert!(
            linear(&Tensor::Host(x.host().unwrap().t().unwrap()), &panels(&matrix(4, 2, 1)), None, Epilogue::None)
                .is_err()
        );
    }

    #[test]
    fn no_rows_give_no_rows() {
        let x = Tensor::from_vec(Vec::<f32>::new(), (0, 3), &crate::ops::Device::Cpu).unwrap();
        assert_eq!(linear(&x, &panels(&matrix(4, 3, 1)), None, Epilogue::None).unwrap().dims(), [0, 4]);
    }
}
