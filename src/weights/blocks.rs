//! Reading what is not in the file as it is wanted: values that come in blocks, and rows that lie in another order.
//!
//! Both keep what they read last, since a tensor is read from its start on in pieces that know nothing of blocks and heads.

use super::cast::{CastFrom, Element, numbers_mut};
use super::read::{Part, Read, Reader, Seen, reserve};
use super::source::Source;
use super::{CHUNK, quoted};
use crate::error::{Error, Result};
use crate::ops::{QuantFormat, Tensor};

/// Values that are made at a time: small enough to stay in a cache beside the blocks that they come from.
const RUN: usize = 32 << 10;

/// The run of blocks that was read last.
#[derive(Default)]
pub(super) struct Blocks {
    values: Vec<f32>,
    /// Which value of its tensor the first is.
    first: usize,
}

impl Reader<'_> {
    /// Blocks to where their kernels read them, as they are.
    pub(super) fn kept(&mut self, read: &Read<'_>, format: QuantFormat) -> Result<Tensor> {
        let (rows, inner) = read.shape.split_first().map_or((1, 1), |(rows, rest)| (*rows, rest.iter().product()));
        let failed = |error| Error::internal(format!("tensor {}: {error}", quoted(read.name())));
        let mut stored = reserve::<u8>(read)?;
        stored.resize(stored.capacity(), 0);
        let each = format.block_bytes();
        for part in &read.parts {
            self.expect(part, format)?;
            let (mut seen, mut at, all) = (Seen::nothing(), 0, part.info.len as usize);
            while at < all {
                let piece = self.buffer.numbers::<u8>((CHUNK / each * each).min(all - at));
                self.source.fill(part, at, piece, seen.hasher.as_mut())?;
                seen.finite &= format.all_finite(piece, 0);
                let first = part.first / format.block() + at / each;
                format.place(&mut stored, (rows, inner), first, piece).map_err(failed)?;
                at += piece.len();
            }
            self.accept(part, read.dtype, &seen)?;
        }
        self.bring(read, stored)
    }

    /// A part's bytes from one of them on, in order, as its file has them.
    #[cfg(feature = "cuda")]
    pub(super) fn blocks_as_they_are(
        &mut self,
        (part, format): (&Part<'_>, QuantFormat),
        at: usize,
        (room, seen): (&mut [u8], &mut Seen),
    ) -> Result<usize> {
        self.expect(part, format)?;
        self.source.fill(part, at, room, seen.hasher.as_mut())?;
        seen.finite &= format.all_finite(room, at);
        Ok(room.len())
    }

    /// An error for a part in another format.
    pub(super) fn expect(&self, part: &Part<'_>, format: QuantFormat) -> Result<()> {
        if part.info.dtype.blocks() == Some(format) {
            return Ok(());
        }
        let reason = format!("tensor {} is {}, not {format}", quoted(&part.info.name), part.info.dtype);
        Err(self.source.refused(part, reason))
    }

    /// Blocks to values, by way of f32.
    pub(super) fn dequantised<T: CastFrom<f32>>(
        &mut self,
        part: &Part<'_>,
        from: usize,
        (room, seen): (&mut [u8], &mut Seen),
    ) -> Result<usize> {
        let end = part.elements().min(from + room.len() / size_of::<T>());
        let values = &mut numbers_mut::<T>(room)[..end - from];
        if from == 0 {
            self.blocks = Blocks { first: 0, values: std::mem::take(&mut self.blocks.values) };
            self.blocks.values.clear();
        }
        let mut at = 0;
        while at < values.len() {
            let known = self.blocks.first + self.blocks.values.len();
            if from + at == known {
                self.next_blocks(part, seen)?;
                continue;
            }
            let (skip, room) = ((from + at).checked_sub(self.blocks.first), &mut values[at..]);
            let kept = skip.and_then(|skip| self.blocks.values.get(skip..)).filter(|kept| !kept.is_empty());
            let kept = kept.ok_or_else(|| Error::internal("a quantised tensor that is not read in order"))?;
            let count = kept.len().min(room.len());
            T::cast(&kept[..count], &mut room[..count]);
            seen.fits &= T::all_finite(&room[..count]);
            at += count;
        }
        Ok(size_of_val(values))
    }

    /// The blocks behind those that are kept, in their place.
    fn next_blocks(&mut self, part: &Part<'_>, seen: &mut Seen) -> Result<()> {
        let (values, bytes) = part.info.dtype.block();
        let first = self.blocks.first + self.blocks.values.len();
        let count = (part.elements() - first).min(RUN) / values;
        if count == 0 {
            return Err(Error::internal("a quantised tensor that ends within a block"));
        }
        let bytes = bytes as usize;
        let piece = self.buffer.numbers::<u8>(count * bytes);
        self.source.fill(part, first / values * bytes, piece, seen.hasher.as_mut())?;
        self.blocks.values.resize(count * values, 0.0);
        self.blocks.first = first;
        let format = part.info.dtype.blocks();
        let format = format.ok_or_else(|| Error::internal("a number format that has no blocks"))?;
        format.dequantize_to(piece, &mut self.blocks.values);
        seen.finite &= f32::all_finite(&self.blocks.values);
        Ok(())
    }
}

/// The head that was read last, as the file has it.
#[derive(Default)]
pub(super) struct Heads {
    bytes: Vec<u8>,
    /// Which of its tensor.
    number: Option<usize>,
}

impl Source<'_> {
    /// The tensor's bytes from `at`, where each of so many heads has its rows in llama.cpp's order.
    pub(super) fn turned(
        &mut self,
        (part, heads): (&Part<'_>, usize),
        at: usize,
        piece: &mut [u8],
        mut hasher: Option<&mut blake3::Hasher>,
    ) -> Result<()> {
        if at == 0 {
            self.heads.number = None;
        }
        let rows = part.info.shape.first().copied().unwrap_or(0) / heads.max(1);
        let head = part.info.len as usize / heads.max(1);
        let row = head / rows.max(1);
        let mut done = 0;
        while done < piece.len() {
            let (number, within) = ((at + done) / head, (at + done) % head);
            if self.heads.number != Some(number) {
                self.read_head(part, (number, head), hasher.as_deref_mut())?;
            }
            let (wanted, column) = (within / row, within % row);
            let stored = stored_row(wanted, rows) * row + column;
            let count = (row - column).min(piece.len() - done);
            let missing = || Error::internal("a head that is shorter than its rows");
            let bytes = self.heads.bytes.get(stored..stored + count).ok_or_else(missing)?;
            piece[done..done + count].copy_from_slice(bytes);
            done += count;
        }
        Ok(())
    }

    fn read_head(
        &mut self,
        part: &Part<'_>,
        (number, len): (usize, usize),
        mut hasher: Option<&mut blake3::Hasher>,
    ) -> Result<()> {
        let Heads { mut bytes, .. } = std::mem::take(&mut self.heads);
        bytes.clear();
        bytes.try_reserve_exact(len).map_err(|_| {
            let sum =
                format!("a head of tensor {} takes {len} bytes, which the system refused", quoted(&part.info.name));
            Error::NoRoom { sum, details: serde_json::json!({ "tensor": part.info.name, "bytes": len }) }
        })?;
        bytes.resize(len, 0);
        for (chunk, piece) in bytes.chunks_mut(CHUNK).enumerate() {
            self.stored(part, number * len + chunk * CHUNK, piece, hasher.as_deref_mut())?;
        }
        self.heads = Heads { bytes, number: Some(number) };
        Ok(())
    }
}

/// Where a head's row lies in the file.
fn stored_row(wanted: usize, rows: usize) -> usize {
    let half = rows / 2;
    if wanted < half { 2 * wanted } else { 2 * (wanted - half) + 1 }
}
