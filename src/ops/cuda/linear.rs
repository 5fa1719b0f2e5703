//! `x · weightᵀ + bias`, and what follows it.

use candle_core::{DType, Result, bail};

use super::blas::{Compute, Product, Then};
use super::encoder::layer_norm;
use super::kernels::{Arguments, Kernel, Shape};
use super::{Tensor, failed};
use crate::ops::{Activation, Epilogue, Matrix};

pub(in crate::ops) fn linear(
    x: &Tensor,
    weight: &Matrix,
    bias: Option<&crate::ops::Tensor>,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    let weight = Weight::of(weight)?;
    let bias = bias.map(|bias| bias.on_gpu("a bias")).transpose()?;
    let residual = match epilogue {
        Epilogue::Add(residual) | Epilogue::AddNorm(residual, _) => Some(residual.on_gpu("a residual")?),
        Epilogue::None | Epilogue::Activate(_) => None,
    };
    let fused = match epilogue {
        Epilogue::Activate(by) => fused(by, x.dtype()).filter(|_| bias.is_some()),
        _ => Some(if bias.is_some() { Then::Bias } else { Then::Nothing }),
    };
    let after = After { bias, residual, then: fused.unwrap_or(Then::Nothing), result: x.dtype() };
    let out = product(x, weight, &after)?;
    match epilogue {
        Epilogue::Activate(by) if fused.is_none() => activate(&out, bias, by)?,
        Epilogue::AddNorm(_, norm) => return layer_norm(&out, norm),
        _ => {}
    }
    Ok(out)
}

/// The product alone, its sums as they are: f32.
pub(in crate::ops) fn linear_in_f32(x: &Tensor, weight: &Matrix) -> Result<Tensor> {
    let after = After { bias: None, residual: None, then: Then::Nothing, result: DType::F32 };
    product(x, Weight::of(weight)?, &after)
}

/// Whether the product itself can end with an activation. The epilogue for GELU is its tanh form, and takes up to twice the
/// product's time with f32 (measured on an H100).
///
/// In f16 and bf16 that form stands for the other one as well: it is given the product before it is rounded, and the two forms
/// differ by at most 4.7e-4, which is less than that rounding does to whatever comes after it. For inputs of any spread from 0.5
/// to 3 the result is nearer to the truth than the exact form of the rounded product: by 12 to 38 % in the root of the mean square
/// for bf16, 4 to 13 % for f16.
fn fused(by: Activation, dtype: DType) -> Option<Then> {
    match by {
        Activation::Gelu | Activation::GeluTanh if dtype != DType::F32 => Some(Then::BiasGeluTanh),
        Activation::Relu => Some(Then::BiasRelu),
        _ => None,
    }
}

/// What a product ends with, and the format of its result.
struct After<'a> {
    bias: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
    then: Then,
    result: DType,
}

/// A weight, and how it may be multiplied by.
#[derive(Clone, Copy)]
struct Weight<'a> {
    stored: &'a Tensor,
    in_tf32: bool,
    of_steps: bool,
}

impl<'a> Weight<'a> {
    fn of(matrix: &'a Matrix) -> Result<Self> {
        let stored = matrix.stored().on_gpu("a weight")?;
        Ok(Weight { stored, in_tf32: matrix.is_in_tf32(), of_steps: matrix.is_of_steps() })
    }
}

fn product(x: &Tensor, by: Weight<'_>, after: &After<'_>) -> Result<Tensor> {
    let Weight { stored: weight, in_tf32, .. } = by;
    let &After { bias, residual, then, result } = after;
    let dtype = x.dtype();
    let (rows, inner) = x.matrix("a linear layer's input", dtype)?;
    let (columns, features) = weight.flattened_matrix("a weight", dtype)?;
    if features != inner {
        bail!("a linear layer for {features} features was given {inner}");
    }
    let bias = bias.map(|bias| bias.vector("a bias", columns, dtype)).transpose()?;
    if let Some(residual) = residual
        && residual.matrix("a residual", result)? != (rows, columns)
    {
        bail!("a residual is {:?}, the result is [{rows}, {columns}]", residual.dims());
    }
    let out = x.beside(&[rows, columns], result)?;
    if let Some(kernel) = for_few_rows((x, by), (rows, inner), after) {
        let arguments = Arguments::new(x).size(rows).size(inner).address(weight.address()).size(columns);
        // A bias that something else adds afterwards is not this product's.
        let bias = bias.filter(|_| then == Then::Bias).unwrap_or(0);
        let arguments = arguments.address(bias).address(residual.map_or(0, Tensor::address));
        let function = x.gpu().kernels.get(kernel, dtype).map_err(failed)?;
        #[allow(unsafe_code)]
        // SAFETY: `rows_N_T(const T*, int, int, const T*, int, const T*, const T*, R*)`; the shapes were just held against each
        // other, addresses are aligned, and the result is new.
        unsafe { x.launch(function, Shape::outputs(columns), arguments.address(out.address())) }?;
        return Ok(out);
    }
    let product = Product {
        dtype,
        result,
        compute: if in_tf32 && dtype == DType::F32 { Compute::Tf32 } else { Compute::Full },
        rows,
        inner,
        columns,
        x: x.address(),
        weight: weight.address(),
        bias: bias.unwrap_or(0),
        residual: residual.map(Tensor::address),
        then,
        out: out.address(),
    };
    #[allow(unsafe_code)]
    // SAFETY: the shapes were just held against each other, and the result is new.
    unsafe { x.multiply(&product) }?;
    Ok(out)
}

/// The kernel for a product of few rows, which waits for its weights alone, where there is one. A row of it is the same, to the
/// bit, whatever other rows there are: products of cublasLt choose by their number how they sum.
fn for_few_rows((x, by): (&Tensor, Weight<'_>), (rows, inner): (usize, usize), after: &After<'_>) -> Option<Kernel> {
    let aligned = |tensor: &Tensor| tensor.address().is_multiple_of(16);
    let fits = by.of_steps && inner > 0 && inner.is_multiple_of(8) && aligned(x) && aligned(by.stored);
    let plain = matches!(after.then, Then::Nothing | Then::Bias);
    let in_f32 = after.result == DType::F32;
    if x.dtype() == DType::F32 || !fits || !plain || (in_f32 && after.residual.is_some()) {
        return None;
    }
    match (rows, in_f32) {
        (1..=8, false) => Some(Kernel::Rows8),
        (9..=16, false) => Some(Kernel::Rows16),
        (17..=32, false) => Some(Kernel::Rows32),
        (1..=8, true) => Some(Kernel::Rows8ToF32),
        (9..=16, true) => Some(Kernel::Rows16ToF32),
        (17..=32, true) => Some(Kernel::Rows32ToF32),
        _ => None,
    }
}

/// Adds a bias and applies an activation, in place.
fn activate(x: &Tensor, bias: Option<&Tensor>, by: Activation) -> Result<()> {
    let (rows, width) = x.matrix("what is activated", x.dtype())?;
    let start = Arguments::new(x);
    let (kernel, arguments) = match bias {
        Some(bias) => {
            let bias = bias.vector("a bias", width, x.dtype())?;
            (Kernel::BiasActivate, start.address(bias).size(rows).size(width))
        }
        None => (Kernel::Activate, start.count(x.count())),
    };
    let arguments = arguments.size(kind(by));
    let function = x.gpu().kernels.get(kernel, x.dtype()).map_err(failed)?;
    #[allow(unsafe_code)]
    // SAFETY: `activate_T(T*, long long, int)` or `bias_activate_T(T*, const T*, int, int, int)`, of this tensor.
    unsafe {
        x.launch(function, Shape::each(x.count()), arguments)
    }
}

/// As `kernels/activate.cu` numbers them.
pub(super) fn kind(by: Activation) -> usize {
    match by {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::QuickGelu => 2,
        Activation::Relu => 3,
        Activation::Silu => 4,
        Activation::Tanh => 5,
        Activation::Sigmoid => 6,
    }
}
