//! A batch's segments as kernels read them: made on the host once a batch, and uploaded in one
//! piece with what it begins with, or slot by slot where that is more than a slot holds.

use candle_core::{DType, Result};

use super::{Place, Tensor, bytes_of, failed};
use crate::error::Error;
use crate::ops::Segments;

/// Queries that one block of the attention kernels computes.
const TILE: usize = 64;

/// First rows in a table that are not of sequences: of what belongs to none, of nothing, and the end.
const BESIDE: usize = 3;

/// Where sequences begin, and the tiles of queries that attention is computed in.
#[derive(Debug)]
pub(in crate::ops) struct Plan {
    /// u32 `[1, sequences + 3 + 2 * tiles]`: first rows of sequences, of what belongs to none, and of nothing, and the end; then for
    /// each tile its sequence and its first row in that.
    table: Tensor,
    sequences: usize,
    tiles: usize,
}

impl Plan {
    /// With values beside it, as the parts that their bytes are in, their shape and their format.
    pub(in crate::ops) fn upload(
        segments: &Segments,
        (parts, shape, dtype): (&[&[u8]], &[usize], DType),
        place: &Place,
    ) -> Result<(Plan, Tensor)> {
        let table = table(segments);
        let (plan, values) = Plan::room(segments, (table.len(), shape, dtype), place)?;
        place.send(&[(&plan.table.spot()?, &[bytes_of(&table)?]), (&values.spot()?, parts)])?;
        Ok((plan, values))
    }

    /// Room for both, with nothing in it.
    pub(super) fn room(
        segments: &Segments,
        (length, shape, dtype): (usize, &[usize], DType),
        place: &Place,
    ) -> Result<(Plan, Tensor)> {
        let sequences = segments.count();
        let rooms = Tensor::side_by_side(place, [(&[1, length][..], DType::U32), (shape, dtype)].into_iter())?;
        let [table, values] = <[Tensor; 2]>::try_from(rooms).map_err(|_| failed(Error::internal("two were wanted")))?;
        Ok((Plan { table, sequences, tiles: (length - sequences - BESIDE) / 2 }, values))
    }

    pub(super) fn table(&self) -> &Tensor {
        &self.table
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
        self.table.address() + ((self.sequences + BESIDE) * size_of::<u32>()) as u64
    }
}

/// What is in a plan's table. For segments that were filled up it is as long as for any others of their sizes: with tiles of an
/// empty sequence, of which kernels make nothing.
pub(super) fn table(segments: &Segments) -> Vec<u32> {
    let (sequences, rest) = (segments.count(), segments.rest());
    let most = sequences + BESIDE + 2 * most_tiles(segments);
    let mut table: Vec<u32> = Vec::with_capacity(most);
    table.extend(segments.ranges().map(|range| range.start as u32));
    table.extend([rest.start, rest.end, rest.end].map(|row| row as u32));
    for (sequence, range) in segments.ranges().chain([rest]).enumerate() {
        table.extend((0..range.len()).step_by(TILE).flat_map(|first| [sequence as u32, first as u32]));
    }
    while segments.is_filled_up() && table.len() < most {
        table.extend([sequences as u32 + 1, 0]);
    }
    table
}

/// Tiles that as many sequences of as many rows come to at most: one for each, and one for every further [`TILE`] rows.
fn most_tiles(segments: &Segments) -> usize {
    let (parts, total) = (segments.count() + 1, segments.total());
    parts + total.saturating_sub(parts) / TILE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// First rows, and tiles as the rows of which they are.
    fn read(table: &[u32], sequences: usize) -> (Vec<u32>, Vec<std::ops::Range<u32>>) {
        let (offsets, tiles) = table.split_at(sequences + BESIDE);
        let tiles = tiles.chunks(2).map(|tile| {
            let (first, end) = (offsets[tile[0] as usize], offsets[tile[0] as usize + 1]);
            let row = first + tile[1];
            row..end.min(row + TILE as u32)
        });
        (offsets.to_vec(), tiles.collect())
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_tile_and_tables_of_a_size_are_of_a_length(
            lengths in prop::collection::vec(1usize..200, 1..9), more in 0usize..4, rows in 0usize..300,
        ) {
            let eager = Segments::of(lengths.clone());
            let (_, tiles) = read(&table(&eager), lengths.len());
            prop_assert!(tiles.iter().all(|tile| !tile.is_empty()));
            let total = eager.total() + more + rows;
            let count = lengths.len() + more;
            let filled = Segments::filled_up(lengths, (count, total)).unwrap();
            let other = Segments::filled_up([1], (count, total)).unwrap();
            prop_assert_eq!(table(&filled).len(), table(&other).len());
            let (offsets, tiles) = read(&table(&filled), count);
            prop_assert!(offsets[count + 1..].iter().all(|end| *end as usize == total));
            let mut all: Vec<u32> = tiles.into_iter().flatten().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..total as u32).collect::<Vec<_>>());
        }
    }
}
