//! The readable reference of GGUF's quantised formats: blocks in, f32 out.
//!
//! Source: `dequantize_row_*` of ggml's `ggml-quants.c`, operation by operation, so that the numbers are the same to the bit.

use half::f16;

use crate::weights::SourceDtype;

/// Writes the values of whole blocks; `bytes` and `values` hold as many blocks. False for a format that has none.
pub(in crate::weights) fn dequantise(format: SourceDtype, bytes: &[u8], values: &mut [f32]) -> bool {
    match format {
        SourceDtype::Q4_0 => each::<18, 32>(bytes, values, q4_0),
        SourceDtype::Q4_1 => each::<20, 32>(bytes, values, q4_1),
        SourceDtype::Q8_0 => each::<34, 32>(bytes, values, q8_0),
        SourceDtype::Q4_K => each::<144, 256>(bytes, values, q4_k),
        SourceDtype::Q6_K => each::<210, 256>(bytes, values, q6_k),
        _ => return false,
    }
    true
}

fn each<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    values: &mut [f32],
    block: fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    debug_assert_eq!(bytes.len() / BYTES, values.len() / VALUES);
    for (bytes, values) in bytes.as_chunks().0.iter().zip(values.as_chunks_mut().0) {
        block(bytes, values);
    }
}

/// The half-precision number at the start of some bytes.
fn half(bytes: &[u8]) -> f32 {
    bytes.first_chunk().map_or(0.0, |bytes| f16::from_le_bytes(*bytes).to_f32())
}

/// A scale, and 32 numbers of 4 bits less 8: the low halves of the bytes first, then the high ones.
fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let (scale, quants) = (half(block), &block[2..]);
    for (i, quant) in quants.iter().enumerate() {
        values[i] = (f32::from(quant & 15) - 8.0) * scale;
        values[i + 16] = (f32::from(quant >> 4) - 8.0) * scale;
    }
}

/// A scale, a smallest value, and 32 numbers of 4 bits.
fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (scale, least, quants) = (half(block), half(&block[2..]), &block[4..]);
    for (i, quant) in quants.iter().enumerate() {
        values[i] = f32::from(quant & 15) * scale + least;
        values[i + 16] = f32::from(quant >> 4) * scale + least;
    }
}

/// A scale, and 32 signed bytes.
fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let (scale, quants) = (half(block), &block[2..]);
    for (value, quant) in values.iter_mut().zip(quants) {
        *value = f32::from(*quant as i8) * scale;
    }
}

/// Two scales, of the scales and of the smallest values of eight parts, which have 6 bits each; then 256 numbers of 4
/// bits: of 32 bytes each, the low halves are one part and the high ones the next.
fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (of_scales, of_least) = (half(block), half(&block[2..]));
    let (packed, quants) = (&block[4..16], &block[16..]);
    for (part, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, least) = six_bits(packed, part);
        let (scale, least) = (of_scales * f32::from(scale), of_least * f32::from(least));
        for (value, quant) in values.iter_mut().zip(&quants[part / 2 * 32..]) {
            let quant = if part % 2 == 0 { quant & 15 } else { quant >> 4 };
            *value = scale * f32::from(quant) - least;
        }
    }
}

/// A part's scale and smallest value (`get_scale_min_k4`): the last four have their upper two bits in the first eight bytes.
fn six_bits(packed: &[u8], part: usize) -> (u8, u8) {
    match part {
        0..4 => (packed[part] & 63, packed[part + 4] & 63),
        _ => (
            (packed[part + 4] & 15) | ((packed[part - 4] >> 6) << 4),
            (packed[part + 4] >> 4) | ((packed[part] >> 6) << 4),
        ),
    }
}

/// 256 numbers of 6 bits less 32, their lower four and upper two apart; sixteen signed scales, and the scale of those.
fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let (low, high, scales, of_scales) = (&block[..128], &block[128..192], &block[192..208], half(&block[208..]));
    for (i, value) in values.iter_mut().enumerate() {
        // Each half of 128 is four parts of 32: two in the low halves of 64 bytes, two in the high ones.
        let (side, part, at) = (i / 128, i % 128 / 32, i % 32);
        let low = low[side * 64 + part % 2 * 32 + at] >> (part / 2 * 4) & 15;
        let high = high[side * 32 + at] >> (part * 2) & 3;
        let scale = of_scales * f32::from(scales[i / 16] as i8);
        *value = scale * (f32::from(low | high << 4) - 32.0);
    }
}
