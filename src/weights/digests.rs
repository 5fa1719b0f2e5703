//! BLAKE3 of whole files and of stretches of them, in one pass over their bytes, on several threads.
//!
//! A BLAKE3 digest is the root of a binary tree over its input (paper, section 2.1), so that blocks of it can be hashed apart, in
//! any order, and their chaining values be merged; the digest is the same. A thread takes the next piece of a file and hashes what blocks
//! begin there: those of the file, and those of each stretch, which are counted from where it begins.
//!
//! Must not know what the files are, nor what their digests are for.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

use super::{CHUNK, Progress, readers};
use crate::device::{company, give_way};
use crate::error::{Error, Result};

/// What is hashed at once: a whole subtree, and long enough for the widest instructions.
const BLOCK: u64 = 128 << 10;
/// What is read at once is a piece, and the rest of blocks that begin in it.
const PIECE: u64 = CHUNK as u64;
const _: () = assert!(BLOCK.is_power_of_two() && PIECE.is_multiple_of(BLOCK));

/// A file to read.
pub(super) struct Hashed {
    pub(super) path: PathBuf,
    /// Bytes, of which none may be missing. What is behind them is not read.
    pub(super) len: u64,
    /// What has a digest of its own beside the whole file's: in order, and none over another.
    pub(super) stretches: Vec<Range<u64>>,
}

/// Of a file.
pub(super) struct Digests {
    pub(super) whole: Hash,
    /// One for each stretch.
    pub(super) stretches: Vec<Hash>,
}

/// Reads each file once, but for blocks that go past the end of a piece. `unreadable` tells of a file, by its number, that could not be read.
pub(super) fn digests(
    files: &[Hashed],
    progress: &Progress,
    unreadable: impl Fn(usize, io::Error) -> Error + Sync,
) -> Result<Vec<Digests>> {
    let pieces = files.iter().map(|file| file.len.div_ceil(PIECE) as usize).sum();
    digests_on(readers(pieces), files, progress, unreadable)
}

fn digests_on(
    threads: usize,
    files: &[Hashed],
    progress: &Progress,
    unreadable: impl Fn(usize, io::Error) -> Error + Sync,
) -> Result<Vec<Digests>> {
    let pieces = files.iter().enumerate().flat_map(|(file, Hashed { len, .. })| {
        // An empty file has one too: it is opened.
        (0..(*len).max(1)).step_by(PIECE as usize).map(move |at| (file, at))
    });
    let pieces: Vec<(usize, u64)> = pieces.collect();
    let trees = files.iter().map(|file| Mutex::new(Trees::of(file))).collect::<Vec<_>>();
    let (next, stop, failed) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    let work = || {
        let mut reader = Reader { open: None, buffer: Vec::new() };
        while !stop.load(Ordering::Relaxed)
            && let Some((number, at)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)).copied()
            && let (Some(file), Some(trees)) = (files.get(number), trees.get(number))
        {
            let hashed = reader.piece((number, file), at, progress, &unreadable);
            match hashed {
                Ok(blocks) => trees.lock().unwrap_or_else(PoisonError::into_inner).take(blocks),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    // They have this thread's priority, and its share of the processors.
    let join = company();
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                join();
                work();
            });
        }
        work();
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    progress.check()?;
    let trees = trees.into_iter().map(|trees| trees.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(trees.map(Trees::digests).collect())
}

/// A block that was hashed: which tree it is of (0 is the file's, and then its stretches'), which of its blocks, and what
/// came out.
struct Block {
    tree: usize,
    number: usize,
    value: Node,
}

enum Node {
    Inner(ChainingValue),
    /// Of a tree that is no longer than one block.
    Root(Hash),
}

/// Reads pieces and hashes what begins in them.
struct Reader {
    /// The file of the last piece.
    open: Option<(usize, File)>,
    buffer: Vec<u8>,
}

impl Reader {
    fn piece(
        &mut self,
        (number, file): (usize, &Hashed),
        at: u64,
        progress: &Progress,
        unreadable: impl Fn(usize, io::Error) -> Error,
    ) -> Result<Vec<Block>> {
        let end = (at + PIECE).min(file.len);
        progress.before_chunk(end - at)?;
        let wanted = blocks_in(file, at..end);
        // Those of the file end with the piece or before it; one of a stretch may end behind it.
        let last = wanted.iter().map(|(.., bytes)| bytes.end).fold(end, u64::max);
        self.buffer.resize((last - at) as usize, 0);
        self.read(number, file, at).map_err(|error| unreadable(number, error))?;
        let mut hashed = Vec::with_capacity(wanted.len());
        for (tree, block, bytes) in wanted {
            give_way();
            let bytes = &self.buffer[(bytes.start - at) as usize..(bytes.end - at) as usize];
            let mut hasher = Hasher::new();
            let value = match tree_of(file, tree) {
                all if all.end - all.start <= BLOCK => Node::Root(hasher.update(bytes).finalize()),
                _ => Node::Inner(hasher.set_input_offset(block as u64 * BLOCK).update(bytes).finalize_non_root()),
            };
            hashed.push(Block { tree, number: block, value });
        }
        progress.advance(end - at);
        Ok(hashed)
    }

    fn read(&mut self, number: usize, file: &Hashed, at: u64) -> io::Result<()> {
        let open = match self.open.take() {
            Some((open, handle)) if open == number => handle,
            _ => File::open(&file.path)?,
        };
        let read = open.read_exact_at(&mut self.buffer, at);
        self.open = Some((number, open));
        read
    }
}

/// Where a tree's input lies in its file.
fn tree_of(file: &Hashed, tree: usize) -> Range<u64> {
    match tree.checked_sub(1) {
        Some(stretch) => file.stretches.get(stretch).cloned().unwrap_or(0..0),
        None => 0..file.len,
    }
}

/// Blocks that begin within `piece`: of which tree, which of its blocks, and where they lie in the file. Of what is empty
/// there are none.
fn blocks_in(file: &Hashed, piece: Range<u64>) -> Vec<(usize, usize, Range<u64>)> {
    let first = file.stretches.partition_point(|stretch| stretch.end <= piece.start);
    let reached = file.stretches.iter().skip(first).take_while(|stretch| stretch.start < piece.end);
    let trees = std::iter::once((0, 0..file.len)).chain((first + 1..).zip(reached.cloned()));
    let blocks = trees.flat_map(|(tree, all)| {
        let from = piece.start.saturating_sub(all.start).div_ceil(BLOCK);
        let until = piece.end.min(all.end).saturating_sub(all.start).div_ceil(BLOCK);
        (from..until).map(move |block| {
            let start = all.start + block * BLOCK;
            (tree, block as usize, start..(start + BLOCK).min(all.end))
        })
    });
    blocks.collect()
}

/// What is known of one file's trees.
struct Trees {
    /// Bytes of each.
    lens: Vec<u64>,
    /// Chaining values of the blocks of those that have several.
    inner: Vec<Vec<ChainingValue>>,
    roots: Vec<Hash>,
}

impl Trees {
    fn of(file: &Hashed) -> Trees {
        let count = file.stretches.len() + 1;
        let lens: Vec<u64> = (0..count).map(|tree| tree_of(file, tree)).map(|all| all.end - all.start).collect();
        let several = |len: &u64| if *len > BLOCK { len.div_ceil(BLOCK) as usize } else { 0 };
        let inner = lens.iter().map(|len| vec![ChainingValue::default(); several(len)]).collect();
        // What nothing comes of is nothing's digest.
        Trees { roots: vec![blake3::hash(&[]); count], lens, inner }
    }

    fn take(&mut self, blocks: Vec<Block>) {
        for Block { tree, number, value } in blocks {
            match value {
                Node::Root(root) => self.roots[tree] = root,
                Node::Inner(value) => self.inner[tree][number] = value,
            }
        }
    }

    fn digests(self) -> Digests {
        let Trees { lens, inner, mut roots } = self;
        for ((root, values), len) in roots.iter_mut().zip(&inner).zip(lens) {
            if !values.is_empty() {
                let (left, right) = children(values, len);
                *root = merge_subtrees_root(&left, &right, Mode::Hash);
            }
        }
        let stretches = roots.split_off(1);
        Digests { whole: roots[0], stretches }
    }
}

/// The chaining values of the two subtrees of one that is longer than a block.
fn children(values: &[ChainingValue], len: u64) -> (ChainingValue, ChainingValue) {
    let left = left_subtree_len(len);
    // A power of two and at least half of what is more than a block: whole blocks.
    let (first, rest) = values.split_at((left / BLOCK) as usize);
    (merged(first, left), merged(rest, len - left))
}

fn merged(values: &[ChainingValue], len: u64) -> ChainingValue {
    match values {
        [one] => *one,
        _ => {
            let (left, right) = children(values, len);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

#[cfg(test)]
#[path = "digests_tests.rs"]
mod tests;
