//! What the CPU side of every op needs: checked views of storages, and rows spread over the current pool.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Storage, WithDType, bail};
use parking_lot::RwLockReadGuard;
use rayon::prelude::*;

use super::tensor::Tensor;

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
        // Nothing begins nowhere: columns of no rows may start behind them.
        let (start, len) = match count == 0 || width == 0 {
            true => (0, 0),
            false => (layout.start_offset(), (count - 1) * stride + width),
        };
        match values.get(start..start + len) {
            Some(data) => Ok(Rows { data, count, width, stride }),
            None => bail!("{what} reaches outside its storage: {layout:?}"),
        }
    }

    pub(super) fn row(&self, index: usize) -> &'a [T] {
        &self.data[index * self.stride..][..self.width]
    }
}

/// A CPU tensor that is being read; what is taken from it ends with it.
pub(super) struct Reading<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    layout: &'a Layout,
    what: &'static str,
}

impl<'a> Reading<'a> {
    /// `what`: its name in errors.
    pub(super) fn of(tensor: &'a Tensor, what: &'static str) -> Result<Self> {
        let (storage, layout) = tensor.host()?.storage_and_layout();
        Ok(Reading { storage, layout, what })
    }

    pub(super) fn rows(&self) -> Result<Rows<'_>> {
        match &*self.storage {
            Storage::Cpu(storage) => Rows::of(storage, self.layout, self.what),
            _ => bail!("{} is not on the same device", self.what),
        }
    }

    /// A parameter vector of exactly `width` values.
    pub(super) fn vector(&self, width: usize) -> Result<&[f32]> {
        let rows = self.rows()?;
        if rows.count != 1 || rows.width != width {
            bail!("{} has shape {:?}, expected [{width}]", self.what, self.layout.dims());
        }
        Ok(rows.row(0))
    }
}

/// All values of a contiguous tensor, whatever its shape.
pub(super) fn values_of<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout, what: &str) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&T::cpu_storage_as_slice(storage)?[from..to]),
        None => bail!("{what} is not contiguous: {layout:?}"),
    }
}

/// The same of one that is being read.
pub(super) fn all_values<'a, T: WithDType>(reading: &'a Reading<'_>) -> Result<&'a [T]> {
    match &*reading.storage {
        Storage::Cpu(storage) => values_of(storage, reading.layout, reading.what),
        _ => bail!("{} is not on the same device", reading.what),
    }
}

/// Room for a result that will be written whole, so that it need not be zeroed first.
pub(super) struct Fresh {
    values: Vec<f32>,
    shape: (usize, usize),
}

impl Fresh {
    /// For `[rows, columns]`.
    pub(super) fn new(shape: (usize, usize)) -> Self {
        Fresh { values: Vec::with_capacity(shape.0 * shape.1), shape }
    }

    pub(super) fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Where it begins: there is room for all of it.
    pub(super) fn start(&mut self) -> *mut f32 {
        self.values.as_mut_ptr()
    }

    /// Rows that were written.
    ///
    /// # Safety
    /// These rows were written.
    #[allow(unsafe_code)]
    pub(super) unsafe fn values(&mut self, first: usize, rows: usize) -> &mut [f32] {
        let columns = self.shape.1;
        assert!(first + rows <= self.shape.0);
        // SAFETY: inside the capacity, and written, says the caller.
        unsafe { std::slice::from_raw_parts_mut(self.values.as_mut_ptr().add(first * columns), rows * columns) }
    }

    /// The result.
    ///
    /// # Safety
    /// Every row was written.
    #[allow(unsafe_code)]
    pub(super) unsafe fn into_output(mut self) -> (CpuStorage, Shape) {
        // SAFETY: the capacity is at least this, and all of it was written, says the caller.
        unsafe { self.values.set_len(self.shape.0 * self.shape.1) };
        output(self.values, self.shape)
    }
}

thread_local! {
    /// Whether the current thread has its part of a batch to itself.
    static SERIAL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with every op on the calling thread: for one of several parts of a batch that run side by side.
pub fn serially<R>(work: impl FnOnce() -> R) -> R {
    /// Puts back what was, also when the work panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            SERIAL.set(self.0);
        }
    }
    let _restore = Restore(SERIAL.replace(true));
    work()
}

/// Threads that an op may spread over: those of the current pool, or one inside [`serially`].
pub fn threads() -> usize {
    if SERIAL.get() { 1 } else { rayon::current_num_threads() }
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
    if values.len() <= block * width || threads() == 1 {
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
