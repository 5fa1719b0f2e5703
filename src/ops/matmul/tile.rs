//! The innermost loops, for each instruction set, and the loops round them.
//!
//! A tile is `ROWS × (16 · PANELS)` sums in registers. One step of the inner dimension loads a row of each panel and
//! broadcasts one value of each row of the left side. Few rows take several panels, so that there are always sums
//! enough in flight to hide a multiply-add's latency.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{BLOCK, Element, Left, PANEL, Right, Target, slices};

/// An instruction set that this processor was found to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Tiles {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Tiles {
    /// The best that this processor has.
    pub(in crate::ops) fn best() -> Tiles {
        Tiles::all().last().unwrap_or(Tiles::Portable)
    }

    /// Every one that this processor has, the best last.
    pub(in crate::ops) fn all() -> impl Iterator<Item = Tiles> {
        let portable = [Tiles::Portable].into_iter();
        #[cfg(target_arch = "x86_64")]
        let wide = {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f");
            portable.chain(avx2.then_some(Tiles::Avx2)).chain(avx512.then_some(Tiles::Avx512))
        };
        #[cfg(not(target_arch = "x86_64"))]
        let wide = portable;
        wide
    }

    /// See [`super::multiply`], which checked the operands.
    ///
    /// # Safety
    /// The operands hold what their sizes and strides say, and the target is the caller's alone.
    pub(super) unsafe fn multiply<W: Element>(
        self,
        left: Left<'_>,
        right: Right<'_, W>,
        start: Start<'_>,
        target: Target,
    ) {
        match self {
            // SAFETY: handed on.
            Tiles::Portable => unsafe { blocks::<Portable, W>(left, right, start, target) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value was made by `all`, which found AVX2, FMA and F16C; the rest is handed on.
            Tiles::Avx2 => unsafe { x86::avx2(left, right, start, target) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value was made by `all`, which found AVX-512F; the rest is handed on.
            Tiles::Avx512 => unsafe { x86::avx512(left, right, start, target) },
        }
    }
}

/// What sums begin with.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Zero,
    /// The same in every row.
    Bias(&'a [f32]),
    /// What the target holds.
    Target,
}

/// One tile's operands.
#[derive(Clone, Copy)]
pub(super) struct Operands<W> {
    /// Steps of the inner dimension.
    pub(super) inner: usize,
    /// `[ROWS, inner]` at `a_stride`
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    /// `[inner, 16]` at `b_stride`, and the next panel at `panel_stride`
    pub(super) b: *const W,
    pub(super) b_stride: usize,
    pub(super) panel_stride: usize,
    /// `[ROWS, 16 · PANELS]` at `c_stride`
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    /// Where the next panel's part for this tile begins, and how many bytes of it each step has brought into the
    /// first-level cache; there need not be a next panel.
    pub(super) next: *const u8,
    pub(super) pace: usize,
    /// What the sums begin with: sixteen values for each panel, or null to go on from `c`.
    pub(super) start: *const f32,
}

impl<W> Operands<W> {
    /// Where the sums of a row of a panel begin.
    ///
    /// # Safety
    /// The row and the panel are inside the operands.
    #[inline(always)]
    pub(super) unsafe fn begin(&self, row: usize, panel: usize) -> *const f32 {
        // SAFETY: inside, says the caller.
        unsafe {
            match self.start.is_null() {
                true => self.c.add(row * self.c_stride + panel * PANEL).cast_const(),
                false => self.start.add(panel * PANEL),
            }
        }
    }

    /// The same for one of so many tiles of so many panels, which fetch the next panels among them, a little with every step:
    /// weights come from main memory, and a burst of requests would wait for itself.
    #[inline(always)]
    fn fetching(self, panels: usize, tiles: usize) -> Self {
        let next = self.b.wrapping_add(panels * self.panel_stride).cast();
        Operands { next, pace: (self.b_stride * size_of::<W>()).div_ceil(tiles), ..self }
    }
}

/// What an instruction set must have.
pub(super) trait Isa {
    /// Rows of the tallest tile.
    const ROWS: usize;
    /// Whether there are registers for two panels of that many rows. A broadcast then serves two multiply-adds, and
    /// loads no longer take longer than these.
    const PAIRS: bool;

    /// `c = start + a · b`, for so many rows and panels.
    unsafe fn tile<W: Element, const ROWS: usize, const PANELS: usize>(operands: Operands<W>);
}

/// Zeroes to begin with where there is no bias: as many as the widest tile has columns.
const NOTHING: [f32; 4 * PANEL] = [0.0; 4 * PANEL];

#[inline(always)]
pub(super) unsafe fn blocks<I: Isa, W: Element>(left: Left<'_>, right: Right<'_, W>, start: Start<'_>, target: Target) {
    let full = right.columns / PANEL;
    for top in (0..left.rows).step_by(BLOCK) {
        let rows = BLOCK.min(left.rows - top);
        for (from, inner) in slices(left.inner) {
            let mut panel = 0;
            while panel < right.columns.div_ceil(PANEL) {
                let column = panel * PANEL;
                let operands = Operands {
                    inner,
                    // SAFETY: `top` and `from` are inside the left side, `panel` and `from` inside the right, `top` and
                    // `column` inside the target.
                    a: unsafe { left.data.as_ptr().add(top * left.stride + from) },
                    a_stride: left.stride,
                    b: unsafe { right.data.as_ptr().add(panel * right.panel_stride + from * right.row_stride) },
                    b_stride: right.row_stride,
                    panel_stride: right.panel_stride,
                    c: unsafe { target.start.add(top * target.stride + column) },
                    c_stride: target.stride,
                    // What is there already.
                    next: left.data.as_ptr().cast(),
                    pace: 0,
                    start: std::ptr::null(),
                };
                let bias = match start {
                    Start::Zero if from == 0 => Some(&NOTHING[..]),
                    Start::Bias(bias) if from == 0 => Some(&bias[column..]),
                    _ => None,
                };
                // SAFETY: handed on; `full - panel` whole panels lie before the end of both sides.
                panel +=
                    unsafe { strip::<I, W>(operands, rows, full.saturating_sub(panel), right.columns - column, bias) };
            }
        }
    }
}

/// `rows` rows of the next panel, or of several when there are few rows; how many panels that were.
#[inline(always)]
unsafe fn strip<I: Isa, W: Element>(
    operands: Operands<W>,
    rows: usize,
    whole: usize,
    columns: usize,
    bias: Option<&[f32]>,
) -> usize {
    if whole == 0 {
        // SAFETY: handed on.
        unsafe { ragged::<I, W>(operands, rows, columns, bias) };
        return 1;
    }
    let mut operands = operands;
    if let Some(bias) = bias {
        operands.start = bias.as_ptr();
    }
    // SAFETY: as many rows and whole panels as there are, and as many values of the bias (or zeroes).
    unsafe {
        match rows {
            1 if whole >= 4 => {
                I::tile::<W, 1, 4>(operands.fetching(4, 1));
                return 4;
            }
            1 | 2 if whole >= 2 => {
                if rows == 1 {
                    I::tile::<W, 1, 2>(operands.fetching(2, 1))
                } else {
                    I::tile::<W, 2, 2>(operands.fetching(2, 1))
                }
                return 2;
            }
            3 if whole >= 2 => {
                I::tile::<W, 3, 2>(operands.fetching(2, 1));
                return 2;
            }
            _ if const { I::PAIRS } && whole >= 2 => {
                column_of_tiles::<I, W, 2>(operands, rows);
                return 2;
            }
            _ => column_of_tiles::<I, W, 1>(operands, rows),
        }
    }
    1
}

/// The tiles of a panel, or of two, from top to bottom, as equal in height as they can be.
#[inline(always)]
unsafe fn column_of_tiles<I: Isa, W: Element, const PANELS: usize>(mut operands: Operands<W>, rows: usize) {
    const { assert!(I::ROWS <= 12, "a taller tile than there are") };
    let count = rows.div_ceil(I::ROWS);
    let (height, taller) = (rows / count, rows % count);
    operands = operands.fetching(PANELS, count);
    let next = operands.next;
    for tile in 0..count {
        let rows = height + usize::from(tile < taller);
        operands.next = next.wrapping_add(tile * operands.inner / count * operands.b_stride * size_of::<W>());
        // SAFETY: tiles follow one another inside the rows.
        unsafe {
            match rows {
                1 => I::tile::<W, 1, PANELS>(operands),
                2 if const { I::ROWS >= 2 } => I::tile::<W, 2, PANELS>(operands),
                3 if const { I::ROWS >= 3 } => I::tile::<W, 3, PANELS>(operands),
                4 if const { I::ROWS >= 4 } => I::tile::<W, 4, PANELS>(operands),
                5 if const { I::ROWS >= 5 } => I::tile::<W, 5, PANELS>(operands),
                6 if const { I::ROWS >= 6 } => I::tile::<W, 6, PANELS>(operands),
                7 if const { I::ROWS >= 7 } => I::tile::<W, 7, PANELS>(operands),
                8 if const { I::ROWS >= 8 } => I::tile::<W, 8, PANELS>(operands),
                9 if const { I::ROWS >= 9 } => I::tile::<W, 9, PANELS>(operands),
                10 if const { I::ROWS >= 10 } => I::tile::<W, 10, PANELS>(operands),
                11 if const { I::ROWS >= 11 } => I::tile::<W, 11, PANELS>(operands),
                12 if const { I::ROWS >= 12 } => I::tile::<W, 12, PANELS>(operands),
                // Taller tiles than these instructions have are not compiled.
                _ => unreachable!("a tile of {rows} rows, of {} at most", I::ROWS),
            }
            operands.a = operands.a.add(rows * operands.a_stride);
            operands.c = operands.c.add(rows * operands.c_stride);
        }
    }
}

/// The last panel where it is not full: through a strip of its own, of which the columns that exist are copied.
#[inline(always)]
unsafe fn ragged<I: Isa, W: Element>(operands: Operands<W>, rows: usize, columns: usize, bias: Option<&[f32]>) {
    let mut strip = [0f32; BLOCK * PANEL];
    let mut start = [0f32; PANEL];
    let mut inside = Operands { c: strip.as_mut_ptr(), c_stride: PANEL, ..operands };
    match bias {
        Some(bias) => {
            start[..columns].copy_from_slice(&bias[..columns]);
            inside.start = start.as_ptr();
        }
        None => {
            for (row, strip) in strip.chunks_exact_mut(PANEL).take(rows).enumerate() {
                // SAFETY: `columns` values of a row of the target.
                let so_far = unsafe { std::slice::from_raw_parts(operands.c.add(row * operands.c_stride), columns) };
                strip[..columns].copy_from_slice(so_far);
            }
        }
    }
    // SAFETY: the strip has room for a block's rows of a whole panel.
    unsafe { column_of_tiles::<I, W, 1>(inside, rows) };
    for (row, strip) in strip.chunks_exact(PANEL).take(rows).enumerate() {
        // SAFETY: as above, and nobody else's.
        let out = unsafe { std::slice::from_raw_parts_mut(operands.c.add(row * operands.c_stride), columns) };
        out.copy_from_slice(&strip[..columns]);
    }
}

/// For processors without wide registers, or with those that the compiler uses by itself (NEON).
struct Portable;

impl Isa for Portable {
    const ROWS: usize = 4;
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn tile<W: Element, const ROWS: usize, const PANELS: usize>(o: Operands<W>) {
        const FMA: bool = cfg!(target_feature = "fma") || cfg!(target_arch = "aarch64");
        // SAFETY: the caller's: rows, panels and steps are inside the operands.
        unsafe {
            for panel in 0..PANELS {
                let mut sums = [[0f32; PANEL]; ROWS];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let from = o.begin(row, panel);
                    *sums = from.cast::<[f32; PANEL]>().read_unaligned();
                }
                let b = o.b.add(panel * o.panel_stride);
                for step in 0..o.inner {
                    let b = b.add(step * o.b_stride).cast::<[W; PANEL]>().read_unaligned().map(W::widen);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let a = *o.a.add(row * o.a_stride + step);
                        sums.iter_mut().zip(b).for_each(|(sum, b)| *sum = super::super::simd::madd::<FMA>(a, b, *sum));
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    o.c.add(row * o.c_stride + panel * PANEL).cast::<[f32; PANEL]>().write_unaligned(*sums);
                }
            }
        }
    }
}
