//! Products of activations with weights that stay quantised in memory, on a CPU; and what of it a GPU has too.
//!
//! Decoding reads every weight once for each step, so its speed is that of memory: weights stay as few bits as their file
//! has (`format`), arranged so that a kernel reads them from front to back (`layout`). Activations become whole numbers of
//! 8 bits, 32 at a time (`activations`); their products with weights are summed as whole numbers and only then scaled
//! (`tile`), on whatever instructions the processor has for that (`lanes`, `x86`).
//!
//! A row's numbers depend on that row alone, to the bit: not on the rows beside it, nor on how many threads share the
//! outputs. Against the exact product with the weights as they are, an output is off by what rounding activations to 8
//! bits costs: half a level, or 1/254 of the largest of 32, each.
//!
//! This room knows blocks of bytes, not files: who reads them hands them to [`QuantFormat::place`].

mod activations;
mod format;
mod lanes;
mod layout;
mod opened;
mod path;
mod spelled;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Result, bail};
use rayon::prelude::*;

pub use format::QuantFormat;
pub(super) use path::Path;
pub(super) use spelled::spelled_bytes;
#[cfg(feature = "cuda")]
pub(super) use spelled::spelled_outputs;

use super::cpu::{Rows, threads};
use super::matmul::{PANEL, Target};
use activations::Activations;
use tile::Job;

/// Multiply-adds below which waking another thread costs more than it saves: some 10 µs of one core.
const PARALLEL_WORK: usize = 256 * 1024;
/// Pieces for each thread: one that is held up leaves its last ones to the others.
const PIECES: usize = 4;

/// A quantised weight, as [`QuantFormat::place`] arranged it.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    format: QuantFormat,
    stored: &'a [u8],
    out: usize,
    inner: usize,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(format: QuantFormat, stored: &'a [u8], (out, inner): (usize, usize)) -> Result<Self> {
        format.row_bytes(inner)?;
        if stored.len() != format.stored(out, inner).iter().product::<usize>() {
            bail!("{} bytes are no {format} weight of [{out}, {inner}]", stored.len());
        }
        Ok(Blocks { format, stored, out, inner })
    }

    /// One row as f32.
    pub(super) fn row(self, row: usize, weights: &mut [f32]) {
        self.format.row(self.stored, self.inner / self.format.block(), row, weights);
    }
}

/// `target = x · weightᵀ + bias`, over the current pool where there is enough of it.
///
/// # Safety
/// `target` has as many rows as `x`, of as many values as the weight has outputs, that nobody else reads or writes
/// meanwhile.
#[allow(unsafe_code)]
pub(super) unsafe fn multiply(path: Path, x: Rows<'_>, weight: Blocks<'_>, bias: Option<&[f32]>, target: Target) {
    let Blocks { format, stored, out, inner } = weight;
    assert_eq!(x.width, inner);
    assert!(bias.is_none_or(|bias| bias.len() == out));
    let activations = Activations::of(x, path, format);
    let job = Job { activations: &activations, weights: stored, columns: out, bias, target };
    let panels = out.div_ceil(PANEL);
    let threads = if x.count * out * inner < PARALLEL_WORK { 1 } else { threads().min(panels) };
    if threads <= 1 {
        // SAFETY: all of it is the caller's; `Blocks::new` held its bytes against its shape, and activations were just
        // made of rows of its width.
        return unsafe { path.panels(format, job, 0, panels) };
    }
    let each = panels.div_ceil(threads * PIECES);
    let next = AtomicUsize::new(0);
    // Whoever comes takes the next piece: nobody waits for a thread that was slow to wake.
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        loop {
            let from = next.fetch_add(each, Ordering::Relaxed);
            if from >= panels {
                return;
            }
            // SAFETY: as above; every piece is taken once, and its outputs are its own.
            unsafe { path.panels(format, job, from, panels.min(from + each)) };
        }
    });
}

#[cfg(test)]
mod tests;
