//! The way of quantised weights to a GPU where they stay as they are: blocks go up in their file's order, and are arranged and
//! looked at there, by the very kernel that puts them where they stay.
//!
//! The processor only copies them, as fast as everything else; and of a weight that is parked nothing is arranged before it is
//! needed again.

use std::ops::Range;

use super::Progress;
use super::parked::{Extent, runs};
use super::read::{Part, Read, Reader};
use crate::device::cuda::{Buffer, Convoy};
use crate::error::Result;
use crate::ops::QuantFormat;
use crate::ops::cuda::{Arranging, Mark, Place};

/// A part whose blocks stay blocks, on its way: they go up as the file has them, and are arranged and looked at there.
pub(super) struct Packed<'a> {
    pub(super) format: QuantFormat,
    pub(super) read: &'a Read<'a>,
    pub(super) part: &'a Part<'a>,
    /// Of all of the tensor.
    pub(super) room: &'a Buffer,
    /// What is set where a scale is no number.
    pub(super) mark: Mark,
}

impl Packed<'_> {
    /// Some of the part's blocks, which `send` puts at the start of a buffer.
    fn arrange(&self, place: &Place, blocks: Range<usize>, send: impl FnOnce(&Buffer) -> Result<()>) -> Result<()> {
        let Packed { format, read, part, room, mark } = *self;
        let inner = read.shape.iter().skip(1).product::<usize>();
        let arranging = Arranging {
            format,
            count: blocks.len(),
            first: part.first / format.block() + blocks.start,
            each: inner / format.block(),
            room,
            mark,
        };
        place.gpu().arrange(&arranging, send)
    }

    /// All of it from pinned memory, a slot's worth at a time.
    pub(super) fn unpark(
        &self,
        place: &Place,
        (convoy, extent): (&mut Convoy<'_>, Extent),
        progress: &Progress,
    ) -> Result<()> {
        let (each, count) = (self.format.block_bytes(), self.read.grains(self.part).0);
        let (start, most) = (extent.at + self.read.parked_at(self.part.first), place.gpu().staging().slot() / each);
        for first in (0..count).step_by(most) {
            let blocks = first..count.min(first + most);
            let lot = Extent { at: start + first * each, bytes: blocks.len() * each };
            progress.before_chunk(lot.bytes as u64)?;
            self.arrange(place, blocks, |between| {
                runs(lot).try_for_each(|(at, bytes)| convoy.send((at, bytes), between, at - lot.at))
            })?;
            progress.advance(lot.bytes as u64);
        }
        Ok(())
    }
}

impl Reader<'_> {
    /// Some blocks of a part through pinned slots.
    pub(super) fn send_blocks(&mut self, place: &Place, packed: &Packed<'_>, mut blocks: Range<usize>) -> Result<()> {
        let (format, part) = (packed.format, packed.part);
        self.expect(part, format)?;
        while !blocks.is_empty() {
            let staging = place.gpu().staging();
            let now = blocks.start..blocks.end.min(blocks.start + staging.slot() / format.block_bytes());
            let bytes = now.len() * format.block_bytes();
            self.source.pay_ahead(bytes as u64)?;
            let mut slot = staging.take()?;
            self.source.fill(part, now.start * format.block_bytes(), &mut slot.bytes_mut()[..bytes], None)?;
            blocks.start = now.end;
            packed.arrange(place, now, |between| slot.send(bytes, between, 0))?;
        }
        Ok(())
    }
}
