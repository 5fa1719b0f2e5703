//! The way of tensors to a GPU: file, pinned slot, their own memory there; or from host memory, where they are parked.
//!
//! Several readers fill slots while others are copied; nothing of a tensor ever lies in the process whole. Whether values are
//! numbers is looked at on the GPU, when they are there, and what is in another format than the wanted one is cast there.
//!
//! Bytes are not hashed a second time here, which would take longer than everything else: they are those of the manifest as
//! long as the folder's files are the very ones that it was computed from, by size, time of change and inode, before
//! the first read and after the last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DType;

use super::parked::{Parked, runs};
use super::read::{Part, Read, Reader, Seen};
use super::{Index, Manifest, Progress, TensorInfo, quoted};
use crate::device::company;
use crate::device::cuda::{Buffer, Convoy};
use crate::error::{Error, Result};
use crate::ops::cuda::{Finite, Place};
use crate::ops::{Device, Tensor};
use crate::repository::Fingerprint;

/// Threads that read: each copies 7 to 8 GB/s out of the page cache, and eight of them nearly fill the bus (measured on an
/// H100). At most half of the processors: the others answer clients.
const READERS: usize = 8;

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
    }
    let sizes: Vec<usize> = reads.iter().map(|read| read.elements() * read.dtype.size_in_bytes()).collect();
    let rooms = place.rooms(&sizes)?;
    // A number for every part, so that it is known which of them is no number.
    let mut looked_at: Vec<(&TensorInfo, DType)> = Vec::new();
    let mut numbered = Vec::with_capacity(reads.len());
    for (mut read, room) in reads.into_iter().zip(rooms) {
        read.room = Some(room);
        let first = looked_at.len();
        looked_at.extend(read.parts.iter().map(|part| (part.info, read.dtype)));
        numbered.push((first, read));
    }
    let finite = Finite::of(place, looked_at.len())?;
    let device = Device::Cuda(place.clone());
    let (kept, reads) = numbered.into_iter().partition(|(_, read)| read.parked.is_some());
    let work = Work {
        finite: &finite,
        queue: Mutex::new(reads),
        done: Mutex::default(),
        failed: Mutex::default(),
        stop: AtomicBool::new(false),
    };
    if let Some(parked) = parked
        && let Err(error) = work.unpark(place, parked, kept, progress)
    {
        work.fail(error);
    }
    if from_files {
        work.read_all((files.0, progress), &device);
    }
    // Whatever was sent must have arrived before its room may be freed, or read.
    let arrived = place.gpu().staging().stream().synchronize();
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
    let reason = match info.dtype.name().eq_ignore_ascii_case(wanted.as_str()) {
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

/// What readers share.
struct Work<'a> {
    finite: &'a Finite,
    /// With the numbers of their first parts; the last is the next.
    queue: Mutex<Vec<(usize, Read<'a>)>>,
    done: Mutex<Vec<Named>>,
    /// What went wrong first.
    failed: Mutex<Option<Error>>,
    stop: AtomicBool,
}

impl<'a> Work<'a> {
    /// With as many threads as it takes.
    fn read_all(&self, source: (&Index, &Progress), device: &Device) {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let readers = (processors / 2).clamp(1, READERS);
        // They have this thread's priority, and its share of the processors.
        let join = company();
        std::thread::scope(|scope| {
            for _ in 1..readers {
                scope.spawn(|| {
                    join();
                    self.read(source, device);
                });
            }
            self.read(source, device);
        });
    }

    /// Takes tensors until there are none, or until somebody failed.
    fn read(&self, source: (&Index, &Progress), device: &Device) {
        let mut reader = Reader::new(source, device);
        while !self.stop.load(Ordering::Relaxed)
            && let Some((number, mut read)) = self.next()
        {
            let brought = reader.read(&mut read).and_then(|tensor| {
                self.look_at(&tensor, (number, read.parts.len()))?;
                Ok((read.names, tensor))
            });
            match brought {
                Ok(done) => self.done.lock().unwrap_or_else(PoisonError::into_inner).push(done),
                Err(error) => self.fail(error),
            }
        }
    }

    /// Queues copies of what lies in pinned memory: no reads, no casts. They are over when this returns.
    fn unpark(&self, place: &Place, parked: &Parked, kept: Vec<(usize, Read<'a>)>, progress: &Progress) -> Result<()> {
        let mut convoy = Convoy::new(place.gpu().staging(), parked.memory())?;
        for (number, mut read) in kept {
            let missing = || Error::internal("a parked tensor without its memory, or without room on its device");
            let (extent, room) = read.parked.take().zip(read.room.take()).ok_or_else(missing)?;
            let room = Arc::new(room);
            let tensor = Tensor::Cuda(place.weight(Arc::clone(&room), &read.shape, read.dtype));
            let sent = runs(extent).try_for_each(|(at, bytes)| {
                progress.between_chunks()?;
                convoy.send((at, bytes), &room, at - extent.at)?;
                progress.advance(bytes as u64);
                Ok(())
            });
            if let Err(error) = sent.and_then(|()| self.look_at(&tensor, (number, read.parts.len()))) {
                // What was sent must have arrived before its room is freed.
                drop(convoy);
                return Err(error);
            }
            self.done.lock().unwrap_or_else(PoisonError::into_inner).push((read.names, tensor));
        }
        Ok(())
    }

    /// Queues a look at each of a tensor's parts.
    fn look_at(&self, tensor: &Tensor, (first, parts): (usize, usize)) -> Result<()> {
        let rows = tensor.dims().first().copied().unwrap_or(1) / parts.max(1);
        (0..parts).try_for_each(|part| {
            let view = if parts == 1 { Ok(tensor.clone()) } else { tensor.narrow_rows(part * rows, rows) };
            self.finite.look_at(&view.map_err(Error::internal)?, first + part)
        })
    }

    fn fail(&self, error: Error) {
        self.stop.store(true, Ordering::Relaxed);
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// The next in the order of files, and its first part's number.
    fn next(&self) -> Option<(usize, Read<'a>)> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

impl<'a> Reader<'a> {
    /// As the file has it, through pinned slots; what is wanted in another format is cast when it is there.
    pub(super) fn staged(&mut self, place: &Place, read: &mut Read<'_>) -> Result<Tensor> {
        let room = read.room.take().ok_or_else(|| Error::internal("a tensor without room on its device"))?;
        let room = Arc::new(room);
        let sent = read.parts.iter().try_for_each(|part| self.send(place, part, (&room, read.dtype)));
        if let Err(error) = sent {
            // What was sent must have arrived before its room is freed.
            place.gpu().staging().stream().synchronize()?;
            return Err(error);
        }
        Ok(Tensor::Cuda(place.weight(room, &read.shape, read.dtype)))
    }

    fn send(&mut self, place: &Place, part: &Part<'_>, (room, wanted): (&Buffer, DType)) -> Result<()> {
        let (fill, format) = self.how(part, wanted)?.raw;
        let (mut seen, mut element) = (Seen::elsewhere(), 0);
        while element < part.elements() {
            let mut slot = place.gpu().staging().take()?;
            let filled = fill(self, part, element, (slot.bytes_mut(), &mut seen))?;
            let at = (part.first + element) * wanted.size_in_bytes();
            place.gpu().send(slot, (filled, format), (room, at, wanted))?;
            element += filled / format.size_in_bytes();
        }
        Ok(())
    }
}
