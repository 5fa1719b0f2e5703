//! Filling host memory with a version, and giving it back: piece by piece, with rests.

use std::collections::hash_map::Entry;
use std::time::Instant;

use super::super::read::{Part, Read, Reader, Seen};
use super::super::staged::unchanged;
use super::super::{CHUNK, key_of};
use super::*;
use crate::device::cuda::{Cuda, PIECE, Registered};
use crate::ops::Device;

/// Tensors begin on a border of so many bytes: any number's, and a cache line's.
const BORDER: usize = 256;
/// What is pinned is whole pages, of whatever size they are here.
const PAGES: usize = 64 << 10;

impl Parked {
    pub(in crate::weights) fn extent(&self, key: &TensorKey) -> Option<Extent> {
        self.tensors.get(key).copied()
    }

    pub(in crate::weights) fn memory(&self) -> &Arc<Registered> {
        &self.memory
    }
}

/// Lets go of memory so slowly that live traffic goes on.
pub(super) fn let_go(mut memory: Registered, pace: &Pace) {
    let mut began = Instant::now();
    while memory.unregister_last() {
        pace.rest(began.elapsed());
        began = Instant::now();
    }
}

pub(super) fn park(
    cuda: &Arc<Cuda>,
    (index, manifest, wanted): (&Index, &Manifest, &[Wanted]),
    room: impl FnOnce(u64) -> Result<Promise>,
    (progress, pace): (&Progress, &Pace),
) -> Result<Parked> {
    unchanged((index, manifest))?;
    let Layout { reads, bytes } = Layout::of(wanted, index, manifest)?;
    progress.begin(reads.iter().map(|(_, read, _)| read.bytes()).sum());
    let promise = room(bytes as u64)?;
    let mut shelf = Pinning { memory: Registered::room(cuda, bytes)?, promise: &promise, pace };
    let filled = fill(reads, &mut shelf, (index, progress)).and_then(|tensors| {
        shelf.written(bytes)?;
        progress.check()?;
        unchanged((index, manifest))?;
        Ok(tensors)
    });
    let memory = shelf.memory;
    match filled {
        Ok(tensors) => {
            let (digest, memory) = (manifest.digest.clone(), Arc::new(memory));
            Ok(Parked { digest, tensors, memory, bytes: bytes as u64, promise })
        }
        Err(error) => {
            let_go(memory, pace);
            Err(error)
        }
    }
}

/// Reads everything to where it is kept.
fn fill<'a>(
    reads: Vec<(TensorKey, Read<'a>, Extent)>,
    shelf: &mut impl Shelf,
    source: (&'a Index, &'a Progress),
) -> Result<HashMap<TensorKey, Extent>> {
    let mut reader = Reader::new(source, &Device::Cpu);
    let mut tensors = HashMap::with_capacity(reads.len());
    for (key, read, extent) in reads {
        reader.shelve(&read, extent, shelf)?;
        tensors.insert(key, extent);
    }
    Ok(tensors)
}

/// What is read, in the order of files, and where it comes to lie, one after the other.
struct Layout<'a> {
    reads: Vec<(TensorKey, Read<'a>, Extent)>,
    bytes: usize,
}

impl<'a> Layout<'a> {
    fn of(wanted: &[Wanted], index: &'a Index, manifest: &'a Manifest) -> Result<Layout<'a>> {
        let mut known: HashMap<TensorKey, Read<'a>> = HashMap::new();
        for want in wanted {
            let key = key_of(want, index, manifest)?;
            // Equal tensors are kept once.
            if let Entry::Vacant(free) = known.entry(key) {
                free.insert(Read::of(want, (index, manifest))?);
            }
        }
        let mut ordered: Vec<(TensorKey, Read<'a>)> = known.into_iter().collect();
        ordered.sort_by_key(|(_, read)| read.place());
        let mut end = 0usize;
        let mut reads = Vec::with_capacity(ordered.len());
        for (key, read) in ordered {
            let bytes =
                read.elements().checked_mul(read.dtype.size_in_bytes()).map(|_| read.parked_at(read.elements()));
            let at = end.checked_next_multiple_of(BORDER);
            let too_large = || Error::internal("a version is larger than the address space");
            let (at, bytes) = at.zip(bytes).ok_or_else(too_large)?;
            end = at.checked_add(bytes).ok_or_else(too_large)?;
            reads.push((key, read, Extent { at, bytes }));
        }
        let bytes = end.checked_next_multiple_of(PAGES).ok_or_else(|| Error::internal("no such address space"))?;
        Ok(Layout { reads, bytes })
    }
}

/// Memory that is filled from its start on.
trait Shelf {
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Everything before `end` is as it shall be.
    fn written(&mut self, end: usize) -> Result<()>;
}

/// Pins what is written, piece by piece.
struct Pinning<'a> {
    memory: Registered,
    promise: &'a Promise,
    pace: &'a Pace,
}

impl Shelf for Pinning<'_> {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    fn written(&mut self, end: usize) -> Result<()> {
        while self.memory.next_end().is_some_and(|piece| piece <= end) {
            let began = Instant::now();
            let pinned = self.memory.register_next()?;
            self.promise.touched(pinned as u64);
            self.pace.rest(began.elapsed());
        }
        Ok(())
    }
}

impl Reader<'_> {
    /// Reads a tensor to where it is kept; no part of it crosses a piece's end, so that each piece is written once.
    fn shelve(&mut self, read: &Read<'_>, extent: Extent, shelf: &mut impl Shelf) -> Result<()> {
        const { assert!(PIECE <= CHUNK) };
        for part in &read.parts {
            let mut seen = Seen::nothing();
            let start = extent.at + read.parked_at(part.first);
            for (at, bytes) in runs(Extent { at: start, bytes: read.parked_at(part.elements()) }) {
                let room = shelf.bytes_mut().get_mut(at..at + bytes);
                let room = room.ok_or_else(|| Error::internal("a tensor beyond its memory"))?;
                let filled = self.fill(read, part, at - start, (room, &mut seen))?;
                if filled != bytes {
                    return Err(Error::internal(format!("{filled} of {bytes} bytes were filled")));
                }
                shelf.written(at + bytes)?;
            }
            self.accept(part, read.dtype, &seen)?;
        }
        Ok(())
    }

    /// A part from one of its bytes on, as it is kept: as it is wanted, or as its file has it where blocks stay blocks.
    fn fill(
        &mut self,
        read: &Read<'_>,
        part: &Part<'_>,
        at: usize,
        (room, seen): (&mut [u8], &mut Seen),
    ) -> Result<usize> {
        match read.packed() {
            Some(format) => self.blocks_as_they_are((part, format), at, (room, seen)),
            None => (self.how(part, read.dtype)?.wanted)(self, part, at / read.dtype.size_in_bytes(), (room, seen)),
        }
    }
}

/// The parts of an extent that lie within one piece each: where they begin, and their bytes.
pub(in crate::weights) fn runs(extent: Extent) -> impl Iterator<Item = (usize, usize)> {
    let last = extent.at + extent.bytes;
    let mut next = extent.at;
    std::iter::from_fn(move || {
        let at = next;
        next = last.min((at / PIECE + 1) * PIECE);
        (at < last).then_some((at, next - at))
    })
}

#[cfg(test)]
#[path = "filling_tests.rs"]
mod tests;
