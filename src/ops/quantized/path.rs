//! Which instructions this processor has, and the loops for them.

#![allow(unsafe_code)]

use super::activations::{Place, quantize};
use super::format::QuantFormat;
use super::lanes::{Lanes, Portable};
use super::tile::{Job, panels};
#[cfg(target_arch = "x86_64")]
use super::x86;

/// An instruction set that this processor was found to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Path {
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
    pub(in crate::ops) fn best() -> Path {
        Path::all().last().unwrap_or(Path::Portable)
    }

    /// Every one that this processor has, the best last.
    pub(in crate::ops) fn all() -> impl Iterator<Item = Path> {
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
    pub(super) fn likes(self) -> (usize, bool) {
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
    pub(super) unsafe fn panels(self, format: QuantFormat, job: Job<'_>, from: usize, to: usize) {
        match self {
            // SAFETY: handed on.
            Path::Portable => unsafe { panels::<Portable>(format, job, from, to) },
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

    /// See [`activations::quantize`].
    pub(super) fn quantize(self, x: &[f32], tile: &mut [i32], place: &Place) {
        match self {
            // SAFETY: there is nothing that a processor must have.
            Path::Portable => unsafe { quantize::<Portable>(x, tile, place) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value was made by `all`, which found the instructions, here and below.
            Path::Avx2 | Path::AvxVnni => unsafe { wide::quantize_avx2(x, tile, place) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Path::Avx512 => unsafe { wide::quantize_avx512(x, tile, place) },
        }
    }
}

/// The loops, compiled for each instruction set.
#[cfg(target_arch = "x86_64")]
mod wide {
    use super::super::x86::{Avx2, Avx512};
    use super::{Job, Place, QuantFormat, panels, quantize};

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

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn quantize_avx2(x: &[f32], tile: &mut [i32], place: &Place) {
        // SAFETY: handed on.
        unsafe { quantize::<Avx2<false>>(x, tile, place) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn quantize_avx512(x: &[f32], tile: &mut [i32], place: &Place) {
        // SAFETY: handed on.
        unsafe { quantize::<Avx512>(x, tile, place) }
    }
}
