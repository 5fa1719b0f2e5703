//! Numbers from bytes, and from one number format to another. The only `unsafe` of this room is here.
#![allow(unsafe_code)]

use candle_core::WithDType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

// safetensors is little-endian; bytes are taken as they are.
#[cfg(target_endian = "big")]
compile_error!("weights are read on little-endian machines only");

/// A number whose bytes may be read and written as they are.
///
/// # Safety
/// No padding, every bit pattern a valid value, and an alignment of at most 8.
pub(super) unsafe trait Element: WithDType + Default {
    /// Whether every value is a number: integers always are.
    fn all_finite(values: &[Self]) -> bool;
}

macro_rules! element {
    ($type:ty, $values:ident => $finite:expr) => {
        // SAFETY: a primitive number, or half's transparent wrapper of a u16: no padding, no invalid bits.
        unsafe impl Element for $type {
            fn all_finite($values: &[Self]) -> bool {
                $finite
            }
        }
    };
}

// Folds without an early exit, so that the compiler can vectorise them.
element!(f16, values => values.iter().fold(true, |finite, value| finite & value.is_finite()));
element!(bf16, values => values.iter().fold(true, |finite, value| finite & value.is_finite()));
element!(f32, values => values.iter().fold(true, |finite, value| finite & value.is_finite()));
element!(f64, values => values.iter().fold(true, |finite, value| finite & value.is_finite()));
element!(u8, _values => true);
element!(u32, _values => true);
element!(i16, _values => true);
element!(i32, _values => true);
element!(i64, _values => true);

/// The bytes of some numbers, to read into.
pub(super) fn bytes_mut<T: Element>(values: &mut [T]) -> &mut [u8] {
    let len = size_of_val(values);
    // SAFETY: the same memory, exclusively borrowed for the same time; `Element` has no padding and no invalid bits,
    // so its bytes are initialised and may be overwritten with anything; u8 has alignment 1.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

/// Memory that begins where such a number may, as room for numbers: as many as fit.
pub(super) fn numbers_mut<T: Element>(bytes: &mut [u8]) -> &mut [T] {
    debug_assert!(bytes.as_ptr().cast::<T>().is_aligned());
    // SAFETY: every bit pattern is a T, and every T is valid bytes (`Element`); what is not aligned is left out.
    unsafe { bytes.align_to_mut::<T>() }.1
}

/// Bytes on their way from a file to a tensor of another number format.
pub(super) struct Buffer {
    // u64 for its alignment.
    words: Vec<u64>,
}

impl Buffer {
    pub(super) fn new(bytes: usize) -> Self {
        Buffer { words: vec![0; bytes.div_ceil(8)] }
    }

    /// Room for `count` numbers, at the buffer's start; at most the buffer's size.
    pub(super) fn numbers<T: Element>(&mut self, count: usize) -> &mut [T] {
        const { assert!(align_of::<T>() <= align_of::<u64>()) };
        let count = count.min(size_of_val(self.words.as_slice()) / size_of::<T>());
        // SAFETY: `count` numbers lie inside `words`, which is initialised, exclusively borrowed and aligned for T
        // (asserted); every bit pattern is a T, and every T is a u64's valid bits (`Element`).
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), count) }
    }
}

/// Each number of `source` to the nearest in this format, ties to even; what is too large becomes infinite.
/// Both slices have the same length.
pub(super) trait CastFrom<S>: Element {
    fn cast(source: &[S], target: &mut [Self]);
}

impl CastFrom<f16> for f32 {
    fn cast(source: &[f16], target: &mut [f32]) {
        source.convert_to_f32_slice(target);
    }
}

impl CastFrom<bf16> for f32 {
    fn cast(source: &[bf16], target: &mut [f32]) {
        source.convert_to_f32_slice(target);
    }
}

impl CastFrom<f32> for f32 {
    fn cast(source: &[f32], target: &mut [f32]) {
        target.copy_from_slice(source);
    }
}

impl CastFrom<f32> for f16 {
    fn cast(source: &[f32], target: &mut [f16]) {
        target.convert_from_f32_slice(source);
    }
}

impl CastFrom<f32> for bf16 {
    fn cast(source: &[f32], target: &mut [bf16]) {
        target.convert_from_f32_slice(source);
    }
}

macro_rules! cast_each {
    ($source:ty => $target:ty, $number:ident, $cast:expr) => {
        impl CastFrom<$source> for $target {
            fn cast(source: &[$source], target: &mut [$target]) {
                for (slot, $number) in target.iter_mut().zip(source) {
                    *slot = $cast;
                }
            }
        }
    };
}

// f32 holds every f16 and bf16, so going through it rounds once. f64 to a half would round twice: not offered.
cast_each!(f16 => bf16, number, bf16::from_f32(number.to_f32()));
cast_each!(bf16 => f16, number, f16::from_f32(number.to_f32()));
cast_each!(f64 => f32, number, *number as f32);

#[cfg(test)]
mod tests {
    use super::*;

    fn one<S: Copy, T: CastFrom<S>>(value: S) -> T {
        let mut target = [T::default()];
        T::cast(&[value], &mut target);
        target[0]
    }

    /// A number by its definition: sign, exponent and mantissa, in exact f64 arithmetic.
    fn by_definition(bits: u16, mantissa_bits: u32, bias: i32) -> f64 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from((bits & 0x7fff) >> mantissa_bits);
        let mantissa = f64::from(bits & ((1 << mantissa_bits) - 1)) / f64::from(1u32 << mantissa_bits);
        let (significand, power) = if exponent == 0 { (mantissa, 1 - bias) } else { (1.0 + mantissa, exponent - bias) };
        sign * significand * 2f64.powi(power)
    }

    #[test]
    fn every_finite_f16_becomes_exactly_its_value_in_f32() {
        let source: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut target = vec![0f32; source.len()];
        f32::cast(&source, &mut target);
        for (half, single) in source.iter().zip(target) {
            if half.to_bits() & 0x7c00 != 0x7c00 {
                let exact = by_definition(half.to_bits(), 10, 15);
                assert_eq!(f64::from(single).to_bits(), exact.to_bits(), "{:#06x}", half.to_bits());
            }
        }
    }

    #[test]
    fn every_finite_bf16_becomes_exactly_its_value_in_f32() {
        let source: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut target = vec![0f32; source.len()];
        f32::cast(&source, &mut target);
        for (half, single) in source.iter().zip(target) {
            if half.to_bits() & 0x7f80 != 0x7f80 {
                let exact = by_definition(half.to_bits(), 7, 127);
                assert_eq!(f64::from(single).to_bits(), exact.to_bits(), "{:#06x}", half.to_bits());
            }
        }
    }

    #[test]
    fn every_half_float_survives_the_way_through_f32_and_back() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            if half.is_finite() {
                assert_eq!(one::<f32, f16>(one(half)).to_bits(), bits);
            }
            if brain.is_finite() {
                assert_eq!(one::<f32, bf16>(one(brain)).to_bits(), bits);
            }
        }
    }

    #[test]
    fn narrowing_rounds_to_the_nearest_and_ties_to_even() {
        // Between 1 and the next f16, 1 + 2^-10: the middle goes to even, a little more goes up.
        let middle = 1.0 + 2f32.powi(-11);
        assert_eq!(one::<f32, f16>(middle), f16::ONE);
        assert_eq!(one::<f32, f16>(middle + f32::EPSILON).to_bits(), f16::ONE.to_bits() + 1);
        let middle = 1.0 + 2f32.powi(-8);
        assert_eq!(one::<f32, bf16>(middle), bf16::ONE);
        assert_eq!(one::<f32, bf16>(middle + f32::EPSILON).to_bits(), bf16::ONE.to_bits() + 1);
        assert!(one::<f32, f16>(1e6).is_infinite());
        assert!(one::<f64, f32>(1e60).is_infinite());
        assert_eq!(one::<bf16, f16>(bf16::from_f32(2.5)), f16::from_f32(2.5));
        assert_eq!(one::<f16, bf16>(f16::from_f32(2.5)), bf16::from_f32(2.5));
    }

    #[test]
    fn one_value_that_is_no_number_is_seen_wherever_it_is() {
        for at in [0, 7, 31, 99] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![1f32; 100];
                assert!(f32::all_finite(&values));
                values[at] = bad;
                assert!(!f32::all_finite(&values));
                let halves: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
                assert!(!f16::all_finite(&halves));
                let brains: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
                assert!(!bf16::all_finite(&brains));
            }
        }
    }

    #[test]
    fn a_buffer_never_gives_more_than_it_holds() {
        let mut buffer = Buffer::new(64);
        assert_eq!(buffer.numbers::<f64>(100).len(), 8);
        assert_eq!(buffer.numbers::<f16>(100).len(), 32);
        buffer.numbers::<u8>(64).copy_from_slice(&[0xff; 64]);
        assert_eq!(buffer.numbers::<i32>(2), [-1, -1]);
    }
}
