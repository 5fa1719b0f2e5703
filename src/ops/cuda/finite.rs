//! Whether values on a GPU are numbers, asked for many tensors and answered at once.
//!
//! What is written on the staging stream is looked at on a stream beside it, so that no copy waits for a look.

use std::collections::HashSet;

use super::kernels::Kernel;
use super::launch::{Arguments, Shape, launch};
use super::{FORMATS, Gpu, Place};
use crate::device::cuda::{Buffer, Event};
use crate::error::Result;
use crate::ops;

/// A bit for each of some tensors that come up on the staging stream.
#[derive(Debug)]
pub struct Finite {
    gpu: std::sync::Arc<Gpu>,
    /// u32 words.
    flags: Buffer,
    words: usize,
}

/// A bit of a word on the device.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    pub(super) word: u64,
    pub(super) bit: u32,
}

impl Finite {
    /// For so many tensors, none of them bad.
    pub fn of(place: &Place, count: usize) -> Result<Finite> {
        let words = count.div_ceil(32).max(1);
        let flags = place.room(words * size_of::<u32>())?;
        let gpu = std::sync::Arc::clone(&place.gpu);
        gpu.staging.stream().clear(&flags)?;
        Ok(Finite { gpu, flags, words })
    }

    /// Where whoever looks at the tensor of a number by itself says that it holds something else.
    pub fn mark(&self, number: usize) -> Result<Mark> {
        let word = self.flags.part(number / 32 * size_of::<u32>(), size_of::<u32>())?;
        Ok(Mark { word, bit: 1 << (number % 32) })
    }

    /// Queues a look at a tensor whose last piece was sent before. It must not be freed before somebody has waited for that
    /// (`synchronize`).
    pub fn look_at(&self, tensor: &ops::Tensor, number: usize) -> Result<()> {
        let ops::Tensor::Cuda(tensor) = tensor else { return Ok(()) };
        if !FORMATS.contains(&tensor.dtype()) {
            return Ok(());
        }
        let Mark { word, bit } = self.mark(number)?;
        let function = self.gpu.kernels.get(Kernel::Finite, tensor.dtype())?;
        let written = Event::new(&self.gpu.cuda)?;
        written.record(self.gpu.staging.stream())?;
        self.gpu.looks.wait_for(&written)?;
        let arguments = Arguments::new(tensor).count(tensor.count()).address(word).bits(bit);
        #[allow(unsafe_code)]
        // SAFETY: `finite_T(const T*, long long, unsigned*, int)`, of a tensor that is written once this runs, as are the flags,
        // which it changes atomically.
        unsafe {
            launch(&self.gpu.looks, function, Shape::each(tensor.count()), arguments)
        }
    }

    /// Waits for every look that was queued.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu.looks.synchronize()
    }

    /// The numbers of those that hold something else, once every look was waited for.
    pub fn bad(&self) -> Result<HashSet<usize>> {
        let mut flags = Vec::with_capacity(self.words);
        self.gpu.land_of_load(self.flags.address(), self.flags.bytes(), |bytes| {
            flags.extend(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
        })?;
        let bits = flags
            .iter()
            .enumerate()
            .flat_map(|(word, flags)| (0..32).map(move |bit| (word * 32 + bit, flags >> bit & 1)));
        Ok(bits.filter(|(_, set)| *set == 1).map(|(number, _)| number).collect())
    }
}
