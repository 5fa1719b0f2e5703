//! The way up: pinned slots, made once at the start, that are copied on one stream. There is one for weights and one for inputs.
//!
//! Whoever has bytes to send takes a slot, fills it, and sends it; the slot comes back by itself once the GPU has copied it.
//! Pinning more later would stop live traffic (`pinned`). What lies in pinned memory already (`registered`) needs no slot,
//! and goes the same way in a [`Convoy`].

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{Buffer, Event, PIECE, Pinned, Registered, Stream};
use crate::error::{Error, Result};

#[derive(Debug)]
pub struct Staging {
    stream: Arc<Stream>,
    /// Of a slot.
    bytes: usize,
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

/// Copies from memory that stays as it is until they are over. As few are in flight as from slots: two lots of a slot's bytes.
#[derive(Debug)]
pub struct Convoy<'a> {
    staging: &'a Staging,
    /// Also where this is never dropped: then it stays for good.
    from: Arc<Registered>,
    /// When the lot before is done, and the one before that.
    done: [Event; 2],
    /// Bytes of the lot that is being queued.
    lot: usize,
}

/// A slot that somebody has taken.
#[derive(Debug)]
pub struct Piece<'a> {
    staging: &'a Staging,
    /// Always there until it is dropped.
    slot: Option<Slot>,
}

impl Staging {
    /// So many slots of `bytes` each.
    pub fn on(stream: Arc<Stream>, slots: usize, bytes: usize) -> Result<Staging> {
        let cuda = stream.cuda();
        let slot = |_| Ok(Slot { memory: Pinned::new(cuda, bytes)?, copied: Event::new(cuda)? });
        let free = (0..slots).map(slot).collect::<Result<VecDeque<Slot>>>()?;
        Ok(Staging { stream, bytes, free: Mutex::new(free), returned: Condvar::new() })
    }

    /// The stream that pieces are copied on.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Bytes that a piece has room for.
    pub fn slot(&self) -> usize {
        self.bytes
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

impl<'a> Convoy<'a> {
    pub fn new(staging: &'a Staging, from: &Arc<Registered>) -> Result<Convoy<'a>> {
        let cuda = staging.stream.cuda();
        // It ends sooner for it: by three parts of a hundred, and that within a tenth of a second for each 4 GB.
        let done = [Event::spinning(cuda)?, Event::spinning(cuda)?];
        Ok(Convoy { staging, from: Arc::clone(from), done, lot: 0 })
    }

    /// Queues a copy of `bytes` bytes from `from` on to `at` of a buffer that nobody else uses yet, once few are in flight.
    /// They lie within one piece.
    pub fn send(&mut self, (from, bytes): (usize, usize), to: &Buffer, at: usize) -> Result<()> {
        let address = to.part(at, bytes)?;
        let end = from.checked_add(bytes).filter(|end| bytes == 0 || from / PIECE == (end - 1) / PIECE);
        let source = end.and_then(|end| self.from.bytes().get(from..end));
        let source = source.ok_or_else(|| Error::internal("a copy that is not within one piece"))?;
        // SAFETY: the buffer has as many bytes there, and is the caller's alone until the stream was waited for. The source is
        // registered, is written by nobody, and is held until the stream has come past this (`drop`).
        unsafe { self.staging.stream.copy_up(address, source) }?;
        self.lot += bytes;
        if self.lot >= self.staging.bytes {
            self.lot = 0;
            self.done.swap(0, 1);
            self.done[0].record(&self.staging.stream)?;
            self.done[1].synchronize()?;
        }
        Ok(())
    }
}

impl Drop for Convoy<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.staging.stream.synchronize() {
            tracing::warn!(%error, "copies from host memory may not be over");
        }
    }
}

impl Piece<'_> {
    /// Room for a slot's bytes.
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
