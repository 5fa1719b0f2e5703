//! The way up for weights: pinned slots, made once at the start, and a stream of their own.
//!
//! Whoever loads takes a slot, fills it, and sends it; the slot comes back by itself once the GPU has copied it. Few
//! are in flight at a time, so that a small copy of live traffic waits for one slot at most, and several loads at once share
//! them. Pinning more later would stop live traffic (`pinned`).

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{Buffer, Cuda, Event, Pinned, Priority, Stream};
use crate::error::{Error, Result};

/// Bytes of a slot: less than 0.1 ms of the bus, which is how long a small copy of live traffic waits at most for each that is
/// queued before it.
pub const SLOT: usize = 4 << 20;
/// For eight readers: one that each fills, and as many that are copied or wait for it.
const SLOTS: usize = 24;

#[derive(Debug)]
pub struct Staging {
    stream: Arc<Stream>,
    free: Mutex<VecDeque<Slot>>,
    returned: Condvar,
}

/// Pinned memory for one piece. Dropped, it is free for the next, who waits for what it was sent for.
#[derive(Debug)]
struct Slot {
    memory: Pinned,
    /// When the last copy from it is done.
    copied: Event,
}

/// A slot that somebody has taken.
#[derive(Debug)]
pub struct Piece<'a> {
    staging: &'a Staging,
    /// Always there until it is dropped.
    slot: Option<Slot>,
}

impl Staging {
    pub fn new(cuda: &Arc<Cuda>) -> Result<Staging> {
        let slot = || Ok(Slot { memory: Pinned::new(cuda, SLOT)?, copied: Event::new(cuda)? });
        let free = (0..SLOTS).map(|_| slot()).collect::<Result<VecDeque<Slot>>>()?;
        Ok(Staging { stream: Stream::new(cuda, Priority::Low)?, free: Mutex::new(free), returned: Condvar::new() })
    }

    /// The stream that pieces are copied on.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Waits for a slot whose last copy is done.
    pub fn take(&self) -> Result<Piece<'_>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = loop {
            match free.pop_front() {
                Some(slot) => break slot,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        let piece = Piece { staging: self, slot: Some(slot) };
        if let Some(slot) = &piece.slot {
            slot.copied.synchronize()?;
        }
        Ok(piece)
    }
}

impl Piece<'_> {
    /// Room for [`SLOT`] bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.slot.as_mut().map_or(&mut [], |slot| slot.memory.bytes_mut())
    }

    /// Queues a copy of the first `bytes` to `at` of a buffer that nobody else uses yet, and gives the slot back.
    pub fn send(self, bytes: usize, to: &Buffer, at: usize) -> Result<()> {
        let address = to.part(at, bytes)?;
        let Some(slot) = &self.slot else { return Err(Error::internal("a piece without its slot")) };
        let from = &slot.memory.bytes()[..bytes];
        // SAFETY: the buffer has as many bytes there, and is the caller's alone until the stream was waited for. The slot is
        // taken again only after the event that is recorded next.
        let sent = unsafe { self.staging.stream.copy_up(address, from) };
        // Also after a copy that failed: whatever was queued is waited for.
        let marked = slot.copied.record(&self.staging.stream);
        sent.and(marked)
    }
}

impl Drop for Piece<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.staging.free.lock().unwrap_or_else(PoisonError::into_inner).push_back(slot);
            self.staging.returned.notify_one();
        }
    }
}
