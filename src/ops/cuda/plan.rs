//! A batch's segments as kernels read them: made on the host once a batch, and uploaded in one piece with what it begins with.

use candle_core::{DType, Result};

use super::{Place, Tensor, bytes_of, failed};
use crate::error::Error;
use crate::ops::Segments;

/// Queries that one block of the attention kernels computes.
const TILE: usize = 64;

/// Where sequences begin, and the tiles of queries that attention is computed in.
#[derive(Debug)]
pub(in crate::ops) struct Plan {
    /// u32 `[1, sequences + 1 + 2 * tiles]`: first rows of sequences and the end, then for each tile its sequence and its
    /// first row in that.
    table: Tensor,
    sequences: usize,
    tiles: usize,
}

impl Plan {
    /// With `values` beside it, as their bytes, their shape and their format.
    pub(in crate::ops) fn upload(
        segments: &Segments,
        values: (&[u8], &[usize], DType),
        place: &Place,
    ) -> Result<(Plan, Tensor)> {
        let mut table: Vec<u32> = Vec::with_capacity(segments.count() + 1 + 2 * segments.total() / TILE);
        table.extend(segments.ranges().map(|range| range.start as u32));
        table.push(segments.total() as u32);
        for (sequence, range) in segments.ranges().enumerate() {
            table.extend((0..range.len()).step_by(TILE).flat_map(|first| [sequence as u32, first as u32]));
        }
        let (sequences, length) = (segments.count(), table.len());
        let sent = place.upload_together(&[(bytes_of(&table)?, &[1, length], DType::U32), values])?;
        let [table, values] = <[Tensor; 2]>::try_from(sent).map_err(|_| failed(Error::internal("two were sent")))?;
        Ok((Plan { table, sequences, tiles: (length - sequences - 1) / 2 }, values))
    }

    pub(super) fn sequences(&self) -> usize {
        self.sequences
    }

    pub(super) fn tiles(&self) -> usize {
        self.tiles
    }

    pub(super) fn offsets(&self) -> u64 {
        self.table.address()
    }

    pub(super) fn tile_table(&self) -> u64 {
        self.table.address() + (self.sequences as u64 + 1) * size_of::<u32>() as u64
    }
}
