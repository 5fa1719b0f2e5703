//! The number formats of quantised weights: their names, sizes, and what they mean.
//!
//! A *block* is so many consecutive weights of a row with the scales that belong to them, as files in the GGUF format
//! hold it. What a block means is said here once, plainly, and everything else is held against it.
//! Source: ggml, `ggml-common.h` (the blocks) and `ggml-quants.c` (`dequantize_row_*`, `quantize_row_*_ref`).

use std::fmt;

use candle_core::{Result, bail};
use half::f16;

/// How the weights of a block are written, named as ggml names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "these are the names that everybody knows them by")]
pub enum QuantFormat {
    /// 32 weights `scale · (level − 8)`, levels of 4 bits.
    Q4_0,
    /// 32 weights `scale · level + least`, levels of 4 bits.
    Q4_1,
    /// 32 weights `scale · level`, levels of 8 bits, signed.
    Q8_0,
    /// 256 weights `scale · a · level − offset · b`, levels of 4 bits; every 32 have an `a` and a `b` of 6 bits.
    Q4_K,
    /// 256 weights `scale · a · (level − 32)`, levels of 6 bits; every 16 have an `a` of 8 bits, signed.
    Q6_K,
}

impl QuantFormat {
    pub const ALL: [QuantFormat; 5] =
        [QuantFormat::Q4_0, QuantFormat::Q4_1, QuantFormat::Q8_0, QuantFormat::Q4_K, QuantFormat::Q6_K];

    /// As ggml writes it.
    pub fn name(self) -> &'static str {
        match self {
            QuantFormat::Q4_0 => "Q4_0",
            QuantFormat::Q4_1 => "Q4_1",
            QuantFormat::Q8_0 => "Q8_0",
            QuantFormat::Q4_K => "Q4_K",
            QuantFormat::Q6_K => "Q6_K",
        }
    }

    /// Weights in a block.
    pub fn block(self) -> usize {
        match self {
            QuantFormat::Q4_0 | QuantFormat::Q4_1 | QuantFormat::Q8_0 => 32,
            QuantFormat::Q4_K | QuantFormat::Q6_K => 256,
        }
    }

    /// Bytes of a block in a file.
    pub fn block_bytes(self) -> usize {
        match self {
            QuantFormat::Q4_0 => 2 + 16,
            QuantFormat::Q4_1 => 2 + 2 + 16,
            QuantFormat::Q8_0 => 2 + 32,
            QuantFormat::Q4_K => 2 + 2 + 12 + 128,
            QuantFormat::Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes in a file of a row of so many weights; an error where blocks do not fill it.
    pub fn row_bytes(self, weights: usize) -> Result<usize> {
        match weights.is_multiple_of(self.block()) {
            true => Ok(weights / self.block() * self.block_bytes()),
            false => bail!("a row of {weights} weights is not made of {self} blocks of {}", self.block()),
        }
    }

    /// Where in a block of a file its f16 are, in bytes.
    fn scales(self) -> &'static [usize] {
        match self {
            QuantFormat::Q4_0 | QuantFormat::Q8_0 => &[0],
            QuantFormat::Q4_1 | QuantFormat::Q4_K => &[0, 2],
            QuantFormat::Q6_K => &[208],
        }
    }

    /// Whether every scale in these bytes of a weight is a number; then every weight is. They may begin and end anywhere: `at` is
    /// how far from the weight's start.
    ///
    /// The upper byte of an f16 says whether it is one.
    pub fn all_finite(self, bytes: &[u8], at: usize) -> bool {
        let each = self.block_bytes();
        self.scales().iter().fold(true, |finite, scale| {
            let first = (scale + 1 + each - at % each) % each;
            let upper = bytes.get(first..).unwrap_or_default().iter().step_by(each);
            upper.fold(finite, |finite, byte| finite & (byte & 0x7c != 0x7c))
        })
    }

    /// The weights of whole blocks: the definition, each operation rounded to f32.
    pub fn dequantize(self, blocks: &[u8]) -> Vec<f32> {
        let mut weights = vec![0.0; blocks.len() / self.block_bytes() * self.block()];
        self.dequantize_to(blocks, &mut weights);
        weights
    }

    /// The same to where they stay, which has room for as many blocks.
    pub fn dequantize_to(self, blocks: &[u8], weights: &mut [f32]) {
        debug_assert_eq!(blocks.len() / self.block_bytes(), weights.len() / self.block());
        let blocks = blocks.chunks_exact(self.block_bytes());
        for (block, weights) in blocks.zip(weights.chunks_exact_mut(self.block())) {
            match self {
                QuantFormat::Q4_0 => {
                    let scale = half(block, 0);
                    put(weights, nibbles(&block[2..]).map(|level| scale * (f32::from(level) - 8.0)));
                }
                QuantFormat::Q4_1 => {
                    let (scale, least) = (half(block, 0), half(block, 2));
                    put(weights, nibbles(&block[4..]).map(|level| scale * f32::from(level) + least));
                }
                QuantFormat::Q8_0 => {
                    let scale = half(block, 0);
                    put(weights, block[2..].iter().map(|&level| scale * f32::from(level as i8)));
                }
                QuantFormat::Q4_K => dequantize_q4_k(block, weights),
                QuantFormat::Q6_K => dequantize_q6_k(block, weights),
            }
        }
    }

    /// Whole rows of weights as blocks, each to the nearest level. An error where blocks do not fill the weights, and
    /// for the formats of 256: a good choice of their scales is a search of its own.
    pub fn quantize(self, weights: &[f32]) -> Result<Vec<u8>> {
        let mut blocks = Vec::with_capacity(self.row_bytes(weights.len())?);
        for weights in weights.chunks_exact(self.block()) {
            match self {
                QuantFormat::Q4_0 => {
                    // The one farthest from zero becomes level 0, exactly.
                    let farthest = weights.iter().fold(0f32, |far, &w| if w.abs() > far.abs() { w } else { far });
                    let scale = farthest / -8.0;
                    blocks.extend(f16::from_f32(scale).to_le_bytes());
                    put_nibbles(&mut blocks, weights, |w| w * inverse(scale) + 8.5);
                }
                QuantFormat::Q4_1 => {
                    let least = weights.iter().copied().fold(f32::INFINITY, f32::min);
                    let most = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let scale = (most - least) / 15.0;
                    blocks.extend(f16::from_f32(scale).to_le_bytes());
                    blocks.extend(f16::from_f32(least).to_le_bytes());
                    put_nibbles(&mut blocks, weights, |w| (w - least) * inverse(scale) + 0.5);
                }
                QuantFormat::Q8_0 => {
                    let farthest = weights.iter().fold(0f32, |far, w| far.max(w.abs()));
                    let scale = farthest / 127.0;
                    blocks.extend(f16::from_f32(scale).to_le_bytes());
                    blocks.extend(weights.iter().map(|w| (w * inverse(scale)).round() as i8 as u8));
                }
                QuantFormat::Q4_K | QuantFormat::Q6_K => bail!("weights are not quantised to {self} here"),
            }
        }
        Ok(blocks)
    }
}

impl fmt::Display for QuantFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The f16 that begins at this byte.
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn put(weights: &mut [f32], values: impl Iterator<Item = f32>) {
    weights.iter_mut().zip(values).for_each(|(weight, value)| *weight = value);
}

/// Levels of 4 bits: all low halves first, then all high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

fn put_nibbles(blocks: &mut Vec<u8>, weights: &[f32], level: impl Fn(f32) -> f32) {
    let level = |w: f32| (level(w) as u8).min(15);
    let (low, high) = weights.split_at(weights.len() / 2);
    blocks.extend(low.iter().zip(high).map(|(&low, &high)| level(low) | level(high) << 4));
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// What the levels of 32 weights of a Q4_K block are multiplied by, and what is taken away: six bits each. The first
/// four pairs are bytes of their own, whose upper bits are those of the last four.
pub(super) fn q4_k_scale(block: &[u8], part: usize) -> (u8, u8) {
    let packed = &block[4..16];
    match part {
        0..4 => (packed[part] & 63, packed[part + 4] & 63),
        _ => {
            let (low, scale, offset) = (packed[part + 4], packed[part - 4] >> 6, packed[part] >> 6);
            (low & 15 | scale << 4, low >> 4 | offset << 4)
        }
    }
}

/// The levels of 32 weights of a Q4_K block: two such parts share 32 bytes.
pub(super) fn q4_k_levels(block: &[u8], part: usize) -> [u8; 32] {
    let bytes = &block[16 + part / 2 * 32..];
    std::array::from_fn(|i| if part.is_multiple_of(2) { bytes[i] & 15 } else { bytes[i] >> 4 })
}

fn dequantize_q4_k(block: &[u8], weights: &mut [f32]) {
    let (scale, offset) = (half(block, 0), half(block, 2));
    for (part, weights) in weights.chunks_exact_mut(32).enumerate() {
        let (a, b) = q4_k_scale(block, part);
        let (scale, offset) = (scale * f32::from(a), offset * f32::from(b));
        put(weights, q4_k_levels(block, part).into_iter().map(|level| scale * f32::from(level) - offset));
    }
}

/// The levels of 32 weights of a Q6_K block. Each half of the block has 64 bytes of lower bits, for two parts in their
/// low halves and for two in their high ones, and 32 bytes of upper bits, two for each part.
pub(super) fn q6_k_levels(block: &[u8], part: usize) -> [u8; 32] {
    let (side, quarter) = (part / 4, part % 4);
    let low = &block[side * 64 + quarter % 2 * 32..];
    let high = &block[128 + side * 32..];
    std::array::from_fn(|i| {
        let low = if quarter < 2 { low[i] & 15 } else { low[i] >> 4 };
        low | (high[i] >> (2 * quarter) & 3) << 4
    })
}

fn dequantize_q6_k(block: &[u8], weights: &mut [f32]) {
    let scale = half(block, 208);
    for (part, weights) in weights.chunks_exact_mut(32).enumerate() {
        for (i, (weight, level)) in weights.iter_mut().zip(q6_k_levels(block, part)).enumerate() {
            let by = scale * f32::from(block[192 + 2 * part + i / 16] as i8);
            *weight = by * (f32::from(level) - 32.0);
        }
    }
}
