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
    let in_tf32 = weight.is_in_tf32();
    let weight = weight.stored().on_gpu("a weight")?;
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
    let out = product(x, (weight, in_tf32), &after)?;
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
    product(x, (weight.stored().on_gpu("a weight")?, weight.is_in_tf32()), &after)
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

fn product(x: &Tensor, (weight, in_tf32): (&Tensor, bool), after: &After<'_>) -> Result<Tensor> {
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
