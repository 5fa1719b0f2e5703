//! Resizing that gives PIL's bytes exactly.
//!
//! PIL's `Image.resize` is a convolution whose filter grows with the factor of shrinking (so it does not alias), done
//! in two passes, rows first, with bytes between them and 22 bits of fraction in the weights. Other libraries differ
//! by a level or more, which is enough to move a small model's answer. So does Pillow 13 where it takes the columns
//! first (images whose height shrinks much more than their width); the order here is that of every Pillow before. Here the rows of the first pass are made when
//! the second needs them, so memory is a few rows rather than an image of the new width and the old height.

use std::collections::VecDeque;
use std::f64::consts::PI;

use super::decode::Raster;

/// Bits of fraction in a weight: eight are the pixel's, two are for sums outside of a byte.
const PRECISION: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (PRECISION - 1);

/// PIL's filters that image processors name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// The one pixel under the middle of the new one; not antialiased.
    Nearest,
    Convolution(Kernel),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Lanczos,
    Bilinear,
    Bicubic,
}

/// An image of the new size; sizes are at least 1.
pub(super) fn resize(image: &Raster, width: usize, height: usize, filter: Filter) -> Raster {
    if (image.width, image.height) == (width, height) {
        return image.clone();
    }
    let data = match (filter, image.channels) {
        (Filter::Nearest, _) => nearest(image, width, height),
        (Filter::Convolution(kernel), 1) => convolve::<1>(image, width, height, kernel),
        (Filter::Convolution(kernel), _) => convolve::<3>(image, width, height, kernel),
    };
    Raster { data, height, width, channels: image.channels }
}

impl Kernel {
    /// How far it reaches, in pixels of the coarser image.
    fn support(self) -> f64 {
        match self {
            Kernel::Bilinear => 1.0,
            Kernel::Bicubic => 2.0,
            Kernel::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Kernel::Bilinear => (1.0 - x.abs()).max(0.0),
            Kernel::Bicubic => bicubic(x.abs()),
            Kernel::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Kernel::Lanczos => 0.0,
        }
    }
}

/// Keys' cubic with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

/// For each new position of one axis, the old ones that it is made of.
struct Taps {
    /// The first old position and the range of its weights.
    spans: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(old: usize, new: usize, kernel: Kernel) -> Taps {
        let scale = old as f64 / new as f64;
        let stretch = scale.max(1.0);
        let support = kernel.support() * stretch;
        let mut taps = Taps { spans: Vec::with_capacity(new), weights: Vec::new() };
        let mut exact = Vec::new();
        for position in 0..new {
            let center = (position as f64 + 0.5) * scale;
            // `as` cuts off towards zero, and takes what is negative to zero
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(old);
            exact.clear();
            // divided by a multiplication, as PIL does it
            exact.extend((first..end).map(|x| kernel.weight((x as f64 - center + 0.5) * (1.0 / stretch))));
            let sum: f64 = exact.iter().sum();
            let start = taps.weights.len();
            taps.weights.extend(exact.iter().map(|w| fixed(if sum == 0.0 { *w } else { w / sum })));
            taps.spans.push((first, start..taps.weights.len()));
        }
        taps
    }

    /// The first old position and the weights from there on.
    fn at(&self, position: usize) -> (usize, &[i32]) {
        let (first, range) = &self.spans[position];
        (*first, &self.weights[range.clone()])
    }
}

/// Rounded half away from zero.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << PRECISION);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// `C` is the number of channels.
fn convolve<const C: usize>(image: &Raster, width: usize, height: usize, kernel: Kernel) -> Vec<u8> {
    let horizontal = (width != image.width).then(|| Taps::new(image.width, width, kernel));
    let old_row = |y: usize| &image.data[y * image.width * C..(y + 1) * image.width * C];
    let row = |y: usize| match &horizontal {
        Some(taps) => resize_row::<C>(old_row(y), taps, width),
        None => old_row(y).to_vec(),
    };
    if height == image.height {
        return (0..height).flat_map(row).collect();
    }
    let vertical = Taps::new(image.height, height, kernel);
    let mut out = Vec::with_capacity(width * height * C);
    // rows of the first pass, from `top` on; the spans of new rows only move down
    let mut rows: VecDeque<Vec<u8>> = VecDeque::new();
    let mut top = 0;
    let mut sums = vec![0i32; width * C];
    for y in 0..height {
        let (first, weights) = vertical.at(y);
        rows.drain(..(first - top).min(rows.len()));
        top = first;
        rows.extend((top + rows.len()..first + weights.len()).map(&row));
        sums.fill(HALF);
        for (row, weight) in rows.iter().zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().map(|sum| byte(*sum)));
    }
    out
}

fn resize_row<const C: usize>(row: &[u8], taps: &Taps, width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(width * C);
    for x in 0..width {
        let (first, weights) = taps.at(x);
        let mut sums = [HALF; C];
        for (pixel, weight) in row[first * C..].chunks_exact(C).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.map(byte));
    }
    out
}

/// The pixel under the middle of each new one.
fn nearest(image: &Raster, width: usize, height: usize) -> Vec<u8> {
    let (columns, rows) = (nearest_positions(image.width, width), nearest_positions(image.height, height));
    let channels = image.channels;
    let mut out = Vec::with_capacity(width * height * channels);
    for y in rows {
        for x in &columns {
            let at = (y * image.width + x) * channels;
            out.extend_from_slice(&image.data[at..at + channels]);
        }
    }
    out
}

/// PIL adds the step up rather than multiply, and its rounding errors with it.
fn nearest_positions(old: usize, new: usize) -> Vec<usize> {
    let step = old as f64 / new as f64;
    let mut at = step * 0.5;
    let mut positions = Vec::with_capacity(new);
    for _ in 0..new {
        positions.push((at as usize).min(old - 1));
        at += step;
    }
    positions
}
