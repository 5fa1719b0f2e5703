//! A batch's segments as kernels read them: made on the host once a batch, uploaded in one piece.

use candle_core::Result;

use super::{Place, Tensor};
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
    pub(in crate::ops) fn upload(segments: &Segments, place: &Place) -> Result<Plan> {
        let mut table: Vec<u32> = Vec::with_capacity(segments.count() + 1 + 2 * segments.total() / TILE);
        table.extend(segments.ranges().map(|range| range.start as u32));
        table.push(segments.total() as u32);
        for (sequence, range) in segments.ranges().enumerate() {
            table.extend((0..range.len()).step_by(TILE).flat_map(|first| [sequence as u32, first as u32]));
        }
        let (sequences, length) = (segments.count(), table.len());
        Ok(Plan { table: place.upload(&table, &[1, length])?, sequences, tiles: (length - sequences - 1) / 2 })
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
