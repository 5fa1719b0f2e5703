//! Weights that stay quantised on a GPU: how they come to lie there, and what is made of them.
//!
//! `kernels/quantized.cuh` says how they lie. Products of few rows read them as they are; for those of many, and where a product ends
//! with an activation, they are spelled out first, some outputs at a time, so that what is spelled out is small and still in the
//! device's cache when cublasLt reads it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::PoisonError;

use candle_core::{DType, Result, bail};
use cudarc::driver::sys::CUfunction;

use super::finite::Mark;
use super::kernels::{FORMATS, suffix};
use super::launch::{Arguments, Shape, launch};
use super::{Gpu, Tensor, failed};
use crate::device::cuda::Buffer;
use crate::error::{self, Error};
use crate::ops::quantized::spelled_outputs;
use crate::ops::{Matrix, PANEL, QuantFormat, WeightLayout};

/// Rows of products that read quantised weights as they are.
///
/// A weight of Q4_0 is 0.56 bytes of the device's memory either way, 0.17 ps of 3.4 TB/s. Spelled out it is two bytes more that are
/// written to the cache and then read from it, 0.7 ps of some 5.5 TB/s, before the product computes anything. The kernel's blocks
/// read all of x for sixteen outputs, which is `rows / 8` bytes of the cache a weight: four, and as long, for 32 rows. So they meet
/// there or a little beyond; no GPU has said yet where. Products of other weights are left to cublasLt from there on too.
pub(super) const MOST_ROWS: usize = 32;

/// What a kernel does with a weight of some format for numbers of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Rows8,
    Rows32,
    SpellOut,
    TakeRows,
}

/// Its kernels.
#[derive(Debug, Default)]
pub(super) struct Functions {
    arrange: HashMap<QuantFormat, CUfunction>,
    others: HashMap<(Work, QuantFormat, DType), CUfunction>,
}

impl Functions {
    const FILES: [&'static str; 3] = ["arrange", "quantized_rows", "spell_out"];

    /// `find`: a kernel of a file, by name.
    pub(super) fn load(find: impl Fn(&str, &str) -> error::Result<CUfunction>) -> error::Result<Functions> {
        let [of_arrange, of_rows, of_spelling] = Self::FILES;
        let (mut arrange, mut others) = (HashMap::new(), HashMap::new());
        for format in QuantFormat::ALL {
            let name = format.name().to_lowercase();
            arrange.insert(format, find(of_arrange, &format!("arrange_{name}"))?);
            for dtype in FORMATS {
                let mut add = |work, file, stem: &str| {
                    let found = find(file, &format!("{stem}_{name}_{}", suffix(dtype).unwrap_or_default()))?;
                    others.insert((work, format, dtype), found);
                    error::Result::Ok(())
                };
                add(Work::Rows8, of_rows, "rows_8")?;
                if dtype != DType::F32 {
                    add(Work::Rows32, of_rows, "rows_32")?;
                }
                add(Work::SpellOut, of_spelling, "spell_out")?;
                add(Work::TakeRows, of_spelling, "take_rows")?;
            }
        }
        Ok(Functions { arrange, others })
    }

    fn get(&self, work: Work, format: QuantFormat, dtype: DType) -> Result<CUfunction> {
        let found = self.others.get(&(work, format, dtype)).copied();
        let missing = || failed(Error::internal(format!("no kernel {work:?} of {format} for {}", dtype.as_str())));
        found.ok_or_else(missing)
    }
}

/// Whole blocks on their way into a weight.
#[derive(Debug, Clone, Copy)]
pub struct Arranging<'a> {
    pub format: QuantFormat,
    pub count: usize,
    /// Which block of the weight the first of them is, row by row.
    pub first: usize,
    /// Blocks of a row.
    pub each: usize,
    /// Of the whole weight.
    pub room: &'a Buffer,
    /// Set where a scale is no number.
    pub mark: Mark,
}

impl Gpu {
    /// Queues blocks, which `send` queues to the start of a buffer of the staging stream, to where they stay.
    pub fn arrange(
        &self,
        blocks: &Arranging<'_>,
        send: impl FnOnce(&Buffer) -> error::Result<()>,
    ) -> error::Result<()> {
        let &Arranging { format, count, first, each, room, mark } = blocks;
        // Nobody else's copy may come between this one and what reads it.
        let between = self.between.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = (first + count).div_ceil(each.max(1));
        let takes: usize = format.stored_packed(rows, each * format.block()).iter().product();
        if takes > room.bytes() || count * format.block_bytes() > between.bytes() {
            return Err(Error::internal(format!(
                "{count} {format} blocks from {first} on, for {} bytes",
                room.bytes()
            )));
        }
        send(&between)?;
        let function = self.kernels.quantized().arrange.get(&format).copied();
        let function = function.ok_or_else(|| Error::internal(format!("no kernel arranges {format}")))?;
        let arguments = Arguments::default().address(between.address()).size(count).count(first).size(each);
        let arguments = arguments.address(room.address()).address(mark.word).bits(mark.bit);
        #[allow(unsafe_code)]
        // SAFETY: `arrange_F(const unsigned char*, int, long long, int, unsigned char*, unsigned*, int)`, of blocks that were just
        // sent on the same stream; rows up to their last were held against the room, which nobody reads before this stream is
        // waited for.
        unsafe {
            launch(self.staging().stream(), function, Shape::each(count * format.block() / 4), arguments)
        }
    }
}

/// A weight that is kept quantised.
#[derive(Clone, Copy)]
pub(super) struct Quantized<'a> {
    stored: &'a Tensor,
    format: QuantFormat,
    pub(super) columns: usize,
    pub(super) inner: usize,
}

impl<'a> Quantized<'a> {
    /// Nothing where it is not.
    pub(super) fn of(matrix: &'a Matrix) -> Result<Option<Self>> {
        let WeightLayout::Packed(format) = matrix.layout() else { return Ok(None) };
        let stored = matrix.stored().on_gpu("a weight")?;
        let (columns, inner) = (matrix.out_features(), matrix.in_features());
        if stored.dtype() != DType::U8 || stored.dims() != format.stored_packed(columns, inner) {
            bail!("{:?} of {} is no {format} weight of [{columns}, {inner}]", stored.dims(), stored.dtype().as_str());
        }
        Ok(Some(Quantized { stored, format, columns, inner }))
    }

    /// Queues the product of at most [`MOST_ROWS`] rows with it: `bias` and `residual` may be null, `out` has `stride` values from a
    /// row to the next, f32 or what `x` is. Addresses; shapes were held against each other.
    pub(super) fn multiply(
        self,
        (x, rows): (&Tensor, usize),
        (bias, residual): (u64, u64),
        (out, stride): (&Tensor, usize),
    ) -> Result<()> {
        let dtype = x.dtype();
        let (work, most) = match (rows, dtype) {
            (..=8, _) => (Work::Rows8, 8),
            (_, DType::F32) => (Work::Rows8, 8),
            _ => (Work::Rows32, MOST_ROWS),
        };
        let arguments = Arguments::new(x).size(rows).size(self.inner).address(self.stored.address());
        let arguments = arguments.size(self.columns).address(bias).address(residual).address(out.address());
        let arguments = arguments.size(stride).size(usize::from(out.dtype() == DType::F32));
        let function = x.gpu().kernels.quantized().get(work, self.format, dtype)?;
        let shape =
            Shape { grid: (self.columns.div_ceil(PANEL) as u32, rows.div_ceil(most) as u32, 1), block: 256, shared: 0 };
        #[allow(unsafe_code)]
        // SAFETY: `rows_N_F_T(const T*, int, int, const unsigned char*, int, const T*, const T*, void*, int, int)`; the caller held
        // shapes against each other, x lies on a border of 16 bytes, and the result is new.
        unsafe {
            x.launch(function, shape, arguments)
        }
    }

    /// Outputs in turns, as many at once as are spelled out.
    pub(super) fn turns(self, dtype: DType) -> impl Iterator<Item = Range<usize>> {
        let each = spelled_outputs(self.inner, dtype);
        (0..self.columns).step_by(each).map(move |first| first..self.columns.min(first + each))
    }

    /// Some outputs, which begin with a panel, as rows of numbers beside `x`, an activation.
    pub(super) fn spelled_out(self, outputs: Range<usize>, x: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        let out = x.beside(&[outputs.len(), self.inner], dtype)?;
        let panel = self.stored.dims().iter().skip(1).product::<usize>();
        let from = self.stored.address() + (outputs.start / PANEL * panel) as u64;
        let arguments = Arguments::default().address(from).size(outputs.len()).size(self.inner);
        let function = x.gpu().kernels.quantized().get(Work::SpellOut, self.format, dtype)?;
        #[allow(unsafe_code)]
        // SAFETY: `spell_out_F_T(const unsigned char*, int, int, T*)`, of panels that the weight has; the result is new.
        unsafe { x.launch(function, Shape::each(out.count()), arguments.address(out.address())) }?;
        Ok(out)
    }

    /// Its rows of so many numbers, which lie where they are said to and are rows that it has, as numbers in the format of its place
    /// beside `beside`, an activation.
    pub(super) fn take_rows(self, (numbers, count): (u64, usize), dtype: DType, beside: &Tensor) -> Result<Tensor> {
        let out = beside.beside(&[count, self.inner], dtype)?;
        let function = out.gpu().kernels.quantized().get(Work::TakeRows, self.format, dtype)?;
        let arguments = Arguments::new(self.stored).address(numbers).size(self.inner).address(out.address());
        #[allow(unsafe_code)]
        // SAFETY: `take_rows_F_T(const unsigned char*, const unsigned*, int, T*)`, of rows that the table has.
        unsafe { out.launch(function, Shape::block_each(count), arguments) }?;
        Ok(out)
    }
}
