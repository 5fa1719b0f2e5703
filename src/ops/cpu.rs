//! What the CPU side of every op needs: checked views of storages, and rows spread over the current pool.

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

/// Values that one task should touch before another thread is worth waking.
const GRAIN: usize = 16 * 1024;

/// A matrix whose rows are contiguous: row `i` starts at `i * stride`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T = f32> {
    pub(super) data: &'a [T],
    pub(super) count: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl<'a, T: WithDType> Rows<'a, T> {
    /// Reads a vector (one row) or a matrix; anything else, and values that are not adjacent, are refused.
    pub(super) fn of(storage: &'a CpuStorage, layout: &Layout, what: &str) -> Result<Self> {
        let (count, width, stride, step) = match (layout.dims(), layout.stride()) {
            (&[width], &[step]) => (1, width, width, step),
            (&[count, width], &[stride, step]) => (count, width, stride, step),
            (dims, _) => bail!("{what} has shape {dims:?}, expected a vector or a matrix"),
        };
        if width > 1 && step != 1 {
            bail!("{what} has rows that are not contiguous: {layout:?}");
        }
        let values = T::cpu_storage_as_slice(storage)?;
        let start = layout.start_offset();
        let len = if count == 0 || width == 0 { 0 } else { (count - 1) * stride + width };
        match values.get(start..start + len) {
            Some(data) => Ok(Rows { data, count, width, stride }),
            None => bail!("{what} reaches outside its storage: {layout:?}"),
        }
    }

    pub(super) fn row(&self, index: usize) -> &'a [T] {
        &self.data[index * self.stride..][..self.width]
    }
}

/// Runs `f` on a CPU tensor's rows.
pub(super) fn with_rows<R>(tensor: &Tensor, what: &str, f: impl FnOnce(Rows<'_>) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(Rows::of(storage, layout, what)?),
        _ => bail!("{what} is not on the same device"),
    }
}

/// Like [`with_rows`] for a parameter vector of exactly `width` values.
pub(super) fn with_vector<R>(
    tensor: &Tensor,
    (width, what): (usize, &str),
    f: impl FnOnce(&[f32]) -> Result<R>,
) -> Result<R> {
    with_rows(tensor, what, |rows| {
        if rows.count != 1 || rows.width != width {
            bail!("{what} has shape {:?}, expected [{width}]", tensor.dims());
        }
        f(rows.row(0))
    })
}

/// An op's result on the CPU.
pub(super) fn output(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// Calls `f(first_row, rows)` for blocks of whole rows of `width` values, over the current pool when there is
/// enough of them.
pub(super) fn for_row_blocks(values: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if values.is_empty() {
        return;
    }
    let block = GRAIN.div_ceil(width);
    if values.len() <= block * width || rayon::current_num_threads() == 1 {
        f(0, values);
    } else {
        values.par_chunks_mut(block * width).enumerate().for_each(|(i, rows)| f(i * block, rows));
    }
}

/// Refuses anything but f32: on a CPU, weights are widened when they are loaded.
pub(super) fn require_f32(tensor: &Tensor, what: &str) -> Result<()> {
    match tensor.dtype() {
        DType::F32 => Ok(()),
        other => bail!("{what} is {other:?}, expected F32"),
    }
}
