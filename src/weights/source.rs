//! The files of a version, read at given offsets: each chunk in its turn, and every byte by the hasher where there is one.
//!
//! By way of the page cache, or past it where that is asked for: then reading a model does not push other files out of memory, and takes
//! less of the processors. Must not know what bytes mean, nor where they go.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::blocks::Heads;
use super::read::Part;
use super::{Index, Progress};
use crate::error::{Error, Result};

/// The files of an index, read at given offsets.
pub(super) struct Source<'a> {
    pub(super) index: &'a Index,
    pub(super) progress: &'a Progress,
    /// The file of the last read: most reads come in file order, so one is enough.
    open: Option<(usize, Open)>,
    /// The head of the last read, where heads have their rows in another order.
    pub(super) heads: Heads,
    /// Bytes that are still to be read and were waited for already.
    paid: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(index: &'a Index, progress: &'a Progress) -> Self {
        Source { index, progress, open: None, heads: Heads::default(), paid: 0 }
    }

    pub(super) fn refused(&self, part: &Part<'_>, reason: String) -> Error {
        Error::unloadable(self.index.label_of(part.info), reason)
    }

    /// Waits for the turn of what is read next, before anything is taken that others wait for.
    #[cfg(feature = "cuda")]
    pub(super) fn pay_ahead(&mut self, bytes: u64) -> Result<()> {
        self.progress.before_chunk(bytes)?;
        self.paid += bytes;
        Ok(())
    }

    /// The tensor's bytes from `at`, as many as `piece` has, each row in its place.
    ///
    /// A tensor is read from its start on, each byte once.
    pub(super) fn fill(
        &mut self,
        part: &Part<'_>,
        at: usize,
        piece: &mut [u8],
        hasher: Option<&mut blake3::Hasher>,
    ) -> Result<()> {
        match part.info.heads {
            None => self.stored(part, at, piece, hasher),
            Some(heads) => self.turned((part, heads), at, piece, hasher),
        }
    }

    /// As the file has them.
    pub(super) fn stored(
        &mut self,
        part: &Part<'_>,
        at: usize,
        piece: &mut [u8],
        hasher: Option<&mut blake3::Hasher>,
    ) -> Result<()> {
        let bytes = piece.len() as u64;
        let paid = bytes.min(self.paid);
        self.paid -= paid;
        self.progress.before_chunk(bytes - paid)?;
        let offset = part.info.offset + at as u64;
        let result = self.file(part)?.read(piece, offset);
        result.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.refused(part, "the file ended early: it changed".to_owned()),
            _ => self.refused(part, format!("cannot read it: {error}")),
        })?;
        if let Some(hasher) = hasher {
            hasher.update(piece);
        }
        self.progress.advance(bytes);
        Ok(())
    }

    fn file(&mut self, part: &Part<'_>) -> Result<&mut Open> {
        let number = part.info.file;
        let file = match self.open.take() {
            Some((open, file)) if open == number => file,
            _ => {
                let name = self.index.files.get(number).ok_or_else(|| Error::internal("an index without its file"))?;
                let open = Open::of(&self.index.dir.join(name), self.index.direct_reads);
                open.map_err(|error| self.refused(part, format!("cannot open it: {error}")))?
            }
        };
        Ok(&mut self.open.insert((number, file)).1)
    }
}

/// What the page cache keeps files in, and what reads past it begin and end with, in the file and in memory: no device has
/// larger blocks.
pub(super) const PAGE: usize = 4096;

/// A file to read at offsets.
struct Open {
    file: File,
    /// The same, past the page cache; none where that is not wanted, or its file system does not do it.
    direct: Option<File>,
}

impl Open {
    fn of(path: &Path, direct: bool) -> io::Result<Open> {
        let file = File::open(path)?;
        // It could be opened, and is read without this where need be.
        Ok(Open { file, direct: if direct { open_direct(path).ok().flatten() } else { None } })
    }

    /// Whole pages that go to where a page begins are read past the page cache; the rest by way of it. Where that cannot be done,
    /// be it for the blocks of a device, the memory or the file system, nothing is, and what is wrong with the file itself
    /// is found by way of the cache as well.
    fn read(&mut self, piece: &mut [u8], offset: u64) -> io::Result<()> {
        let aligned = piece.as_ptr().addr().is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64);
        let pages = if aligned { piece.len() / PAGE * PAGE } else { 0 };
        let (whole, rest) = piece.split_at_mut(pages);
        if let Some(direct) = self.direct.as_ref().filter(|_| pages > 0) {
            match direct.read_exact_at(whole, offset) {
                Ok(()) => return self.file.read_exact_at(rest, offset + pages as u64),
                Err(error) => {
                    tracing::info!(%error, "weights are read by way of the page cache: a read past it failed");
                    self.direct = None;
                }
            }
        }
        self.file.read_exact_at(piece, offset)
    }
}

/// None where the file system only reads by way of the page cache. (open(2), O_DIRECT.)
#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::OpenOptionsExt;
    match File::options().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

/// Why weights that were to be read past the page cache are read by way of it; none where they are not.
#[cfg(feature = "cuda")]
pub(super) fn only_cached(index: &Index) -> Option<String> {
    let first = index.files.first().filter(|_| index.direct_reads)?;
    match open_direct(&index.dir.join(first)) {
        Ok(Some(_)) => None,
        Ok(None) => Some("the file system does not do it".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
