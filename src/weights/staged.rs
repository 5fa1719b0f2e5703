//! The way of tensors to a GPU: file, pinned slot, their own memory there; or from host memory, where they are parked.
//!
//! Several readers fill slots while others are copied, each the next piece of whatever tensor it belongs to, so that all of them
//! end at the same time; nothing of a tensor ever lies in the process whole. Whether values are
//! numbers is looked at on the GPU, when they are there, and what is in another format than the wanted one is cast there.
//! Blocks of quantised weights that stay blocks are arranged there (`packed`).
//!
//! Bytes are not hashed a second time here, which would take longer than everything else: they are those of the manifest as
//! long as the folder's files are the very ones that it was computed from, by size, time of change and inode, before
//! the first read and after the last.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::DType;

use super::packed::Packed;
use super::parked::{Parked, runs};
use super::read::{Part, Read, Reader, Seen};
use super::source::{PAGE, only_cached};
use super::{Index, Manifest, Progress, TensorInfo, quoted, readers};
use crate::device::company;
use crate::device::cuda::{Buffer, Convoy, waited_for};
use crate::error::{Error, Result};
use crate::ops::cuda::{Finite, Place};
use crate::ops::{Device, Tensor};
use crate::repository::Fingerprint;

/// A tensor under the names that it goes by.
type Named = (Vec<String>, Tensor);

/// Brings everything to the GPU, and waits for it: from here on any stream may read it.
pub(super) fn upload(
    place: &Place,
    files: (&Index, &Manifest),
    reads: Vec<Read<'_>>,
    parked: Option<&Parked>,
    progress: &Progress,
) -> Result<Vec<Named>> {
    // What is parked was held against the manifest's digests when it was read.
    let from_files = reads.iter().any(|read| read.parked.is_none());
    if from_files {
        unchanged(files)?;
        let blocks = reads.iter().flat_map(|read| &read.parts).any(|part| part.info.dtype.is_quantised());
        let no_pages = || "blocks of quantised weights do not begin with pages".to_owned();
        if let Some(why) = only_cached(files.0).or_else(|| (files.0.direct_reads && blocks).then(no_pages)) {
            tracing::info!("direct_reads means little for {}: {why}", files.0.label(""));
        }
    }
    // A number for every part, so that it is known which of them is no number.
    let mut looked_at: Vec<(&TensorInfo, DType)> = Vec::new();
    let mut numbered = Vec::with_capacity(reads.len());
    for read in reads {
        let first = looked_at.len();
        looked_at.extend(read.parts.iter().map(|part| (part.info, read.dtype)));
        numbered.push((first, read));
    }
    let finite = Finite::of(place, looked_at.len())?;
    let device = Device::Cuda(place.clone());
    let (kept, reads): (Vec<_>, Vec<_>) = numbered.into_iter().partition(|(_, read)| read.parked.is_some());
    // The last is the first to be read.
    let tensors: Vec<_> = reads.into_iter().rev().map(Coming::of).collect();
    let work = Work {
        finite: &finite,
        pieces: pieces_of(&tensors, place.gpu().staging().slot()),
        tensors,
        next: AtomicUsize::new(0),
        done: Mutex::default(),
        failed: Mutex::default(),
        stop: AtomicBool::new(false),
    };
    let send = || {
        if let Some(parked) = parked
            && let Err(error) = work.unpark(place, parked, kept, progress)
        {
            work.fail(error);
        }
        if from_files {
            work.read_all((files.0, progress), (place, &device));
        }
    };
    // Whatever was sent must have arrived before its room may be freed, or read.
    let ((), arrived) = waited_for(send, || {
        let copied = place.gpu().staging().stream().synchronize();
        copied.and(finite.synchronize())
    });
    if let Some(error) = work.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    arrived?;
    progress.check()?;
    let done = work.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let bad = finite.bad()?;
    if let Some((_, part)) = looked_at.iter().enumerate().find(|(number, _)| bad.contains(number)) {
        return Err(not_numbers(files.0, *part));
    }
    if from_files {
        unchanged(files)?;
    }
    Ok(done)
}

/// What was cast may have held numbers before.
fn not_numbers(index: &Index, (info, wanted): (&TensorInfo, DType)) -> Error {
    let same =
        info.dtype.is_quantised() && wanted == DType::U8 || info.dtype.name().eq_ignore_ascii_case(wanted.as_str());
    let reason = match same {
        false => format!("non-finite values, or values that are too large for {}", wanted.as_str()),
        true => "non-finite values".to_owned(),
    };
    Error::unloadable(index.label(""), format!("tensor {} holds {reason}", quoted(&info.name)))
}

pub(super) fn unchanged((index, manifest): (&Index, &Manifest)) -> Result<()> {
    let now = Fingerprint::of(&index.dir)?;
    if now == manifest.fingerprint {
        return Ok(());
    }
    let what = manifest.fingerprint.differences(&now).join(", ");
    Err(Error::unloadable(index.label(""), format!("the version folder changed while it was read: {what}")))
}

/// A tensor on its way.
struct Coming<'a> {
    read: Read<'a>,
    /// The number of its first part.
    number: usize,
    /// Once somebody has asked the device for it; nothing where it could not be had, or nobody needs it any more.
    room: OnceLock<Option<Arc<Buffer>>>,
    /// Pieces that were not sent yet.
    left: AtomicUsize,
}

impl<'a> Coming<'a> {
    fn of((number, read): (usize, Read<'a>)) -> Coming<'a> {
        Coming { read, number, room: OnceLock::new(), left: AtomicUsize::new(0) }
    }

    /// Waits for its room. Why there is none is told by whoever could not have it.
    fn room(&self) -> Result<&Arc<Buffer>> {
        self.room.wait().as_ref().ok_or_else(|| Error::internal("a tensor without room on its device"))
    }
}

/// Dropped, it lets nobody wait any longer for a room that nobody will ask for.
struct Refused<'a, 'b>(&'a [Coming<'b>]);

impl Drop for Refused<'_, '_> {
    fn drop(&mut self) {
        for coming in self.0 {
            // Those that are there stay.
            let _ = coming.room.set(None);
        }
    }
}

/// What one reader sends at a time: some elements or blocks of a part of a tensor, one slot of them where they can be read by
/// themselves.
struct Piece {
    tensor: usize,
    part: usize,
    grains: Range<usize>,
}

/// In the order of files; each tensor's are counted.
fn pieces_of(tensors: &[Coming<'_>], slot: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (tensor, coming) in tensors.iter().enumerate() {
        for (number, part) in coming.read.parts.iter().enumerate() {
            let (count, each) = coming.read.grains(part);
            let slot = coming.read.is_read_anywhere(part).then_some(slot);
            for grains in cuts((part.info.offset as usize, each), count, slot) {
                pieces.push(Piece { tensor, part: number, grains });
                coming.left.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    pieces
}

/// Elements, or blocks, of so many bytes `each`, from `offset` of a file on, in pieces that fill a slot: the first ends where a page of the file
/// does, since pages are copied faster to where pages begin, as slots do. Without a slot they are one piece; and so are none, or
/// nobody would say that a tensor of nothing is there.
fn cuts((offset, each): (usize, usize), count: usize, slot: Option<usize>) -> Vec<Range<usize>> {
    let most = slot.map_or(count, |slot| slot / each).max(1);
    let to_page = (PAGE - offset % PAGE) % PAGE / each;
    let first = if slot.is_some() && to_page > 0 { to_page } else { most };
    let mut ends = vec![first.min(count)];
    ends.extend((first..count).step_by(most).map(|at| (at + most).min(count)));
    let begins = std::iter::once(0).chain(ends.clone());
    begins.zip(ends).map(|(from, to)| from..to).collect()
}

/// What readers share.
struct Work<'a> {
    finite: &'a Finite,
    tensors: Vec<Coming<'a>>,
    pieces: Vec<Piece>,
    /// Of the pieces, the next that nobody has taken.
    next: AtomicUsize,
    done: Mutex<Vec<Named>>,
    /// What went wrong first.
    failed: Mutex<Option<Error>>,
    stop: AtomicBool,
}

impl<'a> Work<'a> {
    /// With as many threads as it takes, which begin as soon as there is room for the first tensor.
    fn read_all(&self, source: (&Index, &Progress), to: (&Place, &Device)) {
        // They have this thread's priority, and its share of the processors.
        let join = company();
        std::thread::scope(|scope| {
            let refused = Refused(&self.tensors);
            for _ in 1..readers(self.pieces.len()) {
                scope.spawn(|| {
                    join();
                    self.read(source, to);
                });
            }
            self.allocate(to.0, refused);
            self.read(source, to);
        });
    }

    /// Asks for room for one tensor after the other, in the order in which they are read: faster than they are, by far.
    fn allocate(&self, place: &Place, refused: Refused<'_, '_>) {
        for coming in refused.0 {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            match place.room(coming.read.device_bytes()) {
                // Nobody else gives rooms.
                Ok(room) => drop(coming.room.set(Some(Arc::new(room)))),
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Takes pieces until there are none, or until somebody failed.
    fn read(&self, source: (&Index, &Progress), (place, device): (&Place, &Device)) {
        let mut reader = Reader::new(source, device);
        while !self.stop.load(Ordering::Relaxed)
            && let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            let sent = catch_unwind(AssertUnwindSafe(|| self.send(&mut reader, place, piece)));
            if !matches!(sent, Ok(Ok(()))) {
                // Nobody reads on, and nobody waits for a turn to.
                self.stop.store(true, Ordering::Relaxed);
                source.1.hurry();
            }
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.fail(error),
                Err(panic) => resume_unwind(panic),
            }
        }
    }

    /// Whoever sends the last of a tensor queues what follows on it: everything else of it was queued before.
    fn send(&self, reader: &mut Reader<'_>, place: &Place, piece: &Piece) -> Result<()> {
        let lost = || Error::internal("a piece of no tensor");
        let coming = self.tensors.get(piece.tensor).ok_or_else(lost)?;
        let (read, room) = (&coming.read, coming.room()?);
        let part = read.parts.get(piece.part).ok_or_else(lost)?;
        match read.packed() {
            Some(format) => {
                let blocks = Packed { format, read, part, room, mark: self.finite.mark(coming.number + piece.part)? };
                reader.send_blocks(place, &blocks, piece.grains.clone())?;
            }
            None => reader.send(place, (part, piece.grains.clone()), (room, read.dtype))?,
        }
        // Each sees what others queued before they counted theirs.
        if coming.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        let tensor = on_device(place, read, room);
        self.look_at(&tensor, (coming.number, &read.parts))?;
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push((read.names.clone(), tensor));
        Ok(())
    }

    /// Queues copies of what lies in pinned memory: no reads, no casts. They are over when this returns.
    fn unpark(&self, place: &Place, parked: &Parked, kept: Vec<(usize, Read<'a>)>, progress: &Progress) -> Result<()> {
        let mut convoy = Convoy::new(place.gpu().staging(), parked.memory())?;
        for (number, mut read) in kept {
            let extent = read.parked.take().ok_or_else(|| Error::internal("a parked tensor without its memory"))?;
            // While what was sent before is copied.
            let room = Arc::new(place.room(read.device_bytes())?);
            let tensor = on_device(place, &read, &room);
            let sent = match read.packed() {
                Some(format) => read.parts.iter().enumerate().try_for_each(|(i, part)| {
                    let blocks = Packed { format, read: &read, part, room: &room, mark: self.finite.mark(number + i)? };
                    blocks.unpark(place, (&mut convoy, extent), progress)
                }),
                None => runs(extent).try_for_each(|(at, bytes)| {
                    progress.before_chunk(bytes as u64)?;
                    convoy.send((at, bytes), &room, at - extent.at)?;
                    progress.advance(bytes as u64);
                    Ok(())
                }),
            };
            if let Err(error) = sent.and_then(|()| self.look_at(&tensor, (number, &read.parts))) {
                // What was sent must have arrived before its room is freed.
                drop(convoy);
                return Err(error);
            }
            self.done.lock().unwrap_or_else(PoisonError::into_inner).push((read.names, tensor));
        }
        Ok(())
    }

    /// Queues a look at each of a tensor's parts, which need not have as many rows as one another. Blocks that stay blocks were
    /// looked at when they were arranged, and have no rows to tell apart.
    fn look_at(&self, tensor: &Tensor, (first, parts): (usize, &[Part<'_>])) -> Result<()> {
        if parts.len() == 1 || tensor.dtype() == DType::U8 {
            return self.finite.look_at(tensor, first);
        }
        let mut begin = 0;
        parts.iter().zip(first..).try_for_each(|(part, number)| {
            let rows = part.info.shape.first().copied().unwrap_or(1);
            let view = tensor.narrow_rows(begin, rows).map_err(Error::internal)?;
            begin += rows;
            self.finite.look_at(&view, number)
        })
    }

    fn fail(&self, error: Error) {
        self.stop.store(true, Ordering::Relaxed);
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

fn on_device(place: &Place, read: &Read<'_>, room: &Arc<Buffer>) -> Tensor {
    Tensor::Cuda(place.weight(Arc::clone(room), &read.layout.stored(&read.shape), read.dtype))
}

impl<'a> Reader<'a> {
    /// Some elements of a part as the file has them, through pinned slots; what is wanted in another format is cast when it is there.
    fn send(
        &mut self,
        place: &Place,
        (part, elements): (&Part<'_>, Range<usize>),
        (room, wanted): (&Buffer, DType),
    ) -> Result<()> {
        let (fill, format) = self.how(part, wanted)?.raw;
        let (mut seen, mut element) = (Seen::elsewhere(), elements.start);
        while element < elements.end {
            let staging = place.gpu().staging();
            let most = staging.slot().min((elements.end - element).saturating_mul(format.size_in_bytes()));
            self.source.pay_ahead(part.file_bytes(most / format.size_in_bytes()))?;
            let mut slot = staging.take()?;
            let filled = fill(self, part, element, (&mut slot.bytes_mut()[..most], &mut seen))?;
            let at = (part.first + element) * wanted.size_in_bytes();
            place.gpu().send(slot, (filled, format), (room, at, wanted))?;
            element += filled / format.size_in_bytes();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_all_of_a_tensor_once_and_all_but_the_first_begin_with_a_page(
            offset in 0usize..20_000, each in prop::sample::select(vec![1usize, 2, 4, 8]), count in 0usize..40_000,
            pages in 1usize..8,
        ) {
            let slot = pages * PAGE;
            let pieces = cuts((offset, each), count, Some(slot));
            let mut at = 0;
            for piece in &pieces {
                prop_assert_eq!(piece.start, at);
                prop_assert!(piece.len() * each <= slot && (!piece.is_empty() || count == 0));
                // Where elements begin at pages at all.
                if piece.start > 0 && offset % each == 0 {
                    prop_assert_eq!((offset + piece.start * each) % PAGE, 0);
                }
                at = piece.end;
            }
            prop_assert_eq!(at, count);
            prop_assert_eq!(cuts((offset, each), count, None), vec![0..count]);
        }
    }
}
