//! One tensor as bytes in another number format, for those who write it elsewhere and not for a device.

use candle_core::DType;

use super::cast::Buffer;
use super::read::{Part, Reader, Seen};
use super::{CHUNK, Index, Progress};
use crate::error::{Error, Result};
use crate::ops::Device;

/// Gives `sink` the values of a tensor, row after row, little-endian, in pieces of at most 1 MiB.
///
/// Errors: a tensor that is not there or cannot become `dtype`, values that are not finite or do not fit it, a file that
/// cannot be read, and what `sink` fails with. No digest is looked at: whoever reads the copy computes its own.
pub fn copy(index: &Index, name: &str, dtype: DType, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let missing = || Error::unloadable(index.label(""), format!("tensor {} is missing", index.named(name)));
    let part = Part { info: index.get(name).ok_or_else(missing)?, digest: "", first: 0 };
    let progress = Progress::new();
    let mut reader = Reader::new((index, &progress), &Device::Cpu);
    let fill = reader.how(&part, dtype)?.wanted;
    let (mut piece, mut seen) = (Buffer::new(CHUNK), Seen::nothing());
    let mut at = 0;
    while at < part.elements() {
        let room = piece.numbers::<u8>(CHUNK);
        let filled = fill(&mut reader, &part, at, (&mut *room, &mut seen))?;
        sink(&room[..filled])?;
        at += filled / dtype.size_in_bytes();
    }
    reader.numbers(&part, dtype, &seen)
}
