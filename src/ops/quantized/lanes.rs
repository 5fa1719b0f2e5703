//! Sixteen outputs side by side, for each instruction set: what the tiles are written in.
//!
//! Products of levels are summed in whole numbers, which every instruction set does alike, to the bit; what follows in
//! f32 is the same operations in the same order, fused where the processor can. The portable one is the plain
//! definition, for processors without these instructions (and for those that the compiler knows better: NEON).

#![allow(unsafe_code)]

use super::activations::BLOCK;

/// An instruction set. Every function asks of its caller that the processor has it, and that pointers may be read or
/// written for sixteen values, or 64 bytes of levels.
pub(super) trait Lanes {
    /// Four bytes for each output.
    type Bytes: Copy;
    type Ints: Copy;
    type Floats: Copy;

    /// Rows of the tallest tile.
    const ROWS: usize;
    /// Whether there are registers for two panels of that many rows. A level that is loaded then serves two instructions.
    const PAIRS: bool;
    /// Whether levels of 8 bits are multiplied as signed ones, so that 128 is not too much in them.
    const SIGNED: bool;

    /// The largest of their bits but for the sign.
    unsafe fn largest(values: &[f32; BLOCK]) -> u32;
    /// Each value times `by` to the nearest whole number, ties to even, as bytes in `words`; the sums of either half. What does
    /// not fit a byte is anything.
    unsafe fn levels(values: &[f32; BLOCK], by: f32, words: &mut [i32]) -> [i32; 2];

    /// Has a line brought into the first-level cache, if there is one; any address will do.
    fn fetch(line: *const u8);
    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    /// Every byte shifted right (or left, where negative) by so many bits, and then masked.
    unsafe fn shifted(bytes: Self::Bytes, by: i32, mask: u8) -> Self::Bytes;
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;

    /// The same number for every output.
    unsafe fn start(value: i32) -> Self::Ints;
    /// `sum` and the four products of each output's bytes, unsigned and at most 127, with the four signed ones of `levels`.
    unsafe fn dot(sum: Self::Ints, bytes: Self::Bytes, levels: i32) -> Self::Ints;
    /// The same for bytes that use all 8 bits (see `SIGNED`).
    unsafe fn dot_wide(sum: Self::Ints, bytes: Self::Bytes, levels: i32) -> Self::Ints;

    unsafe fn floats(ints: Self::Ints) -> Self::Floats;
    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn load(from: *const f32) -> Self::Floats;
    /// Sixteen f16.
    unsafe fn halves(from: *const u8) -> Self::Floats;
    /// Sixteen u8, as they are.
    unsafe fn counts(from: *const u8) -> Self::Floats;
    /// Sixteen i8, as they are.
    unsafe fn signed_counts(from: *const u8) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`
    unsafe fn madd(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn negate(a: Self::Floats) -> Self::Floats;
    unsafe fn store(a: Self::Floats, to: *mut f32);
}

/// The definition.
pub(super) struct Portable;

#[inline(always)]
fn each<T: Copy + Default, const N: usize>(value: impl Fn(usize) -> T) -> [T; N] {
    std::array::from_fn(value)
}

impl Lanes for Portable {
    type Bytes = [u32; 16];
    type Ints = [i32; 16];
    type Floats = [f32; 16];

    const ROWS: usize = 4;
    const PAIRS: bool = false;
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn largest(values: &[f32; BLOCK]) -> u32 {
        values.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff))
    }

    #[inline(always)]
    unsafe fn levels(values: &[f32; BLOCK], by: f32, words: &mut [i32]) -> [i32; 2] {
        // Adding 1.5 · 2^23 rounds to a whole number in the low bits of the mantissa.
        let levels = values.map(|value| (value * by + 12_582_912.0).to_bits() as i8);
        for (word, bytes) in words.iter_mut().zip(levels.as_chunks::<4>().0) {
            *word = i32::from_le_bytes(bytes.map(|byte| byte as u8));
        }
        let sum = |half: &[i8]| half.iter().fold(0, |sum, level| sum + i32::from(*level));
        [sum(&levels[..BLOCK / 2]), sum(&levels[BLOCK / 2..])]
    }

    #[inline(always)]
    fn fetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        // SAFETY: 64 bytes may be read, says the caller.
        unsafe { from.cast::<Self::Bytes>().read_unaligned() }.map(u32::from_le)
    }

    #[inline(always)]
    unsafe fn shifted(bytes: Self::Bytes, by: i32, mask: u8) -> Self::Bytes {
        let mask = u32::from_ne_bytes([mask; 4]);
        bytes.map(|word| if by < 0 { word << -by } else { word >> by } & mask)
    }

    #[inline(always)]
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        each(|i| a[i] | b[i])
    }

    #[inline(always)]
    unsafe fn start(value: i32) -> Self::Ints {
        [value; 16]
    }

    #[inline(always)]
    unsafe fn dot(sum: Self::Ints, bytes: Self::Bytes, levels: i32) -> Self::Ints {
        let levels = levels.to_le_bytes().map(|level| i32::from(level as i8));
        each(|i| {
            let bytes = bytes[i].to_le_bytes().map(i32::from);
            sum[i] + bytes[0] * levels[0] + bytes[1] * levels[1] + bytes[2] * levels[2] + bytes[3] * levels[3]
        })
    }

    #[inline(always)]
    unsafe fn dot_wide(sum: Self::Ints, bytes: Self::Bytes, levels: i32) -> Self::Ints {
        // SAFETY: handed on.
        unsafe { Self::dot(sum, bytes, levels) }
    }

    #[inline(always)]
    unsafe fn floats(ints: Self::Ints) -> Self::Floats {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        [value; 16]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Floats {
        // SAFETY: sixteen values may be read, says the caller.
        unsafe { from.cast::<Self::Floats>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> Self::Floats {
        // SAFETY: as above.
        let halves = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        halves.map(|half| half::f16::from_bits(u16::from_le(half)).to_f32())
    }

    #[inline(always)]
    unsafe fn counts(from: *const u8) -> Self::Floats {
        // SAFETY: as above.
        unsafe { from.cast::<[u8; 16]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn signed_counts(from: *const u8) -> Self::Floats {
        // SAFETY: as above.
        unsafe { from.cast::<[i8; 16]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn madd(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        const FMA: bool = cfg!(target_feature = "fma") || cfg!(target_arch = "aarch64");
        each(|i| crate::ops::simd::madd::<FMA>(a[i], b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn negate(a: Self::Floats) -> Self::Floats {
        a.map(|a| -a)
    }

    #[inline(always)]
    unsafe fn store(a: Self::Floats, to: *mut f32) {
        // SAFETY: sixteen values may be written, says the caller.
        unsafe { to.cast::<Self::Floats>().write_unaligned(a) };
    }
}
