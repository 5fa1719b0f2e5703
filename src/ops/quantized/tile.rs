//! The innermost loops: a few rows of activations by a panel of sixteen outputs, for each format.
//!
//! Each part of 32 weights is opened once into registers, then every row of the tile takes its products with it: whole
//! numbers first, and one multiply-add into its sum in f32. A row's sum goes through the blocks in order, whatever rows
//! stand beside it.

#![allow(unsafe_code)]

use super::activations::{Activations, BLOCK, Block, WORDS, Written};
use super::format::QuantFormat;
use super::lanes::Lanes;
use super::layout::Unit;
use crate::ops::matmul::{PANEL, Target};

/// Bytes of activations that a thread goes through for one panel after the other: they stay in its second-level cache.
const AT_HAND: usize = 384 * 1024;

/// Bytes that come from memory at once.
const LINE: usize = 64;

/// A product, or the panels of it that a thread takes.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) activations: &'a Activations,
    /// `[panels, blocks, unit]`
    pub(super) weights: &'a [u8],
    /// Outputs.
    pub(super) columns: usize,
    pub(super) bias: Option<&'a [f32]>,
    /// All rows, all outputs.
    pub(super) target: Target,
}

/// 32 weights of each of sixteen outputs.
pub(super) struct Part<L: Lanes> {
    /// Levels without a sign, four of each output.
    levels: [L::Bytes; BLOCK / 4],
    /// What a level stands for, in either half.
    scales: [L::Floats; 2],
    /// What every weight has beside its level.
    offset: L::Floats,
}

/// How a format's units are opened.
trait Opened {
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

struct Q4_0;
struct Q4_1;
struct Q8_0;
struct Q4K;
struct Q6K;

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

/// One tile's operands.
#[derive(Clone, Copy)]
struct Operands {
    /// In a row.
    units: usize,
    /// A panel.
    weights: *const u8,
    /// A tile, `[blocks]` of its rows.
    activations: *const i32,
    out: *mut f32,
    stride: usize,
    /// Of the panel, that exist.
    columns: usize,
    /// Sixteen.
    bias: *const f32,
    /// Where the next panel's part for this tile begins, and how many bytes of it each unit has brought into the first-level
    /// cache; there need not be a next panel.
    next: *const u8,
    pace: usize,
}

/// Panels `from..to` of a product, on the calling thread.
///
/// # Safety
/// The job's parts have the sizes that they say, the panels are inside it, the outputs are the caller's alone, and the
/// processor has the instructions.
#[inline(always)]
pub(super) unsafe fn panels<L: Lanes>(format: QuantFormat, job: Job<'_>, from: usize, to: usize) {
    // SAFETY: handed on.
    unsafe {
        match format {
            QuantFormat::Q4_0 => panels_of::<L, Q4_0>(job, from, to),
            QuantFormat::Q4_1 => panels_of::<L, Q4_1>(job, from, to),
            QuantFormat::Q8_0 => panels_of::<L, Q8_0>(job, from, to),
            QuantFormat::Q4_K => panels_of::<L, Q4K>(job, from, to),
            QuantFormat::Q6_K => panels_of::<L, Q6K>(job, from, to),
        }
    }
}

#[inline(always)]
unsafe fn panels_of<L: Lanes, F: Opened>(job: Job<'_>, from: usize, to: usize) {
    let Job { activations, .. } = job;
    let units = activations.blocks / F::UNIT.parts;
    let panel_bytes = units * F::UNIT.bytes();
    let tile_bytes = L::ROWS * activations.blocks * WORDS * size_of::<i32>();
    let at_once = (AT_HAND / tile_bytes.max(1)).max(1);
    for first in (0..activations.tiling.count).step_by(at_once) {
        for panel in from..to {
            let column = panel * PANEL;
            let columns = PANEL.min(job.columns - column);
            let mut bias = [0f32; PANEL];
            if let Some(of) = job.bias {
                bias[..columns].copy_from_slice(&of[column..column + columns]);
            }
            let tiles = first..activations.tiling.count.min(first + at_once);
            // The tiles of a panel fetch the next one among them, a little with every unit: weights come from main memory,
            // and the processor looks no further ahead than a few units by itself.
            let pace = F::UNIT.bytes().div_ceil(tiles.len());
            for tile in tiles {
                let (row, rows) = activations.tiling.tile(tile);
                let weights = job.weights[panel * panel_bytes..].as_ptr();
                let next = weights.wrapping_add(panel_bytes + (tile - first) * units * pace);
                let operands = Operands {
                    units,
                    weights,
                    activations: activations.words[activations.before(tile)..].as_ptr(),
                    out: job.target.at(row, column).start,
                    stride: job.target.stride,
                    columns,
                    bias: bias.as_ptr(),
                    next,
                    pace,
                };
                // SAFETY: handed on; the tile and the panel are whole.
                unsafe {
                    match rows {
                        0 => {}
                        1 => tile_of::<L, F, 1>(operands),
                        2 => tile_of::<L, F, 2>(operands),
                        3 => tile_of::<L, F, 3>(operands),
                        4 => tile_of::<L, F, 4>(operands),
                        5 => tile_of::<L, F, 5>(operands),
                        6 => tile_of::<L, F, 6>(operands),
                        7 => tile_of::<L, F, 7>(operands),
                        _ => tile_of::<L, F, 8>(operands),
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_of<L: Lanes, F: Opened, const ROWS: usize>(o: Operands) {
    // SAFETY: the caller's: units, rows and columns are inside the operands.
    unsafe {
        let mut sums = [L::load(o.bias); ROWS];
        let (mut unit, mut block, mut next) = (o.weights, o.activations.cast::<Block<ROWS>>(), o.next);
        for _ in 0..o.units {
            for line in (0..o.pace).step_by(LINE) {
                L::fetch(next.wrapping_add(line));
            }
            next = next.wrapping_add(o.pace);
            let head = F::head::<L>(unit);
            for part in 0..F::UNIT.parts {
                let weights = F::part::<L>(unit, head, part);
                let a = &*block;
                for row in 0..ROWS {
                    sums[row] = row_of::<L, F, ROWS>(sums[row], &weights, a, row);
                }
                block = block.add(1);
            }
            unit = unit.add(F::UNIT.bytes());
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let out = o.out.add(row * o.stride);
            if o.columns == PANEL {
                L::store(sums, out);
            } else {
                let mut all = [0f32; PANEL];
                L::store(sums, all.as_mut_ptr());
                std::slice::from_raw_parts_mut(out, o.columns).copy_from_slice(&all[..o.columns]);
            }
        }
    }
}

/// A row's sum with its products of a part.
#[inline(always)]
unsafe fn row_of<L: Lanes, F: Opened, const ROWS: usize>(
    sum: L::Floats,
    weights: &Part<L>,
    a: &Block<ROWS>,
    row: usize,
) -> L::Floats {
    const HALF: usize = BLOCK / 8;
    // SAFETY: the caller's: the processor has the instructions.
    unsafe {
        let scale = L::splat(a.scale[row]);
        let mut sum = sum;
        if F::HALVES {
            let first = dots::<L, F, 0, HALF>(a.start[row][0], weights, &a.levels[row]);
            let second = dots::<L, F, HALF, { 2 * HALF }>(a.start[row][1], weights, &a.levels[row]);
            sum = L::madd(L::mul(L::floats(first), scale), weights.scales[0], sum);
            sum = L::madd(L::mul(L::floats(second), scale), weights.scales[1], sum);
        } else {
            let all = dots::<L, F, 0, { 2 * HALF }>(a.start[row][0], weights, &a.levels[row]);
            sum = L::madd(L::mul(L::floats(all), scale), weights.scales[0], sum);
        }
        if F::OFFSET {
            sum = L::madd(L::splat(a.sum[row]), weights.offset, sum);
        }
        sum
    }
}

/// The sum of products of levels `4 · FROM..4 · TO` of a part.
#[inline(always)]
unsafe fn dots<L: Lanes, F: Opened, const FROM: usize, const TO: usize>(
    start: i32,
    weights: &Part<L>,
    levels: &[i32; BLOCK / 4],
) -> L::Ints {
    // SAFETY: the caller's: the processor has the instructions.
    unsafe {
        let mut sum = L::start(start);
        for i in FROM..TO {
            sum = match F::WIDE {
                true => L::dot_wide(sum, weights.levels[i], levels[i]),
                false => L::dot(sum, weights.levels[i], levels[i]),
            };
        }
        sum
    }
}
