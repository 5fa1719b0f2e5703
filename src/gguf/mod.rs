//! The GGUF file format, versions 2 and 3: metadata, and where tensors lie. No weight bytes are read but on request.
//!
//! A leaf, since three rooms read such files: `repository` for what a version is, `process` for its tokenizer, `weights`
//! for its tensors. It must not know what any key or tensor means. Every count, length and offset of a file is held
//! against the file's size before it is believed, and nothing that is made of a header is much larger than the header.
//!
//! Source: `docs/gguf.md` of ggml; where that says less than ggml's reader (`gguf.cpp`) refuses, the reader is followed.

mod cursor;
mod metadata;
mod tensors;
#[cfg(test)]
pub(crate) mod writer;

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

pub use metadata::{Metadata, Numbers, Strings, Value};
pub use tensors::{Format, Tensor};

use cursor::Cursor;

/// What such a file's name ends with.
pub const EXTENSION: &str = "gguf";

const MAGIC: [u8; 4] = *b"GGUF";
/// Larger than that of any model: a vocabulary of 256,000 words, its scores and merges take 12 MB.
const LONGEST_HEADER: u64 = 100_000_000;

/// Everything before the tensors' bytes, checked.
#[derive(Debug)]
pub struct Header {
    pub metadata: Metadata,
    /// In the order of their bytes.
    pub tensors: Vec<Tensor>,
    /// Where the tensors' bytes begin: a multiple of the file's alignment.
    pub len: u64,
    /// Of everything before that, to know that a later read sees the same header.
    pub digest: blake3::Hash,
    pub file_len: u64,
}

impl Header {
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// Whether a file's name says that it is one.
pub fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

/// Reads and checks the header of a file.
///
/// Errors say what is wrong, without the file's name: that it is missing or not a regular file, no GGUF or of another
/// version or byte order, truncated or padded, that a count or length is not possible, a key or tensor there twice, a
/// value of no known type, and tensors in a format that is not read, of too many dimensions, unaligned, overlapping,
/// with gaps, or beyond the file's end.
pub fn open(path: &Path) -> Result<Header, String> {
    // Asked first: opening a FIFO would wait for a writer.
    let meta = fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => "the file is missing".to_owned(),
        _ => error.to_string(),
    })?;
    if !meta.is_file() {
        return Err("not a regular file".to_owned());
    }
    let file = File::open(path).map_err(|error| format!("cannot open it: {error}"))?;
    let len = file.metadata().map_err(|error| error.to_string())?.len();
    read(file, len)
}

/// Reads and checks the header at the start of `source`, a file of `file_len` bytes.
pub fn read(source: impl Read, file_len: u64) -> Result<Header, String> {
    let mut cursor = Cursor::new(source, file_len, LONGEST_HEADER);
    if cursor.bytes::<4>("its magic number")? != MAGIC {
        return Err("not GGUF: it does not begin with that word".to_owned());
    }
    match cursor.u32("its version")? {
        2 | 3 => {}
        version if version.swap_bytes() == 3 => return Err("it is big-endian, which is not read".to_owned()),
        version => return Err(format!("it is GGUF version {version}; 2 and 3 are read")),
    }
    let tensors = cursor.u64("its number of tensors")?;
    let pairs = cursor.u64("its number of metadata pairs")?;
    let metadata = Metadata::read(&mut cursor, pairs)?;
    let infos = tensors::read(&mut cursor, tensors)?;
    let alignment = tensors::alignment(&metadata)?;
    cursor.align(alignment)?;
    let (len, digest) = cursor.finish();
    let tensors = tensors::lay_out(infos, (len, file_len), alignment)?;
    Ok(Header { metadata, tensors, len, digest, file_len })
}

/// The values of a small tensor of f32, for the few that are part of a model's description.
///
/// Errors: one that is not f32 or longer than 64 KiB, and a file that cannot be read.
pub fn small_f32s(path: &Path, tensor: &Tensor) -> Result<Vec<f32>, String> {
    const LONGEST: u64 = 64 << 10;
    let wrong = |why: String| format!("tensor {}: {why}", shown(&tensor.name));
    if tensor.format != Format::F32 || tensor.len > LONGEST {
        return Err(wrong(format!("expected f32 of at most {LONGEST} bytes, found {}", tensor.format)));
    }
    let mut bytes = vec![0; tensor.len as usize];
    let file = File::open(path).map_err(|error| wrong(format!("cannot open the file: {error}")))?;
    file.read_exact_at(&mut bytes, tensor.offset).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let (numbers, _) = bytes.as_chunks::<4>();
    Ok(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
}

/// A name from a file, made safe for one line of a log.
pub fn shown(name: &str) -> String {
    const LONGEST: usize = 120;
    let text: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() { format!("'{text}…'") } else { format!("'{text}'") }
}

#[cfg(test)]
mod tests;
