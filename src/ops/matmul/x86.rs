//! The tiles of x86-64: AVX2 and AVX-512.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "a row or panel indexes the sums and the operands alike")]

use std::arch::x86_64::*;

use super::tile::{Isa, Operands, Start, blocks};
use super::{Element, Left, PANEL, Right, Target};

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2<W: Element>(left: Left<'_>, right: Right<'_, W>, start: Start<'_>, target: Target) {
    // SAFETY: handed on.
    unsafe { blocks::<Avx2, W>(left, right, start, target) }
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub(super) unsafe fn avx512<W: Element>(left: Left<'_>, right: Right<'_, W>, start: Start<'_>, target: Target) {
    // SAFETY: handed on.
    unsafe { blocks::<Avx512, W>(left, right, start, target) }
}

/// Sixteen registers: twelve sums, two of a panel, one broadcast.
struct Avx2;

/// Has a line brought into the first-level cache.
#[inline(always)]
fn fetch(line: *const u8) {
    // SAFETY: a prefetch is a hint; it may be given any address and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

impl Isa for Avx2 {
    const ROWS: usize = 6;
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn tile<W: Element, const ROWS: usize, const PANELS: usize>(o: Operands<W>) {
        // SAFETY: the caller's: rows, panels and steps are inside the operands; the caller runs with AVX2 and FMA.
        unsafe {
            let mut sums = [[[_mm256_setzero_ps(); 2]; PANELS]; ROWS];
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    let from = o.begin(row, panel);
                    sums[row][panel] = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))];
                }
            }
            let (mut b, mut next) = (o.b, o.next);
            for step in 0..o.inner {
                fetch(next);
                next = next.wrapping_add(o.pace);
                for panel in 0..PANELS {
                    let at = b.add(panel * o.panel_stride);
                    let (low, high) = (W::eight(at), W::eight(at.add(8)));
                    for row in 0..ROWS {
                        let a = _mm256_broadcast_ss(&*o.a.add(row * o.a_stride + step));
                        let [first, second] = sums[row][panel];
                        sums[row][panel] = [_mm256_fmadd_ps(a, low, first), _mm256_fmadd_ps(a, high, second)];
                    }
                }
                b = b.add(o.b_stride);
            }
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    let to = o.c.add(row * o.c_stride + panel * PANEL);
                    _mm256_storeu_ps(to, sums[row][panel][0]);
                    _mm256_storeu_ps(to.add(8), sums[row][panel][1]);
                }
            }
        }
    }
}

/// Thirty-two registers: twenty-four sums, a row of two panels, a broadcast.
struct Avx512;

impl Isa for Avx512 {
    const ROWS: usize = 12;
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn tile<W: Element, const ROWS: usize, const PANELS: usize>(o: Operands<W>) {
        // SAFETY: the caller's: rows, panels and steps are inside the operands; the caller runs with AVX-512F.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    let from = o.begin(row, panel);
                    sums[row][panel] = _mm512_loadu_ps(from);
                }
            }
            let (mut b, mut next) = (o.b, o.next);
            for step in 0..o.inner {
                let mut lines = [_mm512_setzero_ps(); PANELS];
                for panel in 0..PANELS {
                    lines[panel] = W::sixteen(b.add(panel * o.panel_stride));
                    fetch(next.wrapping_add(panel * o.panel_stride * size_of::<W>()));
                }
                next = next.wrapping_add(o.pace);
                for row in 0..ROWS {
                    let a = _mm512_set1_ps(*o.a.add(row * o.a_stride + step));
                    for panel in 0..PANELS {
                        sums[row][panel] = _mm512_fmadd_ps(a, lines[panel], sums[row][panel]);
                    }
                }
                b = b.add(o.b_stride);
            }
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    _mm512_storeu_ps(o.c.add(row * o.c_stride + panel * PANEL), sums[row][panel]);
                }
            }
        }
    }
}
