//! The innermost loops: a few rows of activations by a panel of sixteen outputs, for each format.
//!
//! Each part of 32 weights is opened once into registers, then every row of the tile takes its products with it: whole
//! numbers first, and one multiply-add into its sum in f32. A row's sum goes through the blocks in order, whatever rows
//! stand beside it.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "a row or panel indexes the sums and the operands alike")]

use super::activations::{Activations, BLOCK, Block, WORDS};
use super::format::QuantFormat;
use super::lanes::Lanes;
use super::opened::{Opened, Part, Q4_0, Q4_1, Q4K, Q6K, Q8_0};
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

/// One tile's operands.
#[derive(Clone, Copy)]
struct Operands {
    /// In a row.
    units: usize,
    /// A panel, and the bytes to the next one.
    weights: *const u8,
    panel_bytes: usize,
    /// A tile, `[blocks]` of its rows.
    activations: *const i32,
    out: *mut f32,
    stride: usize,
    /// Of the panels, that exist.
    columns: usize,
    /// Sixteen for each panel.
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
        let tiles = first..activations.tiling.count.min(first + at_once);
        let mut panel = from;
        while panel < to {
            // The last panel may have fewer columns, and is taken alone.
            let pair = L::PAIRS && panel + 2 <= to && (panel + 2) * PANEL <= job.columns;
            let (column, count) = (panel * PANEL, if pair { 2 } else { 1 });
            let columns = (count * PANEL).min(job.columns - column);
            let mut bias = [0f32; 2 * PANEL];
            if let Some(of) = job.bias {
                bias[..columns].copy_from_slice(&of[column..column + columns]);
            }
            // The tiles of a panel fetch the next one among them, a little with every unit: weights come from main memory,
            // and the processor looks no further ahead than a few units by itself.
            let pace = F::UNIT.bytes().div_ceil(tiles.len());
            for tile in tiles.clone() {
                let (row, rows) = activations.tiling.tile(tile);
                let weights = job.weights[panel * panel_bytes..].as_ptr();
                let operands = Operands {
                    units,
                    weights,
                    panel_bytes,
                    activations: activations.words[activations.before(tile)..].as_ptr(),
                    out: job.target.at(row, column).start,
                    stride: job.target.stride,
                    columns,
                    bias: bias.as_ptr(),
                    next: weights.wrapping_add(count * panel_bytes + (tile - first) * units * pace),
                    pace,
                };
                // SAFETY: handed on; the tile and the panels are whole.
                unsafe {
                    match pair {
                        true if const { L::PAIRS } => tile_of::<L, F, 2>(operands, rows),
                        _ => tile_of::<L, F, 1>(operands, rows),
                    }
                }
            }
            panel += count;
        }
    }
}

#[inline(always)]
unsafe fn tile_of<L: Lanes, F: Opened, const PANELS: usize>(operands: Operands, rows: usize) {
    const { assert!(L::ROWS <= 6, "a taller tile than there are") };
    // SAFETY: handed on. Taller tiles than these lanes have are not compiled.
    unsafe {
        match rows {
            0 => {}
            1 => rows_of::<L, F, 1, PANELS>(operands),
            2 if const { L::ROWS >= 2 } => rows_of::<L, F, 2, PANELS>(operands),
            3 if const { L::ROWS >= 3 } => rows_of::<L, F, 3, PANELS>(operands),
            4 if const { L::ROWS >= 4 } => rows_of::<L, F, 4, PANELS>(operands),
            5 if const { L::ROWS >= 5 } => rows_of::<L, F, 5, PANELS>(operands),
            6 if const { L::ROWS >= 6 } => rows_of::<L, F, 6, PANELS>(operands),
            // The tiling was made for these lanes.
            _ => unreachable!("a tile of {rows} rows, of {} at most", L::ROWS),
        }
    }
}

#[inline(always)]
unsafe fn rows_of<L: Lanes, F: Opened, const ROWS: usize, const PANELS: usize>(o: Operands) {
    // SAFETY: the caller's: units, rows and columns are inside the operands.
    unsafe {
        let mut sums = [[L::load(o.bias); PANELS]; ROWS];
        for panel in 1..PANELS {
            for row in 0..ROWS {
                sums[row][panel] = L::load(o.bias.add(panel * PANEL));
            }
        }
        let (mut unit, mut block, mut next) = (o.weights, o.activations.cast::<Block<ROWS>>(), o.next);
        for _ in 0..o.units {
            let mut heads = [F::head::<L>(unit); PANELS];
            for panel in 0..PANELS {
                heads[panel] = F::head::<L>(unit.add(panel * o.panel_bytes));
                for line in (0..o.pace).step_by(LINE) {
                    L::fetch(next.wrapping_add(panel * o.panel_bytes + line));
                }
            }
            next = next.wrapping_add(o.pace);
            for part in 0..F::UNIT.parts {
                let mut parts = [F::part::<L>(unit, heads[0], part); PANELS];
                for panel in 1..PANELS {
                    parts[panel] = F::part::<L>(unit.add(panel * o.panel_bytes), heads[panel], part);
                }
                add_part::<L, F, ROWS, PANELS>(&mut sums, &parts, &*block);
                block = block.add(1);
            }
            unit = unit.add(F::UNIT.bytes());
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (panel, sums) in sums.into_iter().enumerate() {
                let out = o.out.add(row * o.stride + panel * PANEL);
                if o.columns >= PANEL {
                    L::store(sums, out);
                } else {
                    let mut all = [0f32; PANEL];
                    L::store(sums, all.as_mut_ptr());
                    std::slice::from_raw_parts_mut(out, o.columns).copy_from_slice(&all[..o.columns]);
                }
            }
        }
    }
}

/// Adds to every row's sums its products with a part.
#[inline(always)]
unsafe fn add_part<L: Lanes, F: Opened, const ROWS: usize, const PANELS: usize>(
    sums: &mut [[L::Floats; PANELS]; ROWS],
    parts: &[Part<L>; PANELS],
    a: &Block<ROWS>,
) {
    // SAFETY: the caller's: the processor has the instructions.
    unsafe {
        let halves = if F::HALVES { 2 } else { 1 };
        let levels = BLOCK / 4 / halves;
        for half in 0..halves {
            let mut dots = [[L::start(0); PANELS]; ROWS];
            for row in 0..ROWS {
                dots[row] = [L::start(a.start[row][half]); PANELS];
            }
            for i in half * levels..(half + 1) * levels {
                for row in 0..ROWS {
                    for panel in 0..PANELS {
                        dots[row][panel] = match F::WIDE {
                            true => L::dot_wide(dots[row][panel], parts[panel].levels[i], a.levels[row][i]),
                            false => L::dot(dots[row][panel], parts[panel].levels[i], a.levels[row][i]),
                        };
                    }
                }
            }
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    let scaled = L::mul(L::floats(dots[row][panel]), L::splat(a.scale[row]));
                    sums[row][panel] = L::madd(scaled, parts[panel].scales[half], sums[row][panel]);
                }
            }
        }
        if F::OFFSET {
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    sums[row][panel] = L::madd(L::splat(a.sum[row]), parts[panel].offset, sums[row][panel]);
                }
            }
        }
    }
}
