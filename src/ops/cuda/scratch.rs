//! Memory for activations: one slab of a generation's pool, and blocks that come and go in it.
//!
//! Everything in a slab runs on one stream, in the order in which it was queued. So a block may be given to the next
//! tensor as soon as the process has let go of the last: what still reads it was queued before whatever will write it. That
//! costs no call of the driver, and nothing can be short of memory in the middle of a pass that fits its slab.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::cuda::{Buffer, Stream};
use crate::error::{Error, Result};

/// Blocks begin on such borders: of whole cache lines, and of the widest access of any kernel.
pub(super) const ALIGNMENT: usize = 256;

#[derive(Debug)]
pub(crate) struct Scratch {
    slab: Arc<Buffer>,
    /// What everything in it runs on.
    stream: Arc<Stream>,
    /// Nothing in it runs at all: it is there to see what a pass would need.
    dry: bool,
    free: Mutex<Free>,
}

impl Scratch {
    /// A slab whose work runs on the stream that it was allocated for.
    pub(crate) fn new(slab: Buffer) -> Arc<Scratch> {
        let stream = Arc::clone(slab.stream());
        Self::of(Arc::new(slab), stream, false)
    }

    fn of(slab: Arc<Buffer>, stream: Arc<Stream>, dry: bool) -> Arc<Scratch> {
        let free = Mutex::new(Free::all(slab.bytes() / ALIGNMENT * ALIGNMENT));
        Arc::new(Scratch { slab, stream, dry, free })
    }

    /// The same slab, all of it free, with work that runs on another stream: for as long as nobody takes anything of this one.
    pub(super) fn on(&self, stream: &Arc<Stream>) -> Arc<Scratch> {
        Self::of(Arc::clone(&self.slab), Arc::clone(stream), false)
    }

    /// The same again, with work that does not run.
    pub(super) fn dry(&self, stream: &Arc<Stream>) -> Arc<Scratch> {
        Self::of(Arc::clone(&self.slab), Arc::clone(stream), true)
    }

    /// The same slab with nothing free but one piece, where that is free here, with work that runs on another stream.
    pub(super) fn piece_on(&self, stream: &Arc<Stream>, piece: (usize, usize)) -> Arc<Scratch> {
        let free = Mutex::new(Free { pieces: BTreeMap::from([piece]) });
        Arc::new(Scratch { slab: Arc::clone(&self.slab), stream: Arc::clone(stream), dry: false, free })
    }

    /// The largest piece that is free: where it begins, and its bytes.
    pub(super) fn largest(&self) -> Option<(usize, usize)> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.pieces.iter().max_by_key(|(_, length)| **length).map(|(at, length)| (*at, *length))
    }

    /// A piece, where nobody has anything of it.
    pub(super) fn take_piece(self: &Arc<Self>, (at, bytes): (usize, usize)) -> Option<Block> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.take_piece((at, bytes)).then(|| Block { scratch: Arc::clone(self), at, bytes })
    }

    pub(super) fn is_dry(&self) -> bool {
        self.dry
    }

    pub(super) fn slab(&self) -> &Buffer {
        &self.slab
    }

    pub(super) fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// All of it, where nobody has anything of it.
    pub(super) fn take_all(self: &Arc<Self>) -> Result<Block> {
        self.take(self.slab.bytes() / ALIGNMENT * ALIGNMENT)
    }

    /// `bytes`, of undefined content.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        match free.take(bytes) {
            Some(at) => Ok(Block { scratch: Arc::clone(self), at, bytes }),
            None => {
                let (left, all) = (free.bytes(), self.slab.bytes());
                Err(Error::internal(format!(
                    "activations need {bytes} bytes more, {left} of {all} are free, in pieces"
                )))
            }
        }
    }
}

/// Some of a slab, until it is dropped.
#[derive(Debug)]
pub(crate) struct Block {
    scratch: Arc<Scratch>,
    at: usize,
    bytes: usize,
}

impl Block {
    /// Gives back all but `bytes` from `at` of its slab on, which it has, and what lies before them up to a border.
    pub(super) fn only(mut self, (at, bytes): (usize, usize)) -> Block {
        let (at, end) = (at / ALIGNMENT * ALIGNMENT, (at + bytes.max(1)).next_multiple_of(ALIGNMENT));
        let mut free = self.scratch.free.lock().unwrap_or_else(PoisonError::into_inner);
        for (from, to) in [(self.at, at), (end, self.at + self.bytes)] {
            if from < to {
                free.give((from, to - from));
            }
        }
        drop(free);
        (self.at, self.bytes) = (at, end - at);
        self
    }

    /// Where in its slab.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn address(&self) -> u64 {
        self.scratch.slab.address() + self.at as u64
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.scratch.free.lock().unwrap_or_else(PoisonError::into_inner).give((self.at, self.bytes));
    }
}

/// What is free of a slab: pieces by where they begin, none touching another.
#[derive(Debug)]
struct Free {
    pieces: BTreeMap<usize, usize>,
}

impl Free {
    fn all(bytes: usize) -> Free {
        Free { pieces: BTreeMap::from([(0, bytes)]) }
    }

    fn bytes(&self) -> usize {
        self.pieces.values().sum()
    }

    /// The smallest piece that is large enough, the first of those: the same calls give the same places.
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let fits = self.pieces.iter().filter(|(_, length)| **length >= bytes);
        let (&at, &length) = fits.min_by_key(|(at, length)| (**length, **at))?;
        self.pieces.remove(&at);
        if length > bytes {
            self.pieces.insert(at + bytes, length - bytes);
        }
        Some(at)
    }

    /// Whether all of it was free; then it is not any more.
    fn take_piece(&mut self, (at, bytes): (usize, usize)) -> bool {
        let Some((&start, &length)) = self.pieces.range(..=at).next_back() else { return false };
        let (end, last) = (at + bytes, start + length);
        if end > last || bytes == 0 {
            return false;
        }
        self.pieces.remove(&start);
        for (from, to) in [(start, at), (end, last)] {
            if from < to {
                self.pieces.insert(from, to - from);
            }
        }
        true
    }

    fn give(&mut self, (mut at, mut length): (usize, usize)) {
        if let Some((&before, &size)) = self.pieces.range(..at).next_back()
            && before + size == at
        {
            self.pieces.remove(&before);
            (at, length) = (before, length + size);
        }
        if let Some(after) = self.pieces.remove(&(at + length)) {
            length += after;
        }
        self.pieces.insert(at, length);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_comes_back(
            calls in prop::collection::vec((1usize..40, any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            let mut free = Free::all(400);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (bytes, which, gives) in calls {
                if gives && !held.is_empty() {
                    free.give(held.swap_remove(which.index(held.len())));
                } else if let Some(at) = free.take(bytes) {
                    prop_assert!(at + bytes <= 400);
                    prop_assert!(held.iter().all(|(other, length)| at + bytes <= *other || other + length <= at));
                    held.push((at, bytes));
                } else {
                    prop_assert!(free.pieces.values().all(|length| *length < bytes));
                }
                prop_assert_eq!(free.bytes() + held.iter().map(|(_, length)| length).sum::<usize>(), 400);
            }
            held.into_iter().for_each(|piece| free.give(piece));
            prop_assert_eq!(free.pieces, BTreeMap::from([(0, 400)]));
        }

        #[test]
        fn a_piece_is_taken_where_all_of_it_is_free_and_only_then(
            held in prop::collection::vec((0usize..100, 1usize..20), 0..8), at in 0usize..110, bytes in 1usize..30,
        ) {
            let mut free = Free::all(100);
            let held: Vec<_> = held.into_iter().filter(|piece| free.take_piece(*piece)).collect();
            let before = free.pieces.clone();
            let apart = |(other, length): &(usize, usize)| at + bytes <= *other || other + length <= at;
            let is_free = at + bytes <= 100 && held.iter().all(apart);
            prop_assert_eq!(free.take_piece((at, bytes)), is_free);
            if is_free {
                free.give((at, bytes));
            }
            prop_assert_eq!(free.pieces, before);
        }
    }
}
