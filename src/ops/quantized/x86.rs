//! The instruction sets of x86-64: AVX-512 with VNNI, AVX2 with VNNI, AVX2.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::activations::BLOCK;
use super::lanes::Lanes;

/// One register of sixteen outputs; `vpdpbusd` multiplies and sums four levels of each.
pub(super) struct Avx512;

// Every function below: SAFETY: the caller's: the processor has AVX-512 F, BW and VNNI, and pointers are as the trait says.
impl Lanes for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    const ROWS: usize = 6;
    const PAIRS: bool = true;
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn largest(values: &[f32; BLOCK]) -> u32 {
        // SAFETY: as said above, here and below.
        unsafe {
            let (first, second) = (Self::bytes(values.as_ptr().cast()), Self::bytes(values[16..].as_ptr().cast()));
            let size = _mm512_set1_epi32(0x7fff_ffff);
            let (first, second) = (_mm512_and_si512(first, size), _mm512_and_si512(second, size));
            _mm512_reduce_max_epu32(_mm512_max_epu32(first, second))
        }
    }

    #[inline(always)]
    unsafe fn levels(values: &[f32; BLOCK], by: f32, words: &mut [i32]) -> [i32; 2] {
        // SAFETY: as above; `words` has eight words, which is asserted.
        unsafe {
            assert!(words.len() >= BLOCK / 4);
            let by = _mm512_set1_ps(by);
            let first = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values.as_ptr()), by));
            let second = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values[16..].as_ptr()), by));
            let to = words.as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(to, _mm512_cvtepi32_epi8(first));
            _mm_storeu_si128(to.add(1), _mm512_cvtepi32_epi8(second));
            [_mm512_reduce_add_epi32(first), _mm512_reduce_add_epi32(second)]
        }
    }

    #[inline(always)]
    fn fetch(line: *const u8) {
        // SAFETY: a prefetch is a hint; it may be given any address and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        // SAFETY: as said above, here and below.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn shifted(bytes: __m512i, by: i32, mask: u8) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let shifted = match by {
                0 => bytes,
                _ if by < 0 => _mm512_sll_epi16(bytes, _mm_cvtsi32_si128(-by)),
                _ => _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(by)),
            };
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn start(value: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, bytes: __m512i, levels: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi32(levels)) }
    }

    #[inline(always)]
    unsafe fn dot_wide(sum: __m512i, bytes: __m512i, levels: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { Self::dot(sum, bytes, levels) }
    }

    #[inline(always)]
    unsafe fn floats(ints: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn counts(from: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn signed_counts(from: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn madd(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn negate(a: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_sub_ps(_mm512_set1_ps(-0.0), a) }
    }

    #[inline(always)]
    unsafe fn store(a: __m512, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, a) };
    }
}

/// The sum of eight.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn sum_of(eight: __m256i) -> i32 {
    // SAFETY: the caller's.
    unsafe {
        let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0b01_00_11_10));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0b10_11_00_01)))
    }
}

/// Two registers of eight outputs each, with the instruction that multiplies and sums four levels (`VNNI`), or with the
/// older ones that sum pairs in 16 bits.
pub(super) struct Avx2<const VNNI: bool>;

/// The same of both registers.
macro_rules! both {
    ($i:ident => $value:expr) => {
        [
            {
                const $i: usize = 0;
                $value
            },
            {
                const $i: usize = 1;
                $value
            },
        ]
    };
}

// Every function below: SAFETY: the caller's: the processor has AVX2, FMA and F16C, and AVX-VNNI where that is said.
impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    // Eight registers of levels leave no room for more sums.
    const ROWS: usize = 4;
    const PAIRS: bool = false;
    // Pairs of products of all 8 bits do not fit 16 bits; those of 7 bits and a sign do.
    const SIGNED: bool = !VNNI;

    #[inline(always)]
    unsafe fn largest(values: &[f32; BLOCK]) -> u32 {
        // SAFETY: as said above, here and below.
        unsafe {
            let size = _mm256_set1_epi32(0x7fff_ffff);
            let mut largest = _mm256_setzero_si256();
            for i in 0..BLOCK / 8 {
                let eight = _mm256_loadu_si256(values[8 * i..].as_ptr().cast());
                largest = _mm256_max_epu32(largest, _mm256_and_si256(eight, size));
            }
            let four = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
            let two = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0b01_00_11_10));
            _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32(two, 0b10_11_00_01))) as u32
        }
    }

    #[inline(always)]
    unsafe fn levels(values: &[f32; BLOCK], by: f32, words: &mut [i32]) -> [i32; 2] {
        // SAFETY: as above; `words` has eight words, which is asserted.
        unsafe {
            assert!(words.len() >= BLOCK / 4);
            let by = _mm256_set1_ps(by);
            let mut levels = [_mm256_setzero_si256(); BLOCK / 8];
            for i in 0..BLOCK / 8 {
                levels[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values[8 * i..].as_ptr()), by));
            }
            let [a, b, c, d] = levels;
            // Packing keeps to halves of a register: fours come as 0 2 4 6 1 3 5 7.
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(words.as_mut_ptr().cast(), bytes);
            [sum_of(_mm256_add_epi32(a, b)), sum_of(_mm256_add_epi32(c, d))]
        }
    }

    #[inline(always)]
    fn fetch(line: *const u8) {
        // SAFETY: a prefetch is a hint; it may be given any address and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        // SAFETY: as said above, here and below.
        unsafe { both!(I => _mm256_loadu_si256(from.add(32 * I).cast())) }
    }

    #[inline(always)]
    unsafe fn shifted(bytes: Self::Bytes, by: i32, mask: u8) -> Self::Bytes {
        // SAFETY: as above.
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            let shifted = match by {
                0 => bytes,
                _ if by < 0 => both!(I => _mm256_sll_epi16(bytes[I], _mm_cvtsi32_si128(-by))),
                _ => both!(I => _mm256_srl_epi16(bytes[I], _mm_cvtsi32_si128(by))),
            };
            both!(I => _mm256_and_si256(shifted[I], mask))
        }
    }

    #[inline(always)]
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        // SAFETY: as above.
        unsafe { both!(I => _mm256_or_si256(a[I], b[I])) }
    }

    #[inline(always)]
    unsafe fn start(value: i32) -> Self::Ints {
        // SAFETY: as above.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    unsafe fn dot(sum: Self::Ints, bytes: Self::Bytes, levels: i32) -> Self::Ints {
        // SAFETY: as above.
        unsafe {
            let levels = _mm256_set1_epi32(levels);
            if VNNI {
                return both!(I => _mm256_dpbusd_avx_epi32(sum[I], bytes[I], levels));
            }
            let pairs = both!(I => _mm256_maddubs_epi16(bytes[I], levels));
            let ones = _mm256_set1_epi16(1);
            both!(I => _mm256_add_epi32(sum[I], _mm256_madd_epi16(pairs[I], ones)))
        }
    }

    #[inline(always)]
    unsafe fn dot_wide(sum: Self::Ints, bytes: Self::Bytes, levels: i32) -> Self::Ints {
        // SAFETY: as above.
        unsafe {
            if VNNI {
                return Self::dot(sum, bytes, levels);
            }
            // |w| · (a with w's sign): at most 2 · 128 · 127 in a pair.
            let (levels, ones) = (_mm256_set1_epi32(levels), _mm256_set1_epi16(1));
            let bytes = both!(I => _mm256_xor_si256(bytes[I], _mm256_set1_epi8(-128)));
            let turned = both!(I => _mm256_sign_epi8(levels, bytes[I]));
            let pairs = both!(I => _mm256_maddubs_epi16(_mm256_abs_epi8(bytes[I]), turned[I]));
            both!(I => _mm256_add_epi32(sum[I], _mm256_madd_epi16(pairs[I], ones)))
        }
    }

    #[inline(always)]
    unsafe fn floats(ints: Self::Ints) -> Self::Floats {
        // SAFETY: as above.
        unsafe { both!(I => _mm256_cvtepi32_ps(ints[I])) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        // SAFETY: as above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Floats {
        // SAFETY: as above.
        unsafe { both!(I => _mm256_loadu_ps(from.add(8 * I))) }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> Self::Floats {
        // SAFETY: as above.
        unsafe { both!(I => _mm256_cvtph_ps(_mm_loadu_si128(from.add(16 * I).cast()))) }
    }

    #[inline(always)]
    unsafe fn counts(from: *const u8) -> Self::Floats {
        // SAFETY: as above.
        unsafe { both!(I => _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8 * I).cast())))) }
    }

    #[inline(always)]
    unsafe fn signed_counts(from: *const u8) -> Self::Floats {
        // SAFETY: as above.
        unsafe { both!(I => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8 * I).cast())))) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { both!(I => _mm256_mul_ps(a[I], b[I])) }
    }

    #[inline(always)]
    unsafe fn madd(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { both!(I => _mm256_fmadd_ps(a[I], b[I], c[I])) }
    }

    #[inline(always)]
    unsafe fn negate(a: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { both!(I => _mm256_xor_ps(a[I], _mm256_set1_ps(-0.0))) }
    }

    #[inline(always)]
    unsafe fn store(a: Self::Floats, to: *mut f32) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to, a[0]);
            _mm256_storeu_ps(to.add(8), a[1]);
        }
    }
}
