//! The way down for rows: pinned memory that they are copied to as soon as they are computed, without anybody waiting.
//!
//! Rows are asked for when a pass is queued and read when the next one is queued already: the copy is marked by an event of
//! its own, so that reading waits for nothing that came later on the stream.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DType;
use half::{bf16, f16};

use super::{Gpu, Tensor};
use crate::device::cuda::{Cuda, Event, Pinned};
use crate::error::{Error, Result};

/// Bytes of a slot: 2,730 embeddings of 384 numbers each.
const SLOT: usize = 4 << 20;
/// For two batches on their way, each of which may run as two passes.
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
    Coming(Copied),
    Here(Vec<f32>),
}

/// A slot that is being filled, or has been.
#[derive(Debug)]
struct Copied {
    gpu: Arc<Gpu>,
    /// Always there until it is dropped.
    slot: Option<Slot>,
    bytes: usize,
    dtype: DType,
}

impl Landing {
    /// Queues the copy of `from`, whose memory may be used again by what is queued after it. Where no slot is free that holds
    /// it, its rows are waited for here.
    pub(in crate::ops) fn of(from: &Tensor) -> Result<Landing> {
        let [rows, columns] = *from.dims() else {
            return Err(Error::internal(format!("rows of a tensor of shape {:?}", from.dims())));
        };
        let (gpu, bytes, dtype) = (from.gpu(), from.bytes(), from.dtype());
        let Some(slot) = (bytes <= SLOT).then(|| gpu.landings.take()).flatten() else {
            let mut values = Vec::with_capacity(rows * columns);
            let mut read = Ok(());
            gpu.land(from.address(), bytes, |bytes| {
                if read.is_ok() {
                    read = widen(bytes, dtype, &mut values);
                }
            })?;
            return read.map(|()| Landing { columns, state: State::Here(values) });
        };
        let mut copied = Copied { gpu: Arc::clone(gpu), slot: Some(slot), bytes, dtype };
        if let Some(slot) = &mut copied.slot {
            #[allow(unsafe_code)]
            // SAFETY: the tensor has as many bytes; the slot is read and given back after its event only.
            let queued = unsafe { gpu.stream.copy_down(&mut slot.memory.bytes_mut()[..bytes], from.address()) };
            // Also after a copy that failed: whatever was queued is waited for.
            let marked = slot.arrived.record(&gpu.stream);
            queued.and(marked)?;
        }
        Ok(Landing { columns, state: State::Coming(copied) })
    }

    /// Whether `wait` would return at once.
    pub(in crate::ops) fn is_here(&self) -> Result<bool> {
        match &self.state {
            State::Coming(Copied { slot: Some(slot), .. }) => slot.arrived.is_done(),
            State::Coming(_) | State::Here(_) => Ok(true),
        }
    }

    /// The rows as f32.
    pub(in crate::ops) fn wait(self) -> Result<Vec<Vec<f32>>> {
        let values = match self.state {
            State::Here(values) => values,
            State::Coming(copied) => copied.read()?,
        };
        Ok(values.chunks(self.columns.max(1)).map(<[f32]>::to_vec).collect())
    }
}

impl Copied {
    fn read(&self) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(self.bytes / self.dtype.size_in_bytes());
        if let Some(slot) = &self.slot {
            slot.arrived.synchronize()?;
            widen(&slot.memory.bytes()[..self.bytes], self.dtype, &mut values)?;
        }
        Ok(values)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        // A copy on its way must not land in what others use. Where that cannot be known any more, the slot is nobody's.
        match slot.arrived.synchronize() {
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
