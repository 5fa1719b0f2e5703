//! The GPU side of every op: our kernels, and matrix products of cublasLt.
//!
//! [`Gpu`] is what a process has once for its device: the stream that everything runs on, kernels, handles. A [`Place`] is one
//! generation's part of it: where its weights lie and its activations come and go. Ops are queued and return at once; only
//! [`Landing`] waits. They run on the engine's thread, one after the other, on one stream.
//!
//! Each op does what its `cpu_fwd` does, in the number format of its weights with f32 sums. `tests/fake_gpu/kernels/check.py`
//! holds each kernel against numpy, `tests/gpu.rs` whole models against transformers.

mod blas;
mod decoder;
mod encoder;
mod finite;
mod kernels;
mod landing;
mod launch;
mod likeliest;
mod linear;
mod paged;
mod plan;
mod product;
mod quantized;
mod recorded;
mod recorded_step;
mod scratch;
mod step;
mod tensor;
mod trial;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, WithDType};
use half::{bf16, f16};

use self::blas::Blas;
pub(super) use self::decoder::{gated, paged_attention, place_heads, rms_norm};
pub(super) use self::encoder::{
    embed_patches, embed_tokens, l2_normalize, layer_norm, patches, reduce, self_attention,
};
pub use self::finite::{Finite, Mark};
pub(crate) use self::kernels::FORMATS;
use self::kernels::Kernels;
pub use self::landing::Landing;
use self::launch::{Arguments, Shape, launch};
pub(super) use self::likeliest::likeliest_bytes;
pub(super) use self::linear::{linear, linear_in_f32, linear_side_by_side};
pub(super) use self::paged::{Cache, Planned};
pub(super) use self::plan::Plan;
pub use self::quantized::Arranging;
pub use self::recorded::{Recorded, Recorder};
pub(super) use self::recorded_step::Held;
pub use self::recorded_step::{Begun, RecordedStep};
use self::scratch::Scratch;
pub(super) use self::step::{OfStep, parts_bytes};
use self::tensor::Spot;
pub use self::tensor::Tensor;
use crate::device::Owner;
use crate::device::cuda::{Buffer, Cuda, Piece, Pinned, Pool, Priority, Staging, Stream};
use crate::error::{Error, Result};

/// What no slot holds comes down through pinned memory of this size, in as many turns as it needs.
const LANDING: usize = 4 << 20;
/// For a flag of each tensor.
const LANDING_OF_LOADS: usize = 64 << 10;
/// Bytes of a slot for weights: less than 0.1 ms of the bus, which is how long a small copy of live traffic waits at most for
/// each that is queued before it.
const WEIGHTS_SLOT: usize = 4 << 20;
/// For twelve readers: one that each fills, and one that is copied or waits for it.
const WEIGHTS_SLOTS: usize = 24;
/// Bytes of a slot for inputs: what 8,192 tokens take, several times.
const INPUT_SLOT: usize = 1 << 20;
/// For the images of one pass, all of them: whoever packs them must not wait until the pass before is over.
const INPUT_SLOTS: usize = 32;

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
    /// The same for what loads bring down: a thread that gives way to everybody may hold it for long, and passes must not wait.
    landing_of_loads: Mutex<Pinned>,
    /// For weights, on a stream of its own.
    staging: Staging,
    /// Where pieces lie that are cast on their way: one after the other, as the staging stream has them.
    between: Mutex<Buffer>,
    /// For inputs, on the stream of passes.
    sending: Staging,
    landings: landing::Slots,
    /// What weights are looked at on while others are copied.
    looks: Arc<Stream>,
    /// What passes are looked up and recorded on, by one generation at a time.
    aside: Mutex<Arc<Stream>>,
}

impl Gpu {
    /// Loads every kernel and makes what passes need, so that none of them waits for it.
    pub fn start(cuda: &Arc<Cuda>) -> Result<Arc<Gpu>> {
        let stream = Stream::new(cuda, Priority::High)?;
        let common = Pool::new(cuda, Owner { holder: COMMON.into(), generation: None })?;
        let kernels = Kernels::load(cuda)?;
        let blas = Blas::start(cuda, &common, &stream)?;
        let landing = Mutex::new(Pinned::new(cuda, LANDING)?);
        let landing_of_loads = Mutex::new(Pinned::new(cuda, LANDING_OF_LOADS)?);
        let staging = Staging::on(Stream::new(cuda, Priority::Low)?, WEIGHTS_SLOTS, WEIGHTS_SLOT)?;
        let between = Mutex::new(common.allocate(WEIGHTS_SLOT, staging.stream())?);
        let sending = Staging::on(Arc::clone(&stream), INPUT_SLOTS, INPUT_SLOT)?;
        let landings = landing::Slots::new(cuda)?;
        let looks = Stream::new(cuda, Priority::Low)?;
        let aside = Mutex::new(Stream::new(cuda, Priority::Low)?);
        Ok(Arc::new(Gpu {
            cuda: Arc::clone(cuda),
            stream,
            kernels,
            blas,
            landing,
            landing_of_loads,
            staging,
            between,
            sending,
            landings,
            looks,
            aside,
        }))
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

    /// Queues a piece of the staging stream, `bytes` of it in a format, to `at` of a room in the same format or another.
    pub fn send(
        &self,
        piece: Piece<'_>,
        (bytes, format): (usize, DType),
        (room, at, wanted): (&Buffer, usize, DType),
    ) -> Result<()> {
        if format == wanted {
            return piece.send(bytes, room, at);
        }
        let (count, function) = (bytes / format.size_in_bytes(), self.kernels.cast(format, wanted)?);
        let to = room.part(at, count * wanted.size_in_bytes())?;
        // Nobody else's copy may come between this one and its cast.
        let between = self.between.lock().unwrap_or_else(PoisonError::into_inner);
        piece.send(bytes, &between, 0)?;
        let arguments = Arguments::default().address(between.address()).count(count).address(to);
        #[allow(unsafe_code)]
        // SAFETY: `cast_A_B(const A*, long long, B*)`, of as many numbers, which are used on this stream only.
        unsafe {
            launch(self.staging.stream(), function, Shape::each(count), arguments)
        }
    }

    /// Fills what lies side by side in a slab, each with its parts one after the other, in one copy as long as it fits a slot.
    fn send_to(&self, scratch: &Scratch, given: &[(&Spot, &[&[u8]])]) -> candle_core::Result<()> {
        let mut pieces = Pieces { gpu: self, piece: None };
        for (spot, parts) in given {
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            if bytes != spot.bytes() {
                candle_core::bail!("{bytes} bytes for {}", spot.bytes());
            }
            let mut at = spot.at;
            for part in *parts {
                pieces.add(part, scratch.slab(), at).map_err(failed)?;
                at += part.len();
            }
        }
        pieces.send().map_err(failed)
    }

    /// Copies `bytes` bytes from the device and hands them out piece by piece, once everything before has run.
    fn land(&self, from: u64, bytes: usize, piece: impl FnMut(&[u8])) -> Result<()> {
        self.land_by((&self.stream, &self.landing), (from, bytes), piece)
    }

    /// What lies where weights are sent to.
    fn land_of_load(&self, from: u64, bytes: usize, piece: impl FnMut(&[u8])) -> Result<()> {
        self.land_by((self.staging.stream(), &self.landing_of_loads), (from, bytes), piece)
    }

    #[allow(unsafe_code)]
    fn land_by(
        &self,
        (stream, landing): (&Stream, &Mutex<Pinned>),
        (from, bytes): (u64, usize),
        mut piece: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut landing = landing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = 0;
        while at < bytes {
            let now = landing.bytes().len().min(bytes - at);
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

    /// Whether `self_attention` of such heads can run here; why not.
    pub fn check_heads(&self, each: usize) -> Result<(), String> {
        kernels::check_heads(each, self.dtype, self.gpu.cuda.shared_per_block())
    }

    /// Room for a weight, which the staging stream may write from here on, and others read once somebody has waited for that. It
    /// is freed in the order of what uses it: on the stream of passes.
    pub fn room(&self, bytes: usize) -> Result<Buffer> {
        self.pool.allocate_for((self.gpu.staging.stream(), &self.gpu.stream), bytes)
    }

    /// A weight that a loader has filled, and waited for.
    pub fn weight(&self, buffer: Arc<Buffer>, shape: &[usize], dtype: DType) -> Tensor {
        Tensor::weight(&self.gpu, buffer, shape, dtype)
    }

    /// `values` in the order of their shape, to be used by what is queued from here on.
    pub(super) fn upload<T: WithDType>(&self, values: &[T], shape: &[usize]) -> candle_core::Result<Tensor> {
        let tensor = Tensor::uninitialised(self, shape, T::DTYPE)?;
        self.send(&[(&tensor.spot()?, &[bytes_of(values)?])])?;
        Ok(tensor)
    }

    fn send(&self, given: &[(&Spot, &[&[u8]])]) -> candle_core::Result<()> {
        self.gpu.send_to(&self.scratch, given)
    }

    /// Numbers that came as f32, as activations of this place.
    pub(super) fn activations(&self, values: Tensor) -> candle_core::Result<Tensor> {
        if self.dtype == DType::F32 { Ok(values) } else { values.cast(self.dtype) }
    }
}

/// Bytes on their way to a slab, slot by slot, in the order of where they go.
struct Pieces<'a> {
    gpu: &'a Gpu,
    /// What is being filled: the slot, where it goes, and how far it is full.
    piece: Option<(Piece<'a>, (&'a Buffer, usize), usize)>,
}

impl<'a> Pieces<'a> {
    /// Nothing of a slab is between what was added last and this, or some unused bytes.
    fn add(&mut self, mut bytes: &[u8], slab: &'a Buffer, mut at: usize) -> Result<()> {
        let slot = self.gpu.sending.slot();
        while !bytes.is_empty() {
            let fits = self.piece.as_ref().is_some_and(|(_, (_, start), _)| at - start < slot);
            if !fits {
                self.send()?;
                self.piece = Some((self.gpu.sending.take()?, (slab, at), 0));
            }
            let Some((piece, (_, start), full)) = &mut self.piece else { continue };
            let from = at - *start;
            let now = bytes.len().min(slot - from);
            piece.bytes_mut()[from..from + now].copy_from_slice(&bytes[..now]);
            (*full, at, bytes) = (from + now, at + now, &bytes[now..]);
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        match self.piece.take() {
            Some((piece, (slab, at), full)) => piece.send(full, slab, at),
            None => Ok(()),
        }
    }
}

/// Plain numbers as their bytes.
#[allow(unsafe_code)]
pub(super) fn bytes_of<T: WithDType>(values: &[T]) -> candle_core::Result<&[u8]> {
    let plain = [DType::F32, DType::F16, DType::BF16, DType::U32, DType::F64].contains(&T::DTYPE);
    debug_assert!(size_of::<f16>() == 2 && size_of::<bf16>() == 2);
    // SAFETY: numbers of these formats have no padding, and any of their bytes may be read.
    let bytes = plain.then(|| unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) });
    bytes.ok_or_else(|| failed(Error::internal("values of an unknown format")))
}

/// An error of the device as ops tell it.
pub(super) fn failed(error: Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}
