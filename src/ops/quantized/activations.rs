//! Activations as whole numbers, arranged for the tiles.
//!
//! Every 32 of a row get a scale of their own and become levels in −127..=127, to the nearest; what weights that have an
//! offset need of them, their sum, is made once here. The rows of a tile lie together, block by block, so that a tile
//! reads everything from front to back. A row's numbers depend on that row alone.

use rayon::prelude::*;

use crate::ops::cpu::{Rows, threads};
use crate::ops::simd::wide;

/// Activations with one scale.
pub(super) const BLOCK: usize = 32;
/// Words of a block of a row: its levels, its scale, two starts, its sum.
pub(super) const WORDS: usize = BLOCK / 4 + 1 + 2 + 1;
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
    /// In tiles of at most `most` rows, for weights that are written so. The width is a multiple of [`BLOCK`].
    pub(super) fn of(x: Rows<'_>, most: usize, written: Written) -> Activations {
        let (tiling, blocks) = (Tiling::of(x.count, most), x.width / BLOCK);
        let mut words = vec![0; x.count * blocks * WORDS];
        let tile = |(index, words): (usize, &mut [i32])| {
            let (first, rows) = tiling.tile(index);
            for row in 0..rows {
                quantize(x.row(first + row), words, &Place { row, rows, written });
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
struct Place {
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

wide! {
    fn quantize<_FMA>(x: &[f32], tile: &mut [i32], place: &Place) {
        let Place { row, rows, written: Written { zero, halves: apart } } = *place;
        for (values, block) in x.as_chunks::<BLOCK>().0.iter().zip(tile.chunks_exact_mut(rows * WORDS)) {
            // By their bits: what is not finite is larger than any number, and so makes a scale that is not one either.
            let largest = values.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff));
            let scale = f32::from_bits(largest) / 127.0;
            let inverse = if largest == 0 { 0.0 } else { 127.0 / f32::from_bits(largest) };
            let levels = values.map(|value| nearest(value * inverse) as i8);
            let halves = levels.as_chunks::<{ BLOCK / 2 }>().0;
            let sum = |half: &[i8; BLOCK / 2]| half.iter().fold(0, |sum, level| sum + i32::from(*level));
            let (first, second) = (sum(&halves[0]), sum(&halves[1]));
            let (words, rest) = block.split_at_mut(rows * BLOCK / 4);
            for (word, bytes) in words[row * BLOCK / 4..].iter_mut().zip(levels.as_chunks::<4>().0) {
                *word = i32::from_le_bytes(bytes.map(|byte| byte as u8));
            }
            rest[row] = scale.to_bits() as i32;
            rest[rows + 2 * row] = -zero * if apart { first } else { first + second };
            rest[rows + 2 * row + 1] = if apart { -zero * second } else { 0 };
            rest[3 * rows + row] = (scale * (first + second) as f32).to_bits() as i32;
        }
    }
}

/// To the nearest whole number, ties to even, in its lowest bits.
#[inline(always)]
fn nearest(value: f32) -> i32 {
    // Adding 1.5 · 2^23 rounds to a whole number in the low bits of the mantissa.
    (value + 12_582_912.0).to_bits() as i32
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
            values in prop::collection::vec(-3f32..3.0, 64 * 21), most in 1usize..9, halves: bool,
        ) {
            let of = Activations::of(rows(&values, 64), most, Written { zero: 8, halves });
            for (row, x) in values.chunks(64).enumerate() {
                for (x, (levels, scale, starts, sum)) in x.chunks(32).zip(read(&of, row)) {
                    let largest = x.iter().fold(0f32, |a, b| a.max(b.abs()));
                    prop_assert_eq!(scale, largest / 127.0);
                    for (x, level) in x.iter().zip(&levels) {
                        prop_assert!((x - scale * f32::from(*level)).abs() <= scale * 0.5001);
                    }
                    let half = |range: std::ops::Range<usize>| levels[range].iter().map(|l| i32::from(*l)).sum::<i32>();
                    let apart = [-8 * half(0..16), -8 * half(16..32)];
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
            let mut values = vec![1f32; 64];
            values[40] = bad;
            let of = Activations::of(rows(&values, 64), 8, Written { zero: 0, halves: true });
            let blocks = read(&of, 0);
            assert!(blocks[0].1.is_finite() && !blocks[1].1.is_finite());
        }
    }

    #[test]
    fn nothing_is_nothing() {
        let of = Activations::of(rows(&[0.0; 32], 32), 8, Written { zero: 128, halves: false });
        let (levels, scale, starts, sum) = read(&of, 0).remove(0);
        assert_eq!((levels, scale, starts, sum), (vec![0; 32], 0.0, [0, 0], 0.0));
    }
}
