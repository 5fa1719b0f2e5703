//! A version that waits in pinned host memory, ready for a GPU: going back to it costs the bus, and no file.
//!
//! It is read by the readers and casts of a load, and with more care, since nobody waits for it and it is used long after: every byte
//! is held against the manifest and every value looked at. Memory is pinned piece by piece behind the reader, with rests, so
//! that live traffic has nearly all of the time (`device::cuda::registered` says what pinning costs it).
//!
//! Must not know why a version is kept, nor for how long.

#[cfg(feature = "cuda")]
mod filling;

#[cfg(feature = "cuda")]
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

#[cfg(feature = "cuda")]
pub(super) use self::filling::runs;
#[cfg(feature = "cuda")]
use super::TensorKey;
use super::{Index, Manifest, Progress, Wanted};
use crate::device::Promise;
use crate::error::{Error, Result};
use crate::ops::Machine;

/// The tensors of one version as a GPU takes them, in host memory.
#[derive(Debug)]
pub struct Parked {
    digest: String,
    #[cfg(feature = "cuda")]
    tensors: HashMap<TensorKey, Extent>,
    #[cfg(feature = "cuda")]
    memory: Arc<crate::device::cuda::Registered>,
    bytes: u64,
    /// Held until the memory is gone: after it.
    promise: Promise,
}

/// Where a tensor lies. Bytes.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) at: usize,
    pub(super) bytes: usize,
}

impl Parked {
    /// Of the version whose tensors they are.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Of host memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Says, where host memory is told of, that it may be used.
    pub fn is_ready(&self) {
        self.promise.is_ready();
    }

    /// Gives its memory back at this pace. Where a load still copies from it, that is the last to hold it, and gives it back
    /// at once.
    pub fn let_go(self: Arc<Self>, pace: &Pace) {
        self.promise.leaves();
        let Some(parked) = Arc::into_inner(self) else { return };
        #[cfg(feature = "cuda")]
        if let Some(memory) = Arc::into_inner(parked.memory) {
            filling::let_go(memory, pace);
        }
        let _ = pace;
        drop(parked.promise);
    }
}

/// How long to rest between two pieces that are pinned, or let go of.
#[derive(Debug, Default)]
pub struct Pace {
    hurried: AtomicBool,
    pieces: AtomicU64,
}

/// How many times as long as a piece took is rested after it: live traffic stands for a twentieth of the time, as for
/// background work on the engine.
const RESTS: u32 = 19;
/// However long a piece took.
const LONGEST: Duration = Duration::from_millis(100);

impl Pace {
    /// From now on there is no rest: the process stops.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// How many were pinned and let go of.
    pub fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "nothing is pinned without a GPU"))]
    fn rest(&self, after: Duration) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        if !self.hurried.load(Ordering::Relaxed) {
            std::thread::sleep((after * RESTS).min(LONGEST));
        }
    }
}

/// Reads the wanted tensors into host memory that the machine's GPU copies from. `room` promises as many bytes of it.
///
/// # Errors
/// As for a load; `Conflict` where the machine has no GPU; whatever `room` refuses with.
pub fn park(
    machine: &Machine,
    version: (&Index, &Manifest, &[Wanted]),
    room: impl FnOnce(u64) -> Result<Promise>,
    (progress, pace): (&Progress, &Pace),
) -> Result<Parked> {
    match machine {
        Machine::Cpu => {
            let _ = (version, room, progress, pace);
            Err(Error::conflict("weights lie in host memory already: only for a GPU are they parked there"))
        }
        #[cfg(feature = "cuda")]
        Machine::Cuda(gpu) => filling::park(gpu.cuda(), version, room, (progress, pace)),
    }
}
