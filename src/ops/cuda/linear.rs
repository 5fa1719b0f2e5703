//! `x · weightᵀ + bias`, and what follows it.

use candle_core::{DType, Result, bail};

use super::encoder::layer_norm;
use super::kernels::Kernel;
use super::launch::{Arguments, Shape};
use super::product::{Compute, Product, Then};
use super::quantized::{MOST_ROWS, Quantized};
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

/// The products of layers with the same input, each with its bias, as columns of one result: one after the other.
pub(in crate::ops) fn linear_side_by_side(
    x: &Tensor,
    layers: &[(&Matrix, Option<&crate::ops::Tensor>)],
) -> Result<Vec<Tensor>> {
    let (rows, _) = x.matrix("a linear layer's input", x.dtype())?;
    let all = x.beside(&[rows, layers.iter().map(|(weight, _)| weight.out_features()).sum()], x.dtype())?;
    let mut first = 0;
    let part = |&(weight, bias): &(&Matrix, Option<&crate::ops::Tensor>)| {
        let out = all.narrow_columns(first, weight.out_features())?;
        first += weight.out_features();
        let bias = bias.map(|bias| bias.on_gpu("a bias")).transpose()?;
        let then = if bias.is_some() { Then::Bias } else { Then::Nothing };
        product_to(x, Weight::of(weight)?, &After { bias, residual: None, then, result: x.dtype() }, &out)?;
        Ok(out)
    };
    layers.iter().map(part).collect()
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
    kept: Kept<'a>,
    in_tf32: bool,
    of_steps: bool,
}

#[derive(Clone, Copy)]
enum Kept<'a> {
    Rows(&'a Tensor),
    Quantized(Quantized<'a>),
}

impl<'a> Weight<'a> {
    fn of(matrix: &'a Matrix) -> Result<Self> {
        let kept = match Quantized::of(matrix)? {
            Some(quantized) => Kept::Quantized(quantized),
            None => Kept::Rows(matrix.stored().on_gpu("a weight")?),
        };
        Ok(Weight { kept, in_tf32: matrix.is_in_tf32(), of_steps: matrix.is_of_steps() })
    }

    /// Outputs and inputs.
    fn shape(&self, dtype: DType) -> Result<(usize, usize)> {
        match self.kept {
            Kept::Rows(rows) => rows.flattened_matrix("a weight", dtype),
            Kept::Quantized(quantized) => Ok((quantized.columns, quantized.inner)),
        }
    }
}

fn product(x: &Tensor, by: Weight<'_>, after: &After<'_>) -> Result<Tensor> {
    let (rows, _) = x.matrix("a linear layer's input", x.dtype())?;
    let out = x.beside(&[rows, by.shape(x.dtype())?.0], after.result)?;
    product_to(x, by, after, &out)?;
    Ok(out)
}

/// The same to where it shall be, which may be columns of wider rows where no residual is added.
fn product_to(x: &Tensor, by: Weight<'_>, after: &After<'_>, out: &Tensor) -> Result<()> {
    let &After { bias, residual, then, result } = after;
    let dtype = x.dtype();
    let (rows, inner) = x.matrix("a linear layer's input", dtype)?;
    let (columns, features) = by.shape(dtype)?;
    if features != inner {
        bail!("a linear layer for {features} features was given {inner}");
    }
    let bias = bias.map(|bias| bias.vector("a bias", columns, dtype)).transpose()?;
    if let Some(residual) = residual
        && residual.matrix("a residual", result)? != (rows, columns)
    {
        bail!("a residual is {:?}, the result is [{rows}, {columns}]", residual.dims());
    }
    let (of_rows, of_columns, stride) = out.strided("a product", result)?;
    if (of_rows, of_columns) != (rows, columns) || (residual.is_some() && stride != columns) {
        bail!("a product of [{rows}, {columns}] for {:?} in rows of {stride}", out.dims());
    }
    let is_few = is_for_few_rows((x, by), (rows, inner), after);
    // A bias that something else adds afterwards is not this product's.
    let added = (bias.filter(|_| then == Then::Bias).unwrap_or(0), residual.map_or(0, Tensor::address));
    let product = Product {
        dtype,
        result,
        compute: if by.in_tf32 && dtype == DType::F32 { Compute::Tf32 } else { Compute::Full },
        rows,
        inner,
        columns,
        x: x.address(),
        weight: 0,
        bias: bias.unwrap_or(0),
        residual: residual.map(Tensor::address),
        then,
        out: out.address(),
        stride,
    };
    match by.kept {
        Kept::Quantized(weight) if is_few => weight.multiply((x, rows), added, (out, stride)),
        Kept::Quantized(weight) => spelled_out(x, weight, &product),
        Kept::Rows(weight) if is_few && stride == columns => few_rows((x, rows, inner), (weight, columns), added, out),
        Kept::Rows(weight) => {
            #[allow(unsafe_code)]
            // SAFETY: the shapes were just held against each other, and the result is new.
            unsafe {
                x.multiply(&Product { weight: weight.address(), ..product })
            }
        }
    }
}

/// A product by a weight that is spelled out for it, some outputs at a time.
fn spelled_out(x: &Tensor, weight: Quantized<'_>, all: &Product) -> Result<()> {
    for outputs in weight.turns(all.dtype) {
        let spelled = weight.spelled_out(outputs.clone(), x)?;
        let from = |address: u64, each: DType| address + (outputs.start * each.size_in_bytes()) as u64;
        let product = Product {
            columns: outputs.len(),
            weight: spelled.address(),
            bias: from(all.bias, all.dtype),
            residual: all.residual.map(|residual| from(residual, all.result)),
            out: from(all.out, all.result),
            ..*all
        };
        #[allow(unsafe_code)]
        // SAFETY: as for the whole, of which these are columns. What is spelled out next is queued after this has read it.
        unsafe { x.multiply(&product) }?;
    }
    Ok(())
}

/// Whether a product is for kernels of few rows, which wait for their weights alone. A row of theirs is the same, to the bit, whatever
/// other rows there are: products of cublasLt choose by their number how they sum.
fn is_for_few_rows((x, by): (&Tensor, Weight<'_>), (rows, inner): (usize, usize), after: &After<'_>) -> bool {
    let aligned = |tensor: &Tensor| tensor.address().is_multiple_of(16);
    let plain = matches!(after.then, Then::Nothing | Then::Bias);
    let rounds = after.residual.is_none() || after.result == x.dtype();
    let fits = match by.kept {
        Kept::Rows(weight) => x.dtype() != DType::F32 && inner > 0 && inner.is_multiple_of(8) && aligned(weight),
        Kept::Quantized(_) => true,
    };
    by.of_steps && (1..=MOST_ROWS).contains(&rows) && plain && rounds && fits && aligned(x)
}

/// Bias and residual as addresses, which may be null.
fn few_rows(
    (x, rows, inner): (&Tensor, usize, usize),
    (weight, columns): (&Tensor, usize),
    (bias, residual): (u64, u64),
    out: &Tensor,
) -> Result<()> {
    let kernel = match (rows, out.dtype() == DType::F32) {
        (..=8, false) => Kernel::Rows8,
        (9..=16, false) => Kernel::Rows16,
        (_, false) => Kernel::Rows32,
        (..=8, true) => Kernel::Rows8ToF32,
        (9..=16, true) => Kernel::Rows16ToF32,
        (_, true) => Kernel::Rows32ToF32,
    };
    let arguments = Arguments::new(x).size(rows).size(inner).address(weight.address()).size(columns);
    let arguments = arguments.address(bias).address(residual);
    let function = x.gpu().kernels.get(kernel, x.dtype()).map_err(failed)?;
    #[allow(unsafe_code)]
    // SAFETY: `rows_N_T(const T*, int, int, const T*, int, const T*, const T*, R*)`; the caller held the shapes against each other,
    // addresses are aligned, and the result is new.
    unsafe {
        x.launch(function, Shape::outputs(columns), arguments.address(out.address()))
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
