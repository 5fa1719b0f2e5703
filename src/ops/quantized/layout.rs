//! How quantised weights lie in memory: panels of sixteen rows, block beside block.
//!
//! `[⌈out / 16⌉, in / block, unit]` bytes, where a *unit* is one block of each of sixteen rows, arranged so that a kernel
//! reads it from front to back in whole registers:
//!
//! | format | scales of the sixteen rows | levels, for every 32 weights |
//! | --- | --- | --- |
//! | Q4_0 | `scale[16]` f16 | `low[4][16][4]` |
//! | Q4_1 | `scale[16] least[16]` f16 | `low[4][16][4]` |
//! | Q8_0 | `scale[16]` f16 | `level[8][16][4]`, plus 128 |
//! | Q4_K | `scale[16] offset[16]` f16, `a[8][16] b[8][16]` u8 | `low[4][16][4]` |
//! | Q6_K | `scale[16]` f16, `a[16][16]` i8 | `low[4][16][4] high[2][16][4]` |
//!
//! Four levels of a row lie together, those of sixteen rows side by side: what one instruction multiplies (`lanes`). A
//! byte of `low` has weight `i` of 32 in its low half and `i + 16` in its high half; a byte of `high` has the upper two
//! bits of weights `i`, `i + 8`, `i + 16` and `i + 24`. It takes the bytes of the file, but for Q4_K, whose packed
//! scales are laid open: 148 bytes for 144. Rows that do not fill the last panel are zero.
//!
//! On a GPU it is the same, but that those of Q4_K stay as they are, `packed[12][16]`, since bytes are what is short there; its
//! kernels arrange what comes up as a file has it (`kernels/quantized.cuh`).

use candle_core::{Result, bail};

use super::format::{QuantFormat, half, q4_k_levels, q4_k_scale, q6_k_levels};
use crate::ops::matmul::PANEL;

/// Where the parts of a unit begin, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    /// Of the levels of the first 32 weights.
    pub(super) levels: usize,
    /// Of the next 32, from there.
    pub(super) part: usize,
    /// Parts of 32 weights.
    pub(super) parts: usize,
}

impl Unit {
    pub(super) const fn of(format: QuantFormat) -> Unit {
        match format {
            QuantFormat::Q4_0 => Unit { levels: 2 * PANEL, part: 16 * PANEL, parts: 1 },
            QuantFormat::Q4_1 => Unit { levels: 4 * PANEL, part: 16 * PANEL, parts: 1 },
            QuantFormat::Q8_0 => Unit { levels: 2 * PANEL, part: 32 * PANEL, parts: 1 },
            QuantFormat::Q4_K => Unit { levels: (4 + 16) * PANEL, part: 16 * PANEL, parts: 8 },
            QuantFormat::Q6_K => Unit { levels: (2 + 16) * PANEL, part: 24 * PANEL, parts: 8 },
        }
    }

    pub(super) const fn bytes(self) -> usize {
        self.levels + self.part * self.parts
    }
}

impl QuantFormat {
    /// The shape of the bytes that hold a weight of `out` rows of `inner` weights. An `inner` that blocks do not fill is
    /// an error for [`QuantFormat::place`].
    pub fn stored(self, out: usize, inner: usize) -> [usize; 3] {
        [out.div_ceil(PANEL), inner.div_ceil(self.block()), Unit::of(self).bytes()]
    }

    /// The same on a GPU: the bytes of the file, and those of rows that fill the last panel.
    pub fn stored_packed(self, out: usize, inner: usize) -> [usize; 3] {
        [out.div_ceil(PANEL), inner.div_ceil(self.block()), PANEL * self.block_bytes()]
    }

    /// Puts whole blocks of a file, from block `first` of the weight on, where they stay in `stored`, which has the bytes
    /// of [`QuantFormat::stored`] and began as zeroes. Blocks go row by row, as files have them.
    pub fn place(self, stored: &mut [u8], (out, inner): (usize, usize), first: usize, blocks: &[u8]) -> Result<()> {
        let each = self.row_bytes(inner)? / self.block_bytes();
        let unit = Unit::of(self).bytes();
        let count = blocks.len() / self.block_bytes();
        if stored.len() != self.stored(out, inner).iter().product::<usize>()
            || blocks.len() != count * self.block_bytes()
            || first + count > out * each
        {
            bail!("{} bytes are no {self} blocks from {first} on of a weight of [{out}, {inner}]", blocks.len());
        }
        for (i, block) in blocks.chunks_exact(self.block_bytes()).enumerate() {
            let (row, column) = ((first + i) / each, (first + i) % each);
            let start = (row / PANEL * each + column) * unit;
            self.place_block(&mut stored[start..start + unit], row % PANEL, block);
        }
        Ok(())
    }

    fn place_block(self, unit: &mut [u8], lane: usize, block: &[u8]) {
        let Unit { levels, part, parts } = Unit::of(self);
        let (scales, levels) = unit.split_at_mut(levels);
        match self {
            QuantFormat::Q4_0 => {
                scales[2 * lane..][..2].copy_from_slice(&block[..2]);
                put_words(levels, lane, block[2..].iter().copied());
            }
            QuantFormat::Q4_1 => {
                scales[2 * lane..][..2].copy_from_slice(&block[..2]);
                scales[2 * (PANEL + lane)..][..2].copy_from_slice(&block[2..4]);
                put_words(levels, lane, block[4..].iter().copied());
            }
            QuantFormat::Q8_0 => {
                scales[2 * lane..][..2].copy_from_slice(&block[..2]);
                put_words(levels, lane, block[2..].iter().map(|level| level ^ 0x80));
            }
            QuantFormat::Q4_K => {
                scales[2 * lane..][..2].copy_from_slice(&block[..2]);
                scales[2 * (PANEL + lane)..][..2].copy_from_slice(&block[2..4]);
                for i in 0..parts {
                    let (a, b) = q4_k_scale(block, i);
                    scales[(4 + i) * PANEL + lane] = a;
                    scales[(12 + i) * PANEL + lane] = b;
                    put_low(&mut levels[i * part..][..part], lane, &q4_k_levels(block, i));
                }
            }
            QuantFormat::Q6_K => {
                scales[2 * lane..][..2].copy_from_slice(&block[208..]);
                for (i, a) in block[192..208].iter().enumerate() {
                    scales[(2 + i) * PANEL + lane] = *a;
                }
                for i in 0..parts {
                    let (now, of) = (&mut levels[i * part..][..part], q6_k_levels(block, i));
                    let (low, high) = now.split_at_mut(16 * PANEL);
                    put_low(low, lane, &of.map(|level| level & 15));
                    let upper = |j: usize| (0..4).fold(0, |byte, field| byte | of[j + 8 * field] >> 4 << (2 * field));
                    put_words(high, lane, (0..8).map(upper));
                }
            }
        }
    }

    /// A row of a weight whose panels are `stored`, `[panels, blocks, unit]`: the very numbers of
    /// [`QuantFormat::dequantize`].
    pub(in crate::ops) fn row(self, stored: &[u8], blocks: usize, row: usize, weights: &mut [f32]) {
        let unit = Unit::of(self).bytes();
        let units = stored[row / PANEL * blocks * unit..][..blocks * unit].chunks_exact(unit);
        for (unit, weights) in units.zip(weights.chunks_exact_mut(self.block())) {
            self.row_of_unit(unit, row % PANEL, weights);
        }
    }

    fn row_of_unit(self, unit: &[u8], lane: usize, weights: &mut [f32]) {
        let Unit { levels, part, .. } = Unit::of(self);
        let (scales, levels) = unit.split_at(levels);
        let scale = half(scales, 2 * lane);
        for (i, (weights, bytes)) in weights.chunks_exact_mut(32).zip(levels.chunks_exact(part)).enumerate() {
            let level = |j: usize| f32::from(low(bytes, lane, j));
            match self {
                QuantFormat::Q4_0 => fill(weights, |j| scale * (level(j) - 8.0)),
                QuantFormat::Q4_1 => {
                    let least = half(scales, 2 * (PANEL + lane));
                    fill(weights, |j| scale * level(j) + least);
                }
                QuantFormat::Q8_0 => fill(weights, |j| scale * f32::from((bytes[word(lane, j)] ^ 0x80) as i8)),
                QuantFormat::Q4_K => {
                    let scale = scale * f32::from(scales[(4 + i) * PANEL + lane]);
                    let offset = half(scales, 2 * (PANEL + lane)) * f32::from(scales[(12 + i) * PANEL + lane]);
                    fill(weights, |j| scale * level(j) - offset);
                }
                QuantFormat::Q6_K => fill(weights, |j| {
                    let upper = bytes[16 * PANEL + word(lane, j % 8)] >> (j / 8 * 2) & 3;
                    let scale = scale * f32::from(scales[(2 + 2 * i + j / 16) * PANEL + lane] as i8);
                    scale * (f32::from(low(bytes, lane, j) | upper << 4) - 32.0)
                }),
            }
        }
    }
}

fn fill(weights: &mut [f32], weight: impl Fn(usize) -> f32) {
    weights.iter_mut().enumerate().for_each(|(j, slot)| *slot = weight(j));
}

/// Where byte `i` of a row lies, four of each of sixteen rows side by side.
fn word(lane: usize, i: usize) -> usize {
    (i / 4 * PANEL + lane) * 4 + i % 4
}

fn put_words(to: &mut [u8], lane: usize, bytes: impl Iterator<Item = u8>) {
    bytes.enumerate().for_each(|(i, byte)| to[word(lane, i)] = byte);
}

fn put_low(to: &mut [u8], lane: usize, levels: &[u8; 32]) {
    put_words(to, lane, (0..16).map(|i| levels[i] | levels[i + 16] << 4));
}

/// The lower four bits of weight `i` of 32.
fn low(bytes: &[u8], lane: usize, i: usize) -> u8 {
    let byte = bytes[word(lane, i % 16)];
    if i < 16 { byte & 15 } else { byte >> 4 }
}
