//! The way down for rows: pinned memory that they are copied to as soon as they are computed, without anybody waiting.
//!
//! Rows are asked for when a pass is queued and read when the next one is queued already: the copy is marked by an event of
//! its own, so that reading waits for nothing that came later on the stream.
//!
//! Whether all of them are numbers comes down in the same copy. Before it, `land` of `kernels/finite.cu` puts them where there is
//! room beside them and looks at them as it does: whatever made them (a product of cublasLt, too) need not know of that.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DType;
use half::{bf16, f16};

use super::kernels::Kernel;
use super::launch::{Arguments, Shape, launch};
use super::{Gpu, Tensor};
use crate::device::cuda::{Cuda, Event, Pinned};
use crate::error::{Error, Result};
use crate::ops::Landed;

/// Bytes of a slot: 2,720 embeddings of 384 numbers each, and what is said of them.
const SLOT: usize = 4 << 20;
/// For two batches on their way, each of which may run as two passes, or for two steps.
const SLOTS: usize = 4;

/// Slots that are free.
#[derive(Debug)]
pub(super) struct Slots(Mutex<Vec<Slot>>);

#[derive(Debug)]
struct Slot {
    memory: Pinned,
    arrived: Event,
}

impl Slots {
    pub(super) fn new(cuda: &Arc<Cuda>) -> Result<Slots> {
        let slot = |_| Ok(Slot { memory: Pinned::new(cuda, SLOT)?, arrived: Event::spinning(cuda)? });
        (0..SLOTS).map(slot).collect::<Result<Vec<_>>>().map(|slots| Slots(Mutex::new(slots)))
    }

    fn take(&self) -> Option<Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give(&self, slot: Slot) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }
}

/// Rows of a matrix on their way to the process.
#[derive(Debug)]
pub struct Landing {
    columns: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Coming(Copied, Parts),
    Here(Read),
}

/// A slot that is being filled, or has been.
#[derive(Debug)]
pub(super) struct Copied {
    gpu: Arc<Gpu>,
    /// Always there until it is dropped.
    slot: Option<Slot>,
    bytes: usize,
    /// Nothing of it is on its way any more.
    is_here: bool,
}

/// What comes down: values, then for each warp that has looked at them a word, which is 0 where it saw numbers only.
#[derive(Debug, Clone, Copy)]
struct Parts {
    dtype: DType,
    /// Bytes.
    values: usize,
    /// Where words begin, and where they end.
    words: usize,
    end: usize,
}

impl Parts {
    fn of(from: &Tensor, shape: Shape) -> Parts {
        let words = from.bytes().next_multiple_of(size_of::<u32>());
        let end = words + shape.warps() * size_of::<u32>();
        Parts { dtype: from.dtype(), values: from.bytes(), words, end }
    }
}

/// What was read of it so far.
#[derive(Debug)]
struct Read {
    made_of: Parts,
    bytes: usize,
    values: Vec<f32>,
    finite: bool,
}

impl Read {
    fn nothing(made_of: Parts) -> Read {
        let values = Vec::with_capacity(made_of.values / made_of.dtype.size_in_bytes());
        Read { made_of, bytes: 0, values, finite: true }
    }

    /// The next bytes of it, which end between two values or words.
    fn read(&mut self, bytes: &[u8]) -> Result<()> {
        let within = |end: usize| end.saturating_sub(self.bytes).min(bytes.len());
        let (values, words) = (&bytes[..within(self.made_of.values)], &bytes[within(self.made_of.words)..]);
        self.finite &= words.iter().all(|byte| *byte == 0);
        self.bytes += bytes.len();
        widen(values, self.made_of.dtype, &mut self.values)
    }
}

impl Landing {
    /// Queues the copy of `from`, whose memory may be used again by what is queued after it. Where no slot is free that holds
    /// it, its rows are waited for here.
    pub(in crate::ops) fn of(from: &Tensor) -> Result<Landing> {
        let (_, columns) = from.matrix("rows that come down", from.dtype()).map_err(Error::internal)?;
        let (gpu, shape) = (from.gpu(), Shape::each(from.count()));
        let made_of = Parts::of(from, shape);
        // Let go of when this returns: what is queued later writes there later.
        let together = looked_at(from, made_of, shape)?;
        let Some(slot) = (made_of.end <= SLOT).then(|| gpu.landings.take()).flatten() else {
            let (mut read, mut all) = (Read::nothing(made_of), Ok(()));
            gpu.land(together.address(), made_of.end, |bytes| {
                if all.is_ok() {
                    all = read.read(bytes);
                }
            })?;
            return all.map(|()| Landing { columns, state: State::Here(read) });
        };
        let mut copied = Copied { gpu: Arc::clone(gpu), slot: Some(slot), bytes: 0, is_here: true };
        copied.queue(&together, made_of.end)?;
        Ok(Landing { columns, state: State::Coming(copied, made_of) })
    }

    /// Whether `wait` would return at once.
    pub(in crate::ops) fn is_here(&self) -> Result<bool> {
        match &self.state {
            State::Coming(Copied { slot: Some(slot), .. }, _) => slot.arrived.is_done(),
            State::Coming(..) | State::Here(_) => Ok(true),
        }
    }

    /// The rows as f32.
    pub(in crate::ops) fn wait(self) -> Result<Landed> {
        let Read { values, finite, .. } = match self.state {
            State::Here(read) => read,
            State::Coming(mut copied, made_of) => {
                let mut read = Read::nothing(made_of);
                read.read(copied.wait()?)?;
                read
            }
        };
        Ok(Landed { rows: values.chunks(self.columns.max(1)).map(<[f32]>::to_vec).collect(), finite })
    }
}

/// The values of `from`, and beside them what was seen of them.
fn looked_at(from: &Tensor, made_of: Parts, shape: Shape) -> Result<Tensor> {
    let together = from.beside(&[made_of.end], DType::U8).map_err(Error::internal)?;
    let function = from.gpu().kernels.get(Kernel::Land, from.dtype())?;
    let words = together.address() + made_of.words as u64;
    let arguments = Arguments::new(from).count(from.count()).address(together.address()).address(words);
    #[allow(unsafe_code)]
    // SAFETY: `land_T(const T*, long long, T*, unsigned*)`, of new memory that has room for as many values and words.
    unsafe { launch(&from.gpu().stream, function, shape, arguments) }?;
    Ok(together)
}

impl Copied {
    /// Room for as many bytes as a slot has, where a slot is free; nothing comes there yet.
    pub(super) fn room(gpu: &Arc<Gpu>, bytes: usize) -> Option<Copied> {
        let slot = (bytes <= SLOT).then(|| gpu.landings.take()).flatten()?;
        Some(Copied { gpu: Arc::clone(gpu), slot: Some(slot), bytes: 0, is_here: true })
    }

    /// Queues the copy of so many bytes of a tensor, which it has; no more than a slot does.
    pub(super) fn queue(&mut self, from: &Tensor, bytes: usize) -> Result<()> {
        let Some(slot) = &mut self.slot else { return Ok(()) };
        let to = &mut slot.memory.bytes_mut()[..bytes];
        #[allow(unsafe_code)]
        // SAFETY: so many bytes were allocated; the slot is read and given back after its event only.
        let queued = unsafe { self.gpu.stream.copy_down(to, from.address()) };
        // Also after a copy that failed: whatever was queued is waited for.
        let marked = slot.arrived.record(&self.gpu.stream);
        (self.bytes, self.is_here) = (bytes, false);
        queued.and(marked)
    }

    /// What was copied, once it is there.
    pub(super) fn wait(&mut self) -> Result<&[u8]> {
        let Some(slot) = &self.slot else { return Ok(&[]) };
        if !self.is_here {
            slot.arrived.synchronize()?;
            self.is_here = true;
        }
        Ok(&slot.memory.bytes()[..self.bytes])
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        // A copy on its way must not land in what others use. Where that cannot be known any more, the slot is nobody's.
        match if self.is_here { Ok(()) } else { slot.arrived.synchronize() } {
            Ok(()) => self.gpu.landings.give(slot),
            Err(error) => tracing::warn!(%error, "rows were on their way when their GPU failed"),
        }
    }
}

fn widen(bytes: &[u8], dtype: DType, values: &mut Vec<f32>) -> Result<()> {
    match dtype {
        DType::F32 => values.extend(numbers(bytes).map(f32::from_le_bytes)),
        DType::F16 => values.extend(numbers(bytes).map(|bytes| f16::from_le_bytes(bytes).to_f32())),
        DType::BF16 => values.extend(numbers(bytes).map(|bytes| bf16::from_le_bytes(bytes).to_f32())),
        _ => return Err(Error::internal(format!("rows of {}", dtype.as_str()))),
    }
    Ok(())
}

fn numbers<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}
