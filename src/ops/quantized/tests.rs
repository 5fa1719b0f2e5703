use half::f16;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::ops::testing::{assert_close, matrix, values, vector};
use crate::ops::{Activation, Epilogue, Matrix, Tensor, linear};

const FMA: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// Blocks of any levels, with scales of the size that weights have.
fn random_blocks(format: QuantFormat, count: usize, seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut blocks: Vec<u8> = (0..count * format.block_bytes()).map(|_| random.random()).collect();
    for block in blocks.chunks_mut(format.block_bytes()) {
        let mut scale = |at: usize, most: f32| {
            block[at..at + 2].copy_from_slice(&f16::from_f32(random.random_range(-most..most)).to_le_bytes());
        };
        match format {
            QuantFormat::Q4_0 => scale(0, 0.2),
            QuantFormat::Q4_1 => [0, 2].into_iter().for_each(|at| scale(at, 0.2)),
            QuantFormat::Q8_0 => scale(0, 0.01),
            QuantFormat::Q4_K => [0, 2].into_iter().for_each(|at| scale(at, 0.004)),
            QuantFormat::Q6_K => scale(208, 0.0005),
        }
    }
    blocks
}

struct Weight {
    format: QuantFormat,
    stored: Vec<u8>,
    /// Dequantised.
    rows: Vec<f32>,
    out: usize,
    inner: usize,
}

fn weight(format: QuantFormat, out: usize, blocks: usize, seed: u64) -> Weight {
    let inner = blocks * format.block();
    let source = random_blocks(format, out * blocks, seed);
    let mut stored = vec![0; format.stored(out, inner).iter().product()];
    format.place(&mut stored, (out, inner), 0, &source).unwrap();
    Weight { format, stored, rows: format.dequantize(&source), out, inner }
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.5f32..1.5)).collect()
}

/// The product into a target that is wider than it must be and poisoned.
fn product(path: Path, x: &[f32], weight: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let (count, stride) = (x.len() / weight.inner, weight.out + 3);
    let x = Rows { data: x, count, width: weight.inner, stride: weight.inner };
    let blocks = Blocks::new(weight.format, &weight.stored, (weight.out, weight.inner)).unwrap();
    let mut out = vec![f32::NAN; count * stride];
    let target = Target { start: out.as_mut_ptr(), stride };
    #[allow(unsafe_code)]
    // SAFETY: `out` has the rows, each longer than it must be.
    unsafe {
        multiply(path, x, blocks, bias, target);
    }
    for row in out.chunks(stride) {
        assert!(row[weight.out..].iter().all(|x| x.is_nan()), "written beyond the outputs");
    }
    out.chunks(stride).flat_map(|row| row[..weight.out].to_vec()).collect()
}

/// Activations as the definition rounds them: level and scale of each.
fn rounded(x: &[f32]) -> Vec<(i32, f32)> {
    let blocks = x.chunks(32).flat_map(|block| {
        let largest = block.iter().fold(0f32, |a, b| a.max(b.abs()));
        block.iter().map(move |x| ((x * (127.0 / largest)).round_ties_even() as i32, largest / 127.0))
    });
    blocks.collect()
}

/// What ggml's own library for Python (gguf 0.19.0) makes of a block of each format: the sum of weight `i` times
/// `i % 7 + 1`, and some of the weights.
#[test]
fn blocks_mean_what_ggml_means() {
    type Case = (QuantFormat, &'static [(usize, u16)], f64, &'static [(usize, f32)]);
    let cases: [Case; 5] = [
        (QuantFormat::Q4_0, &[(0, 0x2e66)], -6.598388671875, &[(0, -0.29992676), (15, 0.39990234), (16, -0.19995117)]),
        (QuantFormat::Q4_1, &[(0, 0x2e66), (2, 0xb19a)], 67.5223388671875, &[(0, 1.324585), (16, -0.07507324)]),
        (QuantFormat::Q8_0, &[(0, 0x211f)], 20.994483947753906, &[(0, 1.0102158), (16, -0.03000641), (31, 1.1502457)]),
        (
            QuantFormat::Q4_K,
            &[(0, 0x1c19), (2, 0x1e66)],
            656.3337631225586,
            &[(0, 0.95399094), (33, 0.84924316), (101, -0.06466675), (170, 1.361515), (255, 0.91664886)],
        ),
        (
            QuantFormat::Q6_K,
            &[(208, 0x1019)],
            -32.969826221466064,
            &[(0, -1.5126114), (33, -0.5702305), (101, -0.9138694), (170, 0.8268342), (231, 0.00800323)],
        ),
    ];
    for (format, scales, sum, some) in cases {
        let mut state = 12_345u32;
        let mut block: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7fff_ffff;
            (state >> 16) as u8
        })
        .take(format.block_bytes())
        .collect();
        scales.iter().for_each(|(at, scale)| block[*at..at + 2].copy_from_slice(&scale.to_le_bytes()));
        let weights = format.dequantize(&block);
        let got: f64 = weights.iter().enumerate().map(|(i, w)| f64::from(*w) * (i % 7 + 1) as f64).sum();
        assert!((got - sum).abs() < 1e-4, "{format}: {got}, expected {sum}");
        some.iter().for_each(|(i, w)| assert!((weights[*i] - w).abs() < 1e-6, "{format} [{i}]: {} {w}", weights[*i]));
    }
}

fn format() -> impl Strategy<Value = QuantFormat> {
    prop::sample::select(QuantFormat::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_weight_is_within_half_a_level_of_what_it_was(weights in prop::collection::vec(-2f32..2.0, 96)) {
        for (format, levels) in [(QuantFormat::Q4_0, 8.0), (QuantFormat::Q4_1, 15.0), (QuantFormat::Q8_0, 127.0)] {
            let blocks = format.quantize(&weights).unwrap();
            prop_assert_eq!(blocks.len(), format.row_bytes(96).unwrap());
            for (was, is) in weights.chunks(32).zip(format.dequantize(&blocks).chunks(32)) {
                let most = was.iter().fold(f32::MIN, |a, b| a.max(*b));
                let least = was.iter().fold(f32::MAX, |a, b| a.min(*b));
                let farthest = most.abs().max(least.abs());
                let level = if format == QuantFormat::Q4_1 { (most - least) / levels } else { farthest / levels };
                // Scales and the least weight are rounded to f16. Q4_0 has no level beyond 7: there it is a whole one.
                let bound = if format == QuantFormat::Q4_0 { 1.0 } else { 0.5 } * level + farthest / 500.0;
                for (was, is) in was.iter().zip(is) {
                    prop_assert!((was - is).abs() <= bound, "{format}: {was} became {is}");
                }
            }
        }
    }

    #[test]
    fn pieces_of_any_size_end_up_in_their_rows(
        format in format(), out in 1usize..40, each in 1usize..4, cut in 1usize..30, seed: u64,
    ) {
        let (inner, bytes) = (each * format.block(), format.block_bytes());
        let source = random_blocks(format, out * each, seed);
        let mut stored = vec![0; format.stored(out, inner).iter().product()];
        for (i, piece) in source.chunks(cut * bytes).enumerate() {
            format.place(&mut stored, (out, inner), i * cut, piece).unwrap();
        }
        let blocks = Blocks::new(format, &stored, (out, inner)).unwrap();
        let want = format.dequantize(&source);
        for row in 0..out {
            let mut weights = vec![f32::NAN; inner];
            blocks.row(row, &mut weights);
            prop_assert_eq!(&weights, &want[row * inner..][..inner]);
        }
    }

    /// Against the same rounding of activations in f64: what is left is rounding of the f32 sums alone. And against the
    /// product of what was given, where half a level of every activation is lost.
    #[test]
    fn it_is_the_product_of_rows_and_weights(
        format in format(), rows in 0usize..30, out in 1usize..70, blocks in 1usize..4, seed: u64, with_bias: bool,
    ) {
        let weight = weight(format, out, blocks, seed);
        let x = random(rows * weight.inner, seed ^ 1);
        let bias = with_bias.then(|| random(out, seed ^ 2));
        for path in Path::all() {
            let got = product(path, &x, &weight, bias.as_deref());
            for (x, got) in x.chunks(weight.inner).zip(got.chunks(out)) {
                let levels = rounded(x);
                for (j, (w, got)) in weight.rows.chunks(weight.inner).zip(got).enumerate() {
                    let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[j]));
                    let terms = w.iter().zip(&levels);
                    let terms = terms.map(|(w, (level, scale))| f64::from(*w) * f64::from(*scale) * f64::from(*level));
                    let (sum, size) = terms.fold((bias, bias.abs()), |(sum, size), term| (sum + term, size + term.abs()));
                    let error = (f64::from(*got) - sum).abs();
                    // The offset is taken apart from the levels, so that either may be larger than the weight.
                    prop_assert!(error <= 1e-5 * (size + 1.0), "{path:?} {format}: {got}, expected {sum}");
                    let exact = bias + w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                    let lost: f64 = w.iter().zip(&levels).map(|(w, (_, scale))| f64::from(w.abs() * scale) * 0.501).sum();
                    prop_assert!((f64::from(*got) - exact).abs() <= lost + 1e-5 * (size + 1.0));
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_to_the_bit_whatever_stands_beside_it(
        format in format(), rows in 1usize..40, out in 1usize..60, blocks in 1usize..3, seed: u64,
    ) {
        let weight = weight(format, out, blocks, seed);
        let x = random(rows * weight.inner, seed ^ 1);
        for path in Path::all() {
            let together = product(path, &x, &weight, None);
            for (x, together) in x.chunks(weight.inner).zip(together.chunks(out)) {
                let alone: Vec<u32> = product(path, x, &weight, None).into_iter().map(f32::to_bits).collect();
                prop_assert_eq!(alone, together.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            }
        }
    }

    /// Whole numbers are summed alike everywhere, and what follows is the same operations: the wide paths agree to the bit,
    /// and with the sum written out plainly for the format whose scale is a number of the file.
    #[test]
    fn wide_instructions_agree_to_the_bit(format in format(), rows in 1usize..10, blocks in 1usize..5, seed: u64) {
        let weight = weight(format, 33, blocks, seed);
        let x = random(rows * weight.inner, seed ^ 1);
        let fused = Path::all().filter(|path| *path != Path::Portable || cfg!(target_arch = "aarch64"));
        let all: Vec<Vec<u32>> =
            fused.map(|path| product(path, &x, &weight, None).into_iter().map(f32::to_bits).collect()).collect();
        prop_assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn q8_0_is_its_sum_written_out(rows in 1usize..10, blocks in 1usize..6, seed: u64) {
        let (out, inner) = (17, blocks * 32);
        let source = random_blocks(QuantFormat::Q8_0, out * blocks, seed);
        let weight = weight(QuantFormat::Q8_0, out, blocks, seed);
        let x = random(rows * inner, seed ^ 1);
        let mut want = Vec::new();
        for levels in rounded(&x).chunks(inner) {
            for row in source.chunks(blocks * 34) {
                want.push(row.chunks(34).zip(levels.chunks(32)).fold(0f32, |sum, (block, levels)| {
                    let terms = block[2..].iter().zip(levels);
                    let whole: i32 = terms.map(|(w, (level, _))| i32::from(*w as i8) * level).sum();
                    (whole as f32 * levels[0].1).mul_add(f16::from_le_bytes([block[0], block[1]]).to_f32(), sum)
                }).to_bits());
            }
        }
        for path in Path::all().filter(|path| FMA && *path != Path::Portable) {
            let got: Vec<u32> = product(path, &x, &weight, None).into_iter().map(f32::to_bits).collect();
            prop_assert_eq!(&got, &want, "{:?}", path);
        }
    }
}

#[test]
fn levels_at_their_limits_do_not_overflow() {
    for byte in [0x00u8, 0x7f, 0x80, 0xff] {
        for format in QuantFormat::ALL {
            let mut source = vec![byte; 16 * format.block_bytes()];
            let one = f16::from_f32(1.0).to_le_bytes();
            for block in source.chunks_mut(format.block_bytes()) {
                let at = if format == QuantFormat::Q6_K { 208 } else { 0 };
                block[at..at + 2].copy_from_slice(&one);
                if matches!(format, QuantFormat::Q4_1 | QuantFormat::Q4_K) {
                    block[2..4].copy_from_slice(&one);
                }
            }
            let mut stored = vec![0; format.stored(16, format.block()).iter().product()];
            format.place(&mut stored, (16, format.block()), 0, &source).unwrap();
            let rows = format.dequantize(&source);
            let weight = Weight { format, stored, rows, out: 16, inner: format.block() };
            for x in [-1f32, 1.0] {
                let want: f64 = weight.rows[..weight.inner].iter().map(|w| f64::from(*w) * f64::from(x)).sum();
                for path in Path::all() {
                    let got = product(path, &vec![x; weight.inner], &weight, None);
                    assert!(
                        (f64::from(got[0]) - want).abs() <= 1e-5 * want.abs(),
                        "{path:?} {format}: {} {want}",
                        got[0]
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    for format in QuantFormat::ALL {
        let weight = weight(format, 20, 1, 3);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random(2 * weight.inner, 4);
            x[weight.inner + 5] = bad;
            for path in Path::all() {
                let got = product(path, &x, &weight, None);
                assert!(got[..20].iter().all(|y| y.is_finite()), "{path:?} {format}");
                assert!(got[20..].iter().all(|y| !y.is_finite()), "{path:?} {format}");
            }
        }
    }
}

#[test]
fn scales_that_are_no_numbers_are_seen() {
    for (format, scales) in [
        (QuantFormat::Q4_0, &[0usize][..]),
        (QuantFormat::Q4_1, &[0, 2]),
        (QuantFormat::Q8_0, &[0]),
        (QuantFormat::Q4_K, &[0, 2]),
        (QuantFormat::Q6_K, &[208]),
    ] {
        let blocks = random_blocks(format, 3, 5);
        // In two pieces, cut anywhere.
        let all_finite =
            |blocks: &[u8], cut: usize| format.all_finite(&blocks[..cut], 0) && format.all_finite(&blocks[cut..], cut);
        assert!((0..=blocks.len()).all(|cut| all_finite(&blocks, cut)), "{format}");
        for at in scales {
            for block in 0..3 {
                let (mut blocks, at) = (blocks.clone(), block * format.block_bytes() + at);
                blocks[at..at + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
                assert!((0..=blocks.len()).all(|cut| !all_finite(&blocks, cut)), "{format}");
            }
        }
    }
}

fn quantized(format: QuantFormat, rows: &Tensor) -> Matrix {
    let weights: Vec<f32> = rows.to_rows().unwrap().concat();
    Matrix::from_blocks(format, &format.quantize(&weights).unwrap(), rows.dims2().unwrap()).unwrap()
}

#[test]
fn a_linear_layer_takes_it_with_every_epilogue() {
    let (x, w, b, r) = (matrix(37, 64, 1), matrix(50, 64, 2), vector(50, 3), matrix(37, 50, 4));
    let norm = crate::ops::LayerNorm { weight: vector(50, 5), bias: vector(50, 6), eps: 1e-5 };
    for format in [QuantFormat::Q4_0, QuantFormat::Q4_1, QuantFormat::Q8_0] {
        let quantized = quantized(format, &w);
        assert_eq!((quantized.in_features(), quantized.out_features()), (64, 50));
        let numbers: Vec<u32> = (0..50).collect();
        let plain = Matrix::from_rows(&quantized.rows(&numbers).unwrap()).unwrap();
        for epilogue in
            [Epilogue::None, Epilogue::Activate(Activation::Relu), Epilogue::Add(&r), Epilogue::AddNorm(&r, &norm)]
        {
            let got = linear(&x, &quantized, Some(&b), epilogue).unwrap();
            assert_close(&got, &values(&linear(&x, &plain, Some(&b), epilogue).unwrap()), 2e-2);
        }
        assert_eq!(linear(&matrix(0, 64, 1), &quantized, None, Epilogue::None).unwrap().dims(), [0, 50]);
        assert!(linear(&matrix(1, 96, 1), &quantized, None, Epilogue::None).is_err());
    }
}

#[test]
fn a_large_product_is_the_same_to_the_bit_on_one_thread_and_on_several() {
    for rows in [1, 10, 130] {
        let (x, w, b) = (matrix(rows, 512, 6), matrix(1000, 512, 7), vector(1000, 8));
        let w = quantized(QuantFormat::Q4_1, &w);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            values(&pool.install(|| linear(&x, &w, Some(&b), Epilogue::Activate(Activation::Gelu)).unwrap()))
        };
        assert_eq!(on(3), on(1));
    }
}

#[test]
fn shapes_that_blocks_do_not_fill_are_errors() {
    let blocks = random_blocks(QuantFormat::Q4_0, 4, 1);
    assert!(Matrix::from_blocks(QuantFormat::Q4_0, &blocks, (2, 64)).is_ok());
    for shape in [(2, 63), (4, 48), (1, 64), (2, 96)] {
        assert!(Matrix::from_blocks(QuantFormat::Q4_0, &blocks, shape).is_err() || shape == (2, 96), "{shape:?}");
    }
    let mut stored = vec![0; QuantFormat::Q4_0.stored(2, 64).iter().product()];
    assert!(QuantFormat::Q4_0.place(&mut stored, (2, 64), 1, &blocks).is_err());
    assert!(QuantFormat::Q4_0.place(&mut stored, (2, 64), 0, &blocks[1..]).is_err());
    assert!(QuantFormat::Q4_K.quantize(&[0.0; 256]).is_err());
}
