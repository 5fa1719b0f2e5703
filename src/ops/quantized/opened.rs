//! Units of weights opened into registers, for each format.
//!
//! What `layout` arranged, 32 weights of sixteen outputs at a time: levels as bytes without a sign, what they stand for, and
//! what every weight has beside.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "a closure would not have the instructions")]

use super::activations::{BLOCK, Written};
use super::format::QuantFormat;
use super::lanes::Lanes;
use super::layout::Unit;
use crate::ops::matmul::PANEL;

/// How a format's weights are written in panels; `signed`: levels of 8 bits are multiplied with their sign.
pub(super) fn written(format: QuantFormat, signed: bool) -> Written {
    let zero = match format {
        QuantFormat::Q4_0 => 8,
        QuantFormat::Q8_0 if !signed => 128,
        QuantFormat::Q6_K => 32,
        QuantFormat::Q8_0 | QuantFormat::Q4_1 | QuantFormat::Q4_K => 0,
    };
    Written { zero, halves: format == QuantFormat::Q6_K }
}

/// 32 weights of each of sixteen outputs.
pub(super) struct Part<L: Lanes> {
    /// Levels without a sign, four of each output.
    pub(super) levels: [L::Bytes; BLOCK / 4],
    /// What a level stands for, in either half.
    pub(super) scales: [L::Floats; 2],
    /// What every weight has beside its level.
    pub(super) offset: L::Floats,
}

impl<L: Lanes> Clone for Part<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L: Lanes> Copy for Part<L> {}

/// How a format's units are opened.
pub(super) trait Opened {
    const FORMAT: QuantFormat;
    const UNIT: Unit = Unit::of(Self::FORMAT);
    /// Levels use all 8 bits.
    const WIDE: bool = false;
    /// The halves of a part have scales of their own.
    const HALVES: bool = false;
    /// Weights have an offset.
    const OFFSET: bool = false;

    /// What the rows' blocks have once: scales and offsets.
    ///
    /// # Safety
    /// For both: `unit` is a whole unit of this format, and the processor has the instructions.
    unsafe fn head<L: Lanes>(unit: *const u8) -> [L::Floats; 2];
    unsafe fn part<L: Lanes>(unit: *const u8, head: [L::Floats; 2], part: usize) -> Part<L>;
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q8_0;
pub(super) struct Q4K;
pub(super) struct Q6K;

/// Levels of 4 bits: the low halves of four registers, then the high ones.
///
/// # Safety
/// 256 bytes may be read, and the processor has the instructions.
#[inline(always)]
unsafe fn nibbles<L: Lanes>(from: *const u8) -> [L::Bytes; BLOCK / 4] {
    // SAFETY: the caller's.
    unsafe {
        let (a, b) = (L::bytes(from), L::bytes(from.add(64)));
        let (c, d) = (L::bytes(from.add(128)), L::bytes(from.add(192)));
        [
            L::shifted(a, 0, 15),
            L::shifted(b, 0, 15),
            L::shifted(c, 0, 15),
            L::shifted(d, 0, 15),
            L::shifted(a, 4, 15),
            L::shifted(b, 4, 15),
            L::shifted(c, 4, 15),
            L::shifted(d, 4, 15),
        ]
    }
}

impl Opened for Q4_0 {
    const FORMAT: QuantFormat = QuantFormat::Q4_0;

    #[inline(always)]
    unsafe fn head<L: Lanes>(unit: *const u8) -> [L::Floats; 2] {
        // SAFETY: inside the unit, here and below.
        unsafe { [L::halves(unit), L::splat(0.0)] }
    }

    #[inline(always)]
    unsafe fn part<L: Lanes>(unit: *const u8, head: [L::Floats; 2], _: usize) -> Part<L> {
        // SAFETY: as above.
        unsafe { Part { levels: nibbles::<L>(unit.add(Self::UNIT.levels)), scales: [head[0]; 2], offset: head[1] } }
    }
}

impl Opened for Q4_1 {
    const FORMAT: QuantFormat = QuantFormat::Q4_1;
    const OFFSET: bool = true;

    #[inline(always)]
    unsafe fn head<L: Lanes>(unit: *const u8) -> [L::Floats; 2] {
        // SAFETY: as above.
        unsafe { [L::halves(unit), L::halves(unit.add(2 * PANEL))] }
    }

    #[inline(always)]
    unsafe fn part<L: Lanes>(unit: *const u8, head: [L::Floats; 2], _: usize) -> Part<L> {
        // SAFETY: as above.
        unsafe { Part { levels: nibbles::<L>(unit.add(Self::UNIT.levels)), scales: [head[0]; 2], offset: head[1] } }
    }
}

impl Opened for Q8_0 {
    const FORMAT: QuantFormat = QuantFormat::Q8_0;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn head<L: Lanes>(unit: *const u8) -> [L::Floats; 2] {
        // SAFETY: as above.
        unsafe { [L::halves(unit), L::splat(0.0)] }
    }

    #[inline(always)]
    unsafe fn part<L: Lanes>(unit: *const u8, head: [L::Floats; 2], _: usize) -> Part<L> {
        // SAFETY: as above.
        unsafe {
            let at = unit.add(Self::UNIT.levels);
            let mut levels = [L::bytes(at); BLOCK / 4];
            for i in 1..BLOCK / 4 {
                levels[i] = L::bytes(at.add(4 * PANEL * i));
            }
            Part { levels, scales: [head[0]; 2], offset: head[1] }
        }
    }
}

impl Opened for Q4K {
    const FORMAT: QuantFormat = QuantFormat::Q4_K;
    const OFFSET: bool = true;

    #[inline(always)]
    unsafe fn head<L: Lanes>(unit: *const u8) -> [L::Floats; 2] {
        // SAFETY: as above.
        unsafe { [L::halves(unit), L::negate(L::halves(unit.add(2 * PANEL)))] }
    }

    #[inline(always)]
    unsafe fn part<L: Lanes>(unit: *const u8, head: [L::Floats; 2], part: usize) -> Part<L> {
        // SAFETY: as above.
        unsafe {
            let levels = nibbles::<L>(unit.add(Self::UNIT.levels + part * Self::UNIT.part));
            let scale = L::mul(head[0], L::counts(unit.add((4 + part) * PANEL)));
            let offset = L::mul(head[1], L::counts(unit.add((12 + part) * PANEL)));
            Part { levels, scales: [scale; 2], offset }
        }
    }
}

impl Opened for Q6K {
    const FORMAT: QuantFormat = QuantFormat::Q6_K;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn head<L: Lanes>(unit: *const u8) -> [L::Floats; 2] {
        // SAFETY: as above.
        unsafe { [L::halves(unit), L::splat(0.0)] }
    }

    #[inline(always)]
    unsafe fn part<L: Lanes>(unit: *const u8, head: [L::Floats; 2], part: usize) -> Part<L> {
        // SAFETY: as above.
        unsafe {
            let at = unit.add(Self::UNIT.levels + part * Self::UNIT.part);
            let [a, b, c, d, e, f, g, h] = nibbles::<L>(at);
            let high = [L::bytes(at.add(16 * PANEL)), L::bytes(at.add(20 * PANEL))];
            // Two bits each, brought to bits 4 and 5.
            let levels = [
                L::or(a, L::shifted(high[0], -4, 0x30)),
                L::or(b, L::shifted(high[1], -4, 0x30)),
                L::or(c, L::shifted(high[0], -2, 0x30)),
                L::or(d, L::shifted(high[1], -2, 0x30)),
                L::or(e, L::shifted(high[0], 0, 0x30)),
                L::or(f, L::shifted(high[1], 0, 0x30)),
                L::or(g, L::shifted(high[0], 2, 0x30)),
                L::or(h, L::shifted(high[1], 2, 0x30)),
            ];
            let a = unit.add((2 + 2 * part) * PANEL);
            let scales = [L::mul(head[0], L::signed_counts(a)), L::mul(head[0], L::signed_counts(a.add(PANEL)))];
            Part { levels, scales, offset: head[1] }
        }
    }
}
