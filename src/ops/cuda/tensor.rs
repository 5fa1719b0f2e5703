//! A tensor on a GPU: where its numbers lie, in what shape and format.

use std::sync::Arc;

use candle_core::{DType, Result, bail};

use cudarc::driver::sys::CUfunction;

use super::launch::{Arguments, Shape, launch};
use super::product::Product;
use super::scratch::{ALIGNMENT, Block};
use super::{Gpu, Place, Scratch, failed};
use crate::device::cuda::Buffer;

/// Rows of numbers, each row right after the one before. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Tensor {
    gpu: Arc<Gpu>,
    memory: Memory,
    /// Bytes from the memory's start.
    offset: usize,
    shape: Vec<usize>,
    /// Of a matrix that is some columns of wider rows: values from a row to the next. Few ops read that.
    stride: Option<usize>,
    dtype: DType,
}

#[derive(Debug, Clone)]
enum Memory {
    /// Written once, and shared by generations that have the same weight.
    Weight(Arc<Buffer>),
    /// What a pass makes.
    Activation(Arc<Block>, Arc<Scratch>),
}

/// A place in a slab, and what lies there.
#[derive(Debug)]
pub(super) struct Spot {
    pub(super) at: usize,
    shape: Vec<usize>,
    pub(super) dtype: DType,
}

impl Spot {
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size_in_bytes()
    }

    /// Of a matrix.
    pub(super) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or_default()
    }

    /// So many of its values, which it has, from the first on.
    pub(super) fn beginning(&self, count: usize) -> Spot {
        Spot { at: self.at, shape: vec![count], dtype: self.dtype }
    }
}

impl Tensor {
    pub(super) fn weight(gpu: &Arc<Gpu>, buffer: Arc<Buffer>, shape: &[usize], dtype: DType) -> Tensor {
        let (gpu, memory) = (Arc::clone(gpu), Memory::Weight(buffer));
        Tensor { gpu, memory, offset: 0, shape: shape.to_vec(), stride: None, dtype }
    }

    /// Room in a place's scratch memory, to be written whole by what is queued next.
    pub(super) fn uninitialised(place: &Place, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Self::in_scratch(&place.gpu, &place.scratch, shape, dtype)
    }

    /// Tensors in one block, in this order.
    pub(super) fn side_by_side<'a>(
        place: &Place,
        parts: impl Iterator<Item = (&'a [usize], DType)> + Clone,
    ) -> Result<Vec<Tensor>> {
        let bytes = |(shape, dtype): (&[usize], DType)| {
            (shape.iter().product::<usize>() * dtype.size_in_bytes()).next_multiple_of(ALIGNMENT)
        };
        let whole = Tensor::uninitialised(place, &[parts.clone().map(bytes).sum()], DType::U8)?;
        let mut offset = 0;
        let part = |(shape, dtype): (&'a [usize], DType)| {
            let tensor = Tensor { offset, shape: shape.to_vec(), dtype, ..whole.clone() };
            offset += bytes((shape, dtype));
            tensor
        };
        Ok(parts.map(part).collect())
    }

    /// Numbers at a place of a slab, which lies in this block of it.
    pub(super) fn within(place: &Place, block: Arc<Block>, spot: &Spot) -> Tensor {
        let Spot { at, ref shape, dtype } = *spot;
        let (gpu, offset) = (Arc::clone(&place.gpu), at - block.at());
        let memory = Memory::Activation(block, Arc::clone(&place.scratch));
        Tensor { gpu, memory, offset, shape: shape.clone(), stride: None, dtype }
    }

    /// Whether it is all of the same weight.
    pub(in crate::ops) fn is_same(&self, other: &Tensor) -> bool {
        let whole = |tensor: &Tensor| (tensor.offset, tensor.stride, tensor.dtype);
        match (&self.memory, &other.memory) {
            (Memory::Weight(this), Memory::Weight(that)) => {
                Arc::ptr_eq(this, that) && whole(self) == whole(other) && self.shape == other.shape
            }
            _ => false,
        }
    }

    /// Where in its slab it lies, and what it is there.
    pub(super) fn spot(&self) -> Result<Spot> {
        self.whole_rows()?;
        Ok(Spot { at: self.place_in_slab()?.1, shape: self.shape.clone(), dtype: self.dtype })
    }

    /// The slab that an activation lies in, and where.
    pub(super) fn place_in_slab(&self) -> Result<(&Buffer, usize)> {
        match &self.memory {
            Memory::Activation(block, scratch) => Ok((scratch.slab(), block.at() + self.offset)),
            Memory::Weight(_) => bail!("a weight where an activation is needed"),
        }
    }

    fn in_scratch(gpu: &Arc<Gpu>, scratch: &Arc<Scratch>, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let bytes = shape.iter().product::<usize>() * dtype.size_in_bytes();
        let block = scratch.take(bytes).map_err(failed)?;
        let (gpu, memory) = (Arc::clone(gpu), Memory::Activation(Arc::new(block), Arc::clone(scratch)));
        Ok(Tensor { gpu, memory, offset: 0, shape: shape.to_vec(), stride: None, dtype })
    }

    /// All values of f32, in their order, once everything before has run.
    pub(in crate::ops) fn to_values(&self) -> Result<Vec<f32>> {
        self.read(DType::F32, f32::from_le_bytes)
    }

    /// The same of u32.
    pub(super) fn to_words(&self) -> Result<Vec<u32>> {
        self.read(DType::U32, u32::from_le_bytes)
    }

    fn read<T>(&self, dtype: DType, number: impl Fn([u8; 4]) -> T) -> Result<Vec<T>> {
        self.whole_rows()?;
        if self.dtype != dtype {
            bail!("values of {} where {} is needed", self.dtype.as_str(), dtype.as_str());
        }
        let mut values = Vec::with_capacity(self.count());
        let read = |bytes: &[u8]| values.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| number(*bytes)));
        self.gpu.land(self.address(), self.bytes(), read).map_err(failed)?;
        Ok(values)
    }

    /// Room beside this one, which is an activation.
    pub(in crate::ops) fn beside(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        match &self.memory {
            Memory::Activation(_, scratch) => Self::in_scratch(&self.gpu, scratch, shape, dtype),
            Memory::Weight(_) => bail!("an op on a weight alone has nowhere to put its result"),
        }
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The slab that it lies in, and so what ops on it are queued on: everything in a slab runs on one stream.
    pub(super) fn scratch(&self) -> Result<&Arc<Scratch>> {
        match &self.memory {
            Memory::Activation(_, scratch) => Ok(scratch),
            Memory::Weight(_) => bail!("an op on a weight alone has no stream to run on"),
        }
    }

    /// Queues a kernel on this tensor's stream.
    ///
    /// # Safety
    /// As for [`launch`].
    #[allow(unsafe_code)]
    pub(super) unsafe fn launch(&self, function: CUfunction, shape: Shape, arguments: Arguments) -> Result<()> {
        let scratch = self.scratch()?;
        if scratch.is_dry() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { launch(scratch.stream(), function, shape, arguments) }.map_err(failed)
    }

    /// Queues a product on this tensor's stream.
    ///
    /// # Safety
    /// As for [`super::blas::Blas::multiply`].
    #[allow(unsafe_code)]
    pub(super) unsafe fn multiply(&self, product: &Product) -> Result<()> {
        let (scratch, blas) = (self.scratch()?, &self.gpu.blas);
        // SAFETY: the caller's promise.
        let answer = unsafe {
            if scratch.is_dry() {
                blas.look_up(scratch.stream(), product)
            } else {
                blas.multiply(scratch.stream(), product)
            }
        };
        answer.map_err(failed)
    }

    pub(in crate::ops) fn dims(&self) -> &[usize] {
        &self.shape
    }

    pub(in crate::ops) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(in crate::ops) fn is_on(&self, place: &Place) -> bool {
        Arc::ptr_eq(&self.gpu, &place.gpu)
    }

    pub(super) fn address(&self) -> u64 {
        let start = match &self.memory {
            Memory::Weight(buffer) => buffer.address(),
            Memory::Activation(block, _) => block.address(),
        };
        start + self.offset as u64
    }

    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    pub(super) fn bytes(&self) -> usize {
        self.count() * self.dtype.size_in_bytes()
    }

    /// Rows and columns of a matrix of this format; a vector is one row.
    pub(super) fn matrix(&self, what: &str, dtype: DType) -> Result<(usize, usize)> {
        if self.dtype != dtype {
            bail!("{what} is {}, expected {}", self.dtype.as_str(), dtype.as_str());
        }
        self.whole_rows()?;
        match self.shape[..] {
            [columns] => Ok((1, columns)),
            [rows, columns] => Ok((rows, columns)),
            _ => bail!("{what} has shape {:?}, expected a vector or a matrix", self.shape),
        }
    }

    /// The same where all dimensions but the first are read as one.
    pub(super) fn flattened_matrix(&self, what: &str, dtype: DType) -> Result<(usize, usize)> {
        let rows = self.shape.first().copied().unwrap_or(1);
        self.reshape(&[rows, self.count() / rows.max(1)])?.matrix(what, dtype)
    }

    /// A vector of this width and format.
    pub(super) fn vector(&self, what: &str, width: usize, dtype: DType) -> Result<u64> {
        match self.matrix(what, dtype)? {
            (1, columns) if columns == width => Ok(self.address()),
            _ => bail!("{what} has shape {:?}, expected [{width}]", self.shape),
        }
    }

    /// An error for columns of wider rows.
    fn whole_rows(&self) -> Result<()> {
        match self.stride {
            Some(stride) => bail!("columns of rows of {stride} where whole rows are needed"),
            None => Ok(()),
        }
    }

    /// Rows and columns of a matrix of this format, and values from a row to the next.
    pub(super) fn strided(&self, what: &str, dtype: DType) -> Result<(usize, usize, usize)> {
        match (self.stride, &self.shape[..]) {
            (Some(stride), &[rows, columns]) if self.dtype == dtype => Ok((rows, columns, stride)),
            _ => self.matrix(what, dtype).map(|(rows, columns)| (rows, columns, columns)),
        }
    }

    /// Columns `first..first + count` of a matrix, without a copy.
    pub(in crate::ops) fn narrow_columns(&self, first: usize, count: usize) -> Result<Tensor> {
        let (rows, columns, stride) = self.strided("a matrix", self.dtype)?;
        if first.checked_add(count).is_none_or(|end| end > columns) {
            bail!("columns {first} and {count} more, of {columns}");
        }
        let offset = self.offset + first * self.dtype.size_in_bytes();
        let stride = (count < stride).then_some(stride);
        Ok(Tensor { offset, shape: vec![rows, count], stride, ..self.clone() })
    }

    pub(in crate::ops) fn narrow_rows(&self, first: usize, count: usize) -> Result<Tensor> {
        self.whole_rows()?;
        let rows = self.shape.first().copied().unwrap_or(1);
        if first.checked_add(count).is_none_or(|end| end > rows) {
            bail!("rows {first} and {count} more, of {rows}");
        }
        let each = self.bytes() / rows.max(1);
        let mut part = self.clone();
        part.offset += first * each;
        if let Some(rows) = part.shape.first_mut() {
            *rows = count;
        }
        Ok(part)
    }

    pub(in crate::ops) fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        self.whole_rows()?;
        if shape.iter().product::<usize>() != self.count() {
            bail!("{:?} cannot become {shape:?}", self.shape);
        }
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// The same numbers in another format.
    pub(super) fn cast(&self, to: DType) -> Result<Tensor> {
        self.whole_rows()?;
        let out = self.beside(&self.shape, to)?;
        let function = self.gpu.kernels.cast(self.dtype, to).map_err(failed)?;
        let arguments = Arguments::new(self).count(self.count()).address(out.address());
        #[allow(unsafe_code)]
        // SAFETY: `cast_A_B(const A*, long long, B*)`, of tensors of as many numbers.
        unsafe { self.launch(function, Shape::each(self.count()), arguments) }?;
        Ok(out)
    }
}
