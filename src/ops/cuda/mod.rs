//! The GPU side of every op: our kernels, and matrix products of cublasLt.
//!
//! [`Gpu`] is what a process has once for its device: the stream that everything runs on, kernels, handles. A [`Place`] is one
//! generation's part of it: where its weights lie and its activations come and go. Ops are queued and return at once; only
//! [`Tensor::to_rows`] waits. They run on the engine's thread, one after the other, on one stream.
//!
//! Each op does what its `cpu_fwd` does, in the number format of its weights with f32 sums; `tests/gpu_ops.rs` holds one against
//! the other.

mod blas;
mod encoder;
mod finite;
mod kernels;
mod linear;
mod plan;
mod scratch;
mod tensor;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, WithDType};
use half::{bf16, f16};

use self::blas::Blas;
pub(super) use self::encoder::{attention, embed_patches, embed_tokens, l2_normalize, layer_norm, reduce};
pub use self::finite::Finite;
pub(crate) use self::kernels::FORMATS;
use self::kernels::Kernels;
pub(super) use self::linear::linear;
pub(super) use self::plan::Plan;
use self::scratch::Scratch;
pub use self::tensor::Tensor;
use crate::device::Owner;
use crate::device::cuda::{Buffer, Cuda, Event, Pinned, Pool, Priority, Staging, Stream};
use crate::error::{Error, Result};

/// Rows come down through pinned memory of this size, in as many turns as they need: 2,730 embeddings of 384 numbers.
const LANDING: usize = 4 << 20;

/// Whose pool it is that belongs to no generation.
const COMMON: &str = "shared by all";

/// A GPU that is ready to compute.
#[derive(Debug)]
pub struct Gpu {
    cuda: Arc<Cuda>,
    /// What forward passes run on.
    stream: Arc<Stream>,
    kernels: Kernels,
    blas: Blas,
    landing: Mutex<Pinned>,
    staging: Staging,
}

impl Gpu {
    /// Loads every kernel and makes what passes need, so that none of them waits for it.
    pub fn start(cuda: &Arc<Cuda>) -> Result<Arc<Gpu>> {
        let stream = Stream::new(cuda, Priority::High)?;
        let common = Pool::new(cuda, Owner { holder: COMMON.into(), generation: None })?;
        let kernels = Kernels::load(cuda)?;
        let blas = Blas::start(cuda, &common, &stream)?;
        let landing = Mutex::new(Pinned::new(cuda, LANDING)?);
        let staging = Staging::new(cuda)?;
        Ok(Arc::new(Gpu { cuda: Arc::clone(cuda), stream, kernels, blas, landing, staging }))
    }

    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// What weights come up through.
    pub fn staging(&self) -> &Staging {
        &self.staging
    }

    /// Copies `bytes` bytes from the device and hands them out piece by piece, once everything before has run.
    fn land(&self, from: u64, bytes: usize, piece: impl FnMut(&[u8])) -> Result<()> {
        self.land_from(&self.stream, (from, bytes), piece)
    }

    #[allow(unsafe_code)]
    fn land_from(&self, stream: &Stream, (from, bytes): (u64, usize), mut piece: impl FnMut(&[u8])) -> Result<()> {
        let mut landing = self.landing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = 0;
        while at < bytes {
            let now = LANDING.min(bytes - at);
            let room = &mut landing.bytes_mut()[..now];
            // SAFETY: the caller's tensor has `bytes` bytes there; the room is read after the stream has come past the copy.
            let copied = unsafe { stream.copy_down(room, from + at as u64) };
            // Also when the copy could not be queued: one that was must not land in what others use.
            let done = stream.synchronize();
            copied.and(done)?;
            piece(&landing.bytes()[..now]);
            at += now;
        }
        Ok(())
    }
}

/// One generation's part of a GPU.
#[derive(Debug, Clone)]
pub struct Place {
    gpu: Arc<Gpu>,
    pool: Arc<Pool>,
    scratch: Arc<Scratch>,
    /// The number format of its activations.
    dtype: DType,
}

impl Place {
    /// With `workspace` bytes of `pool` for activations in this format.
    pub fn new(gpu: &Arc<Gpu>, pool: &Arc<Pool>, workspace: u64, dtype: DType) -> Result<Place> {
        if !FORMATS.contains(&dtype) {
            return Err(Error::internal(format!("activations cannot be {}", dtype.as_str())));
        }
        let bytes = usize::try_from(workspace).map_err(Error::internal)?;
        let slab = pool.allocate(bytes, &gpu.stream)?;
        Ok(Place { gpu: Arc::clone(gpu), pool: Arc::clone(pool), scratch: Scratch::new(slab), dtype })
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Room for weights, in the order of their sizes, which the staging stream may write from here on. They are freed in the
    /// order of what uses them: on the stream of passes.
    pub fn rooms(&self, sizes: &[usize]) -> Result<Vec<Buffer>> {
        let rooms = sizes.iter().map(|bytes| self.pool.allocate(*bytes, &self.gpu.stream));
        let rooms = rooms.collect::<Result<Vec<_>>>()?;
        let allocated = Event::new(&self.gpu.cuda)?;
        allocated.record(&self.gpu.stream)?;
        self.gpu.staging.stream().wait_for(&allocated)?;
        Ok(rooms)
    }

    /// A weight that a loader has filled, and waited for.
    pub fn weight(&self, buffer: Arc<Buffer>, shape: &[usize], dtype: DType) -> Tensor {
        Tensor::weight(&self.gpu, buffer, shape, dtype)
    }

    /// `values` in the order of their shape, to be used by what is queued from here on.
    pub(super) fn upload<T: WithDType>(&self, values: &[T], shape: &[usize]) -> candle_core::Result<Tensor> {
        let tensor = Tensor::uninitialised(self, shape, T::DTYPE)?;
        let bytes = bytes_of(values).ok_or_else(|| failed(Error::internal("values of an unknown format")))?;
        if bytes.len() != tensor.bytes() {
            candle_core::bail!("{} bytes for a tensor of {shape:?}", bytes.len());
        }
        #[allow(unsafe_code)]
        // SAFETY: the tensor is that long, new, and used on this stream only. The source is not pinned, so it is read before
        // this returns.
        unsafe { self.gpu.stream.copy_up(tensor.address(), bytes) }.map_err(failed)?;
        Ok(tensor)
    }

    /// The same numbers as activations of this place.
    pub(super) fn activations(&self, values: &[f32], shape: &[usize]) -> candle_core::Result<Tensor> {
        let values = self.upload(values, shape)?;
        if self.dtype == DType::F32 { Ok(values) } else { values.cast(self, self.dtype) }
    }
}

/// Plain numbers as their bytes.
#[allow(unsafe_code)]
fn bytes_of<T: WithDType>(values: &[T]) -> Option<&[u8]> {
    let plain = [DType::F32, DType::F16, DType::BF16, DType::U32, DType::F64].contains(&T::DTYPE);
    debug_assert!(size_of::<f16>() == 2 && size_of::<bf16>() == 2);
    // SAFETY: numbers of these formats have no padding, and any of their bytes may be read.
    plain.then(|| unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) })
}

/// An error of the device as ops tell it.
fn failed(error: Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}
