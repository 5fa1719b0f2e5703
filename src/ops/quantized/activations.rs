//! Activations as whole numbers, arranged for the tiles.
//!
//! Every 32 of a row get a scale of their own and become levels in −127..=127, to the nearest; what weights that have an
//! offset need of them, their sum, is made once here. The rows of a tile lie together, block by block, so that a tile
//! reads everything from front to back. A row's numbers depend on that row alone.

use rayon::prelude::*;

use super::format::QuantFormat;
use super::lanes::Lanes;
use super::opened::written;
use super::path::Path;
use crate::ops::cpu::{Rows, threads};

/// Activations with one scale.
pub(super) const BLOCK: usize = 32;
/// Words of a block of a row: its levels, its scale, two starts, its sum.
pub(super) const WORDS: usize = BLOCK / 4 + 1 + 2 + 1;
/// Activations of a block that are all smaller than this are taken for zeroes: 127 of it would not be finite.
const NOTHING: f32 = 1e-35;
/// Values below which another thread is not worth waking: some 5 µs.
const GRAIN: usize = 16 * 1024;

/// 32 activations of each row of a tile.
#[repr(C)]
pub(super) struct Block<const ROWS: usize> {
    /// Signed bytes, four in a word.
    pub(super) levels: [[i32; BLOCK / 4]; ROWS],
    /// What a level stands for.
    pub(super) scale: [f32; ROWS],
    /// What the sums of the products of levels begin with, for the block or for each half of it: weights' levels are
    /// written without a sign, so that so much is too much.
    pub(super) start: [[i32; 2]; ROWS],
    /// The sum of the activations, as they are after rounding.
    pub(super) sum: [f32; ROWS],
}

const _: () = assert!(size_of::<Block<5>>() == 5 * WORDS * 4 && align_of::<Block<5>>() == 4);

/// Rows in tiles: the first `taller` have one more than `height`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    pub(super) count: usize,
    height: usize,
    taller: usize,
}

impl Tiling {
    /// As few tiles of at most so many rows as there can be, as equal as they can be.
    pub(super) fn of(rows: usize, most: usize) -> Tiling {
        let count = rows.div_ceil(most).max(1);
        Tiling { count, height: rows / count, taller: rows % count }
    }

    /// The first row of a tile, and how many it has.
    pub(super) fn tile(self, index: usize) -> (usize, usize) {
        (index * self.height + index.min(self.taller), self.height + usize::from(index < self.taller))
    }
}

/// All rows of a batch: `[tile][block]` of [`Block`]s.
pub(super) struct Activations {
    pub(super) words: Vec<i32>,
    pub(super) tiling: Tiling,
    /// In a row.
    pub(super) blocks: usize,
}

impl Activations {
    /// For weights of a format, in tiles of rows as the instructions like them. The width is a multiple of [`BLOCK`].
    pub(super) fn of(x: Rows<'_>, path: Path, format: QuantFormat) -> Activations {
        let (most, signed) = path.likes();
        let written = written(format, signed);
        let (tiling, blocks) = (Tiling::of(x.count, most), x.width / BLOCK);
        let mut words = vec![0; x.count * blocks * WORDS];
        let tile = |(index, words): (usize, &mut [i32])| {
            let (first, rows) = tiling.tile(index);
            for row in 0..rows {
                path.quantize(x.row(first + row), words, &Place { row, rows, written });
            }
        };
        let (taller, others) = words.split_at_mut(tiling.taller * (tiling.height + 1) * blocks * WORDS);
        let (tall, low) = ((tiling.height + 1) * blocks * WORDS, (tiling.height * blocks * WORDS).max(1));
        if threads() == 1 || x.count * x.width < GRAIN {
            taller.chunks_mut(tall.max(1)).chain(others.chunks_mut(low)).enumerate().for_each(tile);
        } else {
            taller.par_chunks_mut(tall.max(1)).chain(others.par_chunks_mut(low)).enumerate().for_each(tile);
        }
        Activations { words, tiling, blocks }
    }

    /// Words before a tile.
    pub(super) fn before(&self, tile: usize) -> usize {
        self.tiling.tile(tile).0 * self.blocks * WORDS
    }
}

/// Which row of a tile is written, and for which weights.
pub(super) struct Place {
    row: usize,
    rows: usize,
    written: Written,
}

/// How weights are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    /// The level of a weight that is nothing.
    pub(super) zero: i32,
    /// The halves of a block have scales of their own.
    pub(super) halves: bool,
}

/// Writes a row to its place in a tile.
///
/// # Safety
/// The processor has the instructions.
#[allow(unsafe_code)]
#[inline(always)]
pub(super) unsafe fn quantize<L: Lanes>(x: &[f32], tile: &mut [i32], place: &Place) {
    let Place { row, rows, written: Written { zero, halves } } = *place;
    for (values, block) in x.as_chunks::<BLOCK>().0.iter().zip(tile.chunks_exact_mut(rows * WORDS)) {
        // By their bits: what is not finite is larger than any number, and so makes a scale that is not one either.
        // SAFETY: the caller's, here and below.
        let largest = f32::from_bits(unsafe { L::largest(values) });
        let inverse = if largest < NOTHING { 0.0 } else { 127.0 / largest };
        let (words, rest) = block.split_at_mut(rows * BLOCK / 4);
        let (words, _) = words[row * BLOCK / 4..].split_at_mut(BLOCK / 4);
        // SAFETY: as above.
        let [first, second] = unsafe { L::levels(values, inverse, words) };
        let (scale, sum) = (largest / 127.0, first.wrapping_add(second));
        rest[row] = scale.to_bits() as i32;
        let starts = if halves { [first, second] } else { [sum, 0] };
        rest[rows + 2 * row] = starts[0].wrapping_mul(-zero);
        rest[rows + 2 * row + 1] = starts[1].wrapping_mul(-zero);
        rest[3 * rows + row] = (scale * sum as f32).to_bits() as i32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(data: &[f32], width: usize) -> Rows<'_> {
        Rows { data, count: data.len() / width, width, stride: width }
    }

    /// The blocks of a row: levels, scale, starts and sum.
    fn read(of: &Activations, row: usize) -> Vec<(Vec<i8>, f32, [i32; 2], f32)> {
        let tile = (0..of.tiling.count).rfind(|&tile| of.tiling.tile(tile).0 <= row).unwrap();
        let (first, rows) = of.tiling.tile(tile);
        let row = row - first;
        let blocks = of.words[of.before(tile)..][..rows * of.blocks * WORDS].chunks(rows * WORDS);
        blocks
            .map(|block| {
                let levels = block[row * 8..][..8].iter().flat_map(|word| word.to_le_bytes().map(|b| b as i8));
                let float = |at: usize| f32::from_bits(block[at] as u32);
                let starts = [block[rows * 9 + 2 * row], block[rows * 9 + 2 * row + 1]];
                (levels.collect(), float(rows * 8 + row), starts, float(rows * 11 + row))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn a_level_is_the_nearest_multiple_of_its_scale(
            values in prop::collection::vec(-3f32..3.0, 64 * 21), halves: bool,
        ) {
            let (format, zero) = if halves { (QuantFormat::Q6_K, 32) } else { (QuantFormat::Q4_0, 8) };
            for (path, (row, x)) in Path::all().flat_map(|path| values.chunks(64).enumerate().map(move |row| (path, row))) {
                let of = Activations::of(rows(&values, 64), path, format);
                for (x, (levels, scale, starts, sum)) in x.chunks(32).zip(read(&of, row)) {
                    let largest = x.iter().fold(0f32, |a, b| a.max(b.abs()));
                    prop_assert_eq!(scale, largest / 127.0);
                    for (x, level) in x.iter().zip(&levels) {
                        prop_assert!((x - scale * f32::from(*level)).abs() <= scale * 0.5001);
                    }
                    let half = |range: std::ops::Range<usize>| levels[range].iter().map(|l| i32::from(*l)).sum::<i32>();
                    let apart = [-zero * half(0..16), -zero * half(16..32)];
                    prop_assert_eq!(starts, if halves { apart } else { [apart[0] + apart[1], 0] });
                    prop_assert_eq!(sum, scale * half(0..32) as f32);
                }
            }
        }

        #[test]
        fn tiles_have_every_row_once(rows in 0usize..300, most in 1usize..17) {
            let tiling = Tiling::of(rows, most);
            let mut next = 0;
            for index in 0..tiling.count {
                let (first, rows) = tiling.tile(index);
                prop_assert!(first == next && rows <= most);
                next += rows;
            }
            prop_assert_eq!(next, rows);
        }
    }

    #[test]
    fn what_is_not_finite_makes_a_scale_that_is_not() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (path, at) in Path::all().flat_map(|path| (32..64).map(move |at| (path, at))) {
                let mut values = vec![1f32; 64];
                values[at] = bad;
                let blocks = read(&Activations::of(rows(&values, 64), path, QuantFormat::Q6_K), 0);
                assert!(blocks[0].1.is_finite() && !blocks[1].1.is_finite(), "{path:?} {at}");
            }
        }
    }

    #[test]
    fn nothing_is_nothing_and_next_to_nothing_is_too() {
        for (path, value) in Path::all().flat_map(|path| [0.0, 1e-36, -1e-44].map(|value| (path, value))) {
            let of = Activations::of(rows(&[value; 32], 32), path, QuantFormat::Q8_0);
            assert_eq!(read(&of, 0), [(vec![0; 32], value.abs() / 127.0, [0, 0], 0.0)], "{path:?}");
        }
    }
}
