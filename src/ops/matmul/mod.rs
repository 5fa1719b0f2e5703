//! Products of a packed batch with a weight, at the speed of the processor.
//!
//! `c = a · b + bias`, where `a` is read row by row as it lies, and `b` in panels of sixteen columns (`layout`). A
//! *tile* is a few rows of one or more panels, held in registers while the inner dimension goes by; `tile` has it for
//! each instruction set, chosen once at run time. Round it stand the usual loops (Goto and van de Geijn, "Anatomy of
//! high-performance matrix multiplication", 2008): blocks of rows that stay in the second-level cache, slices of the
//! inner dimension of which a panel stays in the first. Nothing is packed here: rows are broadcast from where they are,
//! and panels were arranged when the weight was loaded.
//!
//! Every row is summed in the same order whatever stands beside it, so a row of a batch is the same row alone, to the
//! bit.

mod element;
mod layout;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use element::Element;
pub(super) use layout::place_in_panels;
pub use layout::{Matrix, PANEL, WeightLayout};
use tile::Start;
pub(super) use tile::Tiles;

/// Values of the inner dimension that are gone through at once: a panel of them is 24 KiB.
const SLICE: usize = 384;
/// Rows that are gone through at once: their slice is 360 KiB.
pub(super) const BLOCK: usize = 240;

/// `rows × inner` values, row `i` at `i * stride`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) stride: usize,
}

/// `inner × columns` values in panels: element `(p, j)` at `(j / 16) * panel_stride + p * row_stride + j % 16`.
///
/// The last panel is read whole, also where it has fewer columns than sixteen.
#[derive(Clone, Copy)]
pub(super) struct Right<'a, W = f32> {
    pub(super) data: &'a [W],
    pub(super) inner: usize,
    pub(super) columns: usize,
    pub(super) panel_stride: usize,
    pub(super) row_stride: usize,
}

impl<'a, W: Element> Right<'a, W> {
    /// A weight's panels: `[⌈columns / 16⌉, inner, 16]`.
    pub(super) fn panels(data: &'a [W], inner: usize, columns: usize) -> Self {
        Right { data, inner, columns, panel_stride: inner * PANEL, row_stride: PANEL }
    }

    /// Whole panels `from..to` of it.
    pub(super) fn part(self, from: usize, to: usize) -> Self {
        let columns = self.columns.min(to * PANEL).saturating_sub(from * PANEL);
        Right { data: &self.data[from * self.panel_stride..], columns, ..self }
    }
}

/// The result: row `i` at `i * stride`, written whole and never read before it is.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
}

#[allow(unsafe_code)]
// SAFETY: a pointer and a number; whoever shares it among threads gives each its own rows or columns.
unsafe impl Send for Target {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The same from another row and column on.
    #[allow(unsafe_code)]
    pub(super) fn at(self, row: usize, column: usize) -> Target {
        // SAFETY: callers stay inside the result's allocation, as `multiply` demands of them.
        Target { start: unsafe { self.start.add(row * self.stride + column) }, ..self }
    }
}

/// `target = left · right + bias`, on the calling thread.
///
/// # Safety
/// `target` has `left.rows` rows of `right.columns` values that nobody else reads or writes meanwhile.
#[allow(unsafe_code)]
pub(super) unsafe fn multiply<W: Element>(
    tiles: Tiles,
    left: Left<'_>,
    right: Right<'_, W>,
    bias: Option<&[f32]>,
    target: Target,
) {
    check(&left, &right);
    assert!(bias.is_none_or(|bias| bias.len() >= right.columns));
    // SAFETY: the operands were just held against what the tiles read, and the target is the caller's promise.
    unsafe { tiles.multiply(left, right, bias.map_or(Start::Zero, Start::Bias), target) }
}

/// `target += left · right`, on the calling thread.
///
/// # Safety
/// As for [`multiply`], and the target was written before.
#[allow(unsafe_code)]
pub(super) unsafe fn multiply_onto<W: Element>(tiles: Tiles, left: Left<'_>, right: Right<'_, W>, target: Target) {
    check(&left, &right);
    // SAFETY: as above.
    unsafe { tiles.multiply(left, right, Start::Target, target) }
}

/// That both sides have what will be read of them.
fn check<W>(left: &Left<'_>, right: &Right<'_, W>) {
    let (rows, inner, columns) = (left.rows, left.inner, right.columns);
    assert_eq!(inner, right.inner);
    assert!(rows == 0 || left.data.len() >= (rows - 1) * left.stride + inner);
    let last = columns.div_ceil(PANEL).saturating_sub(1) * right.panel_stride;
    assert!(columns == 0 || inner == 0 || right.data.len() >= last + (inner - 1) * right.row_stride + PANEL);
}

/// Slices of `inner` of nearly equal size, none longer than [`SLICE`].
fn slices(inner: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = inner.div_ceil(inner.div_ceil(SLICE).max(1)).max(1);
    // Also when there is nothing to sum: the bias is still the result.
    let count = inner.div_ceil(size).max(1);
    (0..count).map(move |i| (i * size, size.min(inner - i * size)))
}

#[cfg(test)]
mod tests;
