//! Scalar functions written so that the compiler vectorises them, and the dispatch to wide registers.
//!
//! The default x86-64 target knows only 128-bit registers and no fused multiply-add. `wide!` compiles a loop once
//! more for AVX2 + FMA and for AVX-512, and picks at run time; on other processors (aarch64 has both in its base)
//! the plain version is all there is. Nothing here calls libm per element, and NaN always passes through: a gate
//! that looks for non-finite outputs must find them.

/// Defines a function whose body is compiled for AVX-512, for AVX2 + FMA and for the base target, chosen at each call.
/// The identifier in `<..>` names a `const bool` that the body hands to the functions below.
macro_rules! wide {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$fma:ident>($($arg:ident : $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const $fma: bool>($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                let fused = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
                if fused
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    #[allow(unsafe_code)]
                    // SAFETY: this processor was just found to have all of these.
                    return unsafe { avx512($($arg),*) };
                }
                if fused {
                    #[allow(unsafe_code)]
                    // SAFETY: this processor was just found to have both features.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body::<{ cfg!(target_feature = "fma") || cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(super) use wide;

/// Independent partial sums, so that a sum need not wait for itself; two AVX-512 or four AVX2 registers.
const LANES: usize = 32;

/// `a * b + c`, fused where the target does that in one instruction (elsewhere fusing is a slow libm call).
#[inline(always)]
pub(super) fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x`, relative error below 2e-7, for x in [-87.3, 88]; saturates outside, NaN stays NaN.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons, not min and max: those would turn NaN into a bound.
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.3 { -87.3 } else { x };
    let shifted = madd::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = madd::<FMA>(n, -LN2_LOW, madd::<FMA>(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = madd::<FMA>(p, r, c);
    }
    let mantissa = madd::<FMA>(p, r * r, r) + 1.0;
    let exponent = (shifted.to_bits().wrapping_sub(ROUND.to_bits())).wrapping_add(127) << 23;
    mantissa * f32::from_bits(exponent)
}

/// The error function, relative error below 1e-6; NaN stays NaN.
///
/// The rational minimax approximation of Eigen and XLA, odd over even, on [-4, 4]; beyond, erf is 1 in f32, and
/// exactly 1 here: GELU multiplies what is missing by x.
#[inline(always)]
pub(super) fn erf<const FMA: bool>(x: f32) -> f32 {
    let square = x * x;
    let mut p = -2.726_142_3e-10;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_5e-5, -7.349_906e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = madd::<FMA>(p, square, c);
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = madd::<FMA>(q, square, c);
    }
    let inside = x * p / q;
    let below = if x <= -4.0 { -1.0 } else { inside };
    if x >= 4.0 { 1.0 } else { below }
}

/// The sum of `f(x)`, in f32 over independent lanes.
#[inline(always)]
pub(super) fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&x| f(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    add_up(&mut lanes) + rest
}

/// The largest value, NaN ignored; negative infinity when there is none.
#[inline(always)]
pub(super) fn max_of(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().fold(rest, |a, &b| if b > a { b } else { a })
}

/// Adds lanes pairwise: half of them to the other half, until one is left.
#[inline(always)]
fn add_up(lanes: &mut [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    wide! { fn exp_all<FMA>(values: &mut [f32]) { for v in values { *v = exp::<FMA>(*v); } } }
    wide! { fn erf_all<FMA>(values: &mut [f32]) { for v in values { *v = erf::<FMA>(*v); } } }

    fn worst(xs: &[f32], ys: &[f32], exact: impl Fn(f64) -> f64) -> f64 {
        let errors = xs.iter().zip(ys).map(|(&x, &y)| {
            let want = exact(f64::from(x));
            ((f64::from(y) - want) / want).abs()
        });
        errors.fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_accurate_over_its_whole_range_on_both_paths() {
        let xs: Vec<f32> = (-873_000..880_000).step_by(7).map(|i| i as f32 * 1e-4).collect();
        let mut wide = xs.clone();
        exp_all(&mut wide);
        let plain: Vec<f32> = xs.iter().map(|&x| exp::<false>(x)).collect();
        for (path, ys) in [("wide", wide), ("plain", plain)] {
            let error = worst(&xs, &ys, f64::exp);
            assert!(error < 2e-7, "{path}: relative error {error}");
        }
    }

    #[test]
    fn erf_is_accurate_over_its_whole_range_on_both_paths() {
        let xs: Vec<f32> = (-60_000..60_000).filter(|&i| i != 0).map(|i| i as f32 * 1e-4).collect();
        let mut wide = xs.clone();
        erf_all(&mut wide);
        let plain: Vec<f32> = xs.iter().map(|&x| erf::<false>(x)).collect();
        for (path, ys) in [("wide", wide), ("plain", plain)] {
            let error = worst(&xs, &ys, candle_core::cpu::erf::erf_f64);
            assert!(error < 1e-6, "{path}: relative error {error}");
        }
    }

    #[test]
    fn extremes_saturate_and_nan_stays_nan() {
        for exp in [exp::<false>, exp::<true>] {
            assert!(exp(f32::NAN).is_nan());
            assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(-1e30) >= 0.0);
            assert!(exp(f32::INFINITY) > 1e38);
            assert_eq!(exp(0.0), 1.0);
        }
        assert!(erf::<false>(f32::NAN).is_nan());
        assert_eq!(erf::<false>(f32::INFINITY), 1.0);
        assert_eq!(erf::<false>(f32::NEG_INFINITY), -1.0);
        assert_eq!(erf::<false>(0.0), 0.0);
    }

    #[test]
    fn sums_and_maxima_take_every_element_at_any_length() {
        for length in [0, 1, 31, 32, 33, 64, 95, 1000] {
            let values: Vec<f32> = (0..length).map(|i| i as f32).collect();
            assert_eq!(sum_of(&values, |x| x), (length * (length.max(1) - 1) / 2) as f32);
            assert_eq!(max_of(&values), values.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
        assert!(sum_of(&[1.0, f32::NAN], |x| x).is_nan());
    }
}
