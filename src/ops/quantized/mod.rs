//! Products of activations with weights that stay quantised in memory, on a CPU.
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
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Result, bail};
use rayon::prelude::*;

pub use format::QuantFormat;

use super::cpu::{Rows, threads};
use super::matmul::{PANEL, Target};
use activations::Activations;
use lanes::{Lanes, Portable};
use tile::Job;

/// Multiply-adds below which waking another thread costs more than it saves: some 10 µs of one core.
const PARALLEL_WORK: usize = 256 * 1024;
/// Pieces for each thread: one that is held up leaves its last ones to the others.
const PIECES: usize = 4;

/// An instruction set that this processor was found to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Path {
    /// The best that this processor has.
    pub(super) fn best() -> Path {
        Path::all().last().unwrap_or(Path::Portable)
    }

    /// Every one that this processor has, the best last.
    pub(super) fn all() -> impl Iterator<Item = Path> {
        let portable = [Path::Portable].into_iter();
        #[cfg(target_arch = "x86_64")]
        let wide = {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let vnni = avx2 && is_x86_feature_detected!("avxvnni");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni");
            let wide = avx2.then_some(Path::Avx2).into_iter();
            portable.chain(wide.chain(vnni.then_some(Path::AvxVnni)).chain(avx512.then_some(Path::Avx512)))
        };
        #[cfg(not(target_arch = "x86_64"))]
        let wide = portable;
        wide
    }

    /// Rows of its tallest tile, and whether it multiplies levels of 8 bits with their sign.
    fn likes(self) -> (usize, bool) {
        fn of<L: Lanes>() -> (usize, bool) {
            (L::ROWS, L::SIGNED)
        }
        match self {
            Path::Portable => of::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => of::<x86::Avx2<false>>(),
            #[cfg(target_arch = "x86_64")]
            Path::AvxVnni => of::<x86::Avx2<true>>(),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => of::<x86::Avx512>(),
        }
    }

    /// See [`tile::panels`].
    ///
    /// # Safety
    /// The job's parts have the sizes that they say, the panels are inside it, and their outputs are the caller's alone.
    #[allow(unsafe_code)]
    unsafe fn panels(self, format: QuantFormat, job: Job<'_>, from: usize, to: usize) {
        match self {
            // SAFETY: handed on.
            Path::Portable => unsafe { tile::panels::<Portable>(format, job, from, to) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value was made by `all`, which found the instructions, here and below; the rest is handed on.
            Path::Avx2 => unsafe { wide::avx2(format, job, from, to) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Path::AvxVnni => unsafe { wide::avx_vnni(format, job, from, to) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Path::Avx512 => unsafe { wide::avx512(format, job, from, to) },
        }
    }
}

/// The tiles, compiled for each instruction set.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod wide {
    use super::QuantFormat;
    use super::tile::{Job, panels};
    use super::x86::{Avx2, Avx512};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn avx2(format: QuantFormat, job: Job<'_>, from: usize, to: usize) {
        // SAFETY: handed on.
        unsafe { panels::<Avx2<false>>(format, job, from, to) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    pub(super) unsafe fn avx_vnni(format: QuantFormat, job: Job<'_>, from: usize, to: usize) {
        // SAFETY: handed on.
        unsafe { panels::<Avx2<true>>(format, job, from, to) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn avx512(format: QuantFormat, job: Job<'_>, from: usize, to: usize) {
        // SAFETY: handed on.
        unsafe { panels::<Avx512>(format, job, from, to) }
    }
}

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
    let (most, signed) = path.likes();
    let activations = Activations::of(x, most, opened::written(format, signed));
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
