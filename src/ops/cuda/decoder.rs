//! What a decoder is made of beside products: rows of tables, norms, heads that go into the cache, attention to it.

use candle_core::{DType, Result, bail};

use super::kernels::Kernel;
use super::launch::{Arguments, Shape};
use super::linear::kind;
use super::paged::{Cache, Planned};
use super::quantized::Quantized;
use super::{Tensor, failed};
use crate::ops::{Activation, KvSpec, Matrix, RmsNorm};

impl Planned {
    /// A table's row for each of the step's tokens, which were held against it or were told by a step whose logits are as many: `[rows, width]`.
    pub(in crate::ops) fn embed(&self, table: &Matrix) -> Result<Tensor> {
        let (rows, ids) = (self.step.rows, self.at(self.step.ids));
        if let Some(quantized) = Quantized::of(table)? {
            return quantized.take_rows((ids, rows), self.dtype, &self.turns);
        }
        let table = table.stored().on_gpu("a table")?;
        let (_, width) = table.matrix("a table", table.dtype())?;
        let out = self.turns.beside(&[rows, width], table.dtype())?;
        gather((table, width), (ids, rows), &out)?;
        Ok(out)
    }

    /// The rows of `x` of which logits are wanted, so many.
    pub(in crate::ops) fn take_wanted(&self, x: &Tensor, wanted: usize) -> Result<Tensor> {
        let (rows, width) = x.matrix("rows to take from", x.dtype())?;
        if rows != self.step.rows {
            bail!("{rows} rows of a step of {}", self.step.rows);
        }
        let out = x.beside(&[wanted, width], x.dtype())?;
        gather((x, width), (self.at(self.step.wanted), wanted), &out)?;
        Ok(out)
    }
}

/// `numbers`: where so many are.
fn gather((table, width): (&Tensor, usize), (numbers, count): (u64, usize), out: &Tensor) -> Result<()> {
    let arguments = Arguments::new(table).address(numbers).size(width).address(out.address());
    // `take_rows_T(const T*, const unsigned*, int, T*)`
    run(out, (Kernel::TakeRows, table.dtype()), Shape::block_each(count), arguments)
}

pub(in crate::ops) fn rms_norm(x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
    let dtype = x.dtype();
    let (rows, width) = x.matrix("an RMS norm's input", dtype)?;
    let weight = weight_of(norm, width, dtype)?;
    let out = x.beside(x.dims(), dtype)?;
    let arguments = Arguments::new(x).size(rows).size(width).address(weight).float(norm.eps as f32);
    // `rms_norm_T(const T*, int, int, const T*, float, T*)`
    run(x, (Kernel::RmsNorm, dtype), Shape::team_each(rows, width, dtype), arguments.address(out.address()))?;
    Ok(out)
}

fn weight_of(norm: &RmsNorm, width: usize, dtype: DType) -> Result<u64> {
    norm.weight.on_gpu("an RMS norm's weight")?.vector("an RMS norm's weight", width, dtype)
}

/// Both are columns of one product, the gate's first and then as many to be gated.
pub(in crate::ops) fn gated(gate: &Tensor, up: &Tensor, by: Activation) -> Result<Tensor> {
    let dtype = gate.dtype();
    let (rows, width, stride) = gate.strided("a gate", dtype)?;
    side_by_side(&[gate, up])?;
    if up.dims() != gate.dims() || stride != 2 * width {
        bail!("a gate of {:?} for {:?}, in rows of {stride}", gate.dims(), up.dims());
    }
    let out = gate.beside(&[rows, width], dtype)?;
    let arguments = Arguments::new(gate).size(rows).size(width).size(kind(by)).address(out.address());
    // `gated_T(const T*, int, int, int, T*)`
    run(gate, (Kernel::Gated, dtype), Shape::each(rows * width), arguments)?;
    Ok(out)
}

/// An error unless they are columns of one matrix, one after the other; values from a row of it to the next.
fn side_by_side(parts: &[&Tensor]) -> Result<usize> {
    let (first, rest) = match parts {
        [first, rest @ ..] => (first, rest),
        [] => bail!("columns of nothing"),
    };
    let (rows, columns, stride) = first.strided("columns", first.dtype())?;
    let mut next = first.address() + (columns * first.dtype().size_in_bytes()) as u64;
    for part in rest {
        let (found, columns, of_it) = part.strided("columns", first.dtype())?;
        if (found, of_it, part.address()) != (rows, stride, next) {
            bail!("parts of a product that do not lie side by side");
        }
        next += (columns * part.dtype().size_in_bytes()) as u64;
    }
    Ok(stride)
}

/// `q`, `k` and `v` are columns of one product. Keys and values go into a layer of the cache, queries come back.
pub(in crate::ops) fn place_heads(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    norms: Option<(&RmsNorm, &RmsNorm)>,
    planned: &Planned,
    (cache, spec, layer): (&Cache, &KvSpec, usize),
) -> Result<Tensor> {
    let (dtype, d) = (q.dtype(), spec.head_dim);
    let stride = side_by_side(&[q, k, v])?;
    let (rows, width, _) = q.strided("queries", dtype)?;
    let (_, of_keys, _) = k.strided("keys", dtype)?;
    if rows != planned.turns.dims()[0] || k.dims() != v.dims() {
        bail!("{:?} queries, {:?} keys and {:?} values for {:?}", q.dims(), k.dims(), v.dims(), planned.turns.dims());
    }
    if of_keys != spec.heads * d
        || width == 0
        || !width.is_multiple_of(d)
        || layer >= spec.layers
        || dtype != spec.dtype
    {
        bail!("rows of {width} and {of_keys} do not fit layer {layer} of {spec:?}");
    }
    let (q_weight, k_weight, eps) = match norms {
        Some((q, k)) if q.eps == k.eps => (weight_of(q, d, dtype)?, weight_of(k, d, dtype)?, q.eps),
        Some((q, k)) => bail!("heads that are normalised with {} and {}", q.eps, k.eps),
        None => (0, 0, 0.0),
    };
    let out = q.beside(&[rows, width], dtype)?;
    let arguments = Arguments::new(q).size(stride).size(rows).size(width / d).size(spec.heads).size(d);
    let arguments = arguments.address(q_weight).address(k_weight).float(eps as f32).address(planned.turns.address());
    let arguments = arguments.address(planned.at(planned.step.places)).address(cache.layer(layer));
    // `place_heads_T(const T*, int, int, int, int, int, const T*, const T*, float, const float*, const unsigned*, T*, T*)`;
    // places are of blocks that the cache has, or nowhere.
    let shape = Shape::halves(rows * (width + 2 * of_keys), dtype);
    run(q, (Kernel::PlaceHeads, dtype), shape, arguments.address(out.address()))?;
    Ok(out)
}

/// `q`: `[rows, heads * head_dim]`, of heads and with a window that the step was planned for.
pub(in crate::ops) fn paged_attention(
    q: &Tensor,
    planned: &Planned,
    window: Option<usize>,
    (cache, spec, layer): (&Cache, &KvSpec, usize),
) -> Result<Tensor> {
    let (dtype, d, step) = (q.dtype(), spec.head_dim, &planned.step);
    let (rows, width) = q.matrix("queries", dtype)?;
    let Some((_, launches)) = step.launches.iter().find(|(planned, _)| *planned == window) else {
        bail!("a window of {window:?}, which the step was not planned for");
    };
    let group = step.group;
    if rows != planned.turns.dims()[0] || width != group * spec.heads * d || layer >= spec.layers || dtype != spec.dtype
    {
        bail!("[{rows}, {width}] queries for layer {layer} of {spec:?}, {group} for each head");
    }
    let out = q.beside(&[rows, width], dtype)?;
    let window = window.map_or(i32::MAX as usize, |window| window.clamp(1, i32::MAX as usize));
    for launch in launches {
        let arguments = Arguments::new(q).address(cache.layer(layer)).address(planned.at(step.runs));
        let arguments = arguments.address(planned.at(0)).address(planned.at(launch.items));
        let arguments = arguments.size(group).size(d).size(window).float(1.0 / (d as f32).sqrt()).size(launch.kept);
        let arguments = arguments.address(planned.parts.address()).address(planned.at(0));
        // `paged_W_T(const T*, const T*, const unsigned*, const unsigned*, const unsigned*, int, int, int, float, int, float*,
        // unsigned*, T*)`; tables are of blocks that the cache has, and of as many rows and parts as were planned. Where blocks and
        // counts begin is said from the table's beginning on.
        let shape = Shape::paged(launch.kernel, launch.blocks, spec.heads, d);
        run(q, (launch.kernel, dtype), shape, arguments.address(out.address()))?;
    }
    Ok(out)
}

/// Queues a kernel on `x`'s stream. Callers in this file hold shapes against each other first, and write to new tensors or to the
/// cache, which this stream alone uses.
fn run(x: &Tensor, (kernel, dtype): (Kernel, DType), shape: Shape, arguments: Arguments) -> Result<()> {
    let function = x.gpu().kernels.get(kernel, dtype).map_err(failed)?;
    #[allow(unsafe_code)]
    // SAFETY: the arguments are the kernel's, as is said where each is called, of tensors of the shapes that were checked.
    unsafe {
        x.launch(function, shape, arguments)
    }
}
