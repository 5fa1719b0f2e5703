use half::{bf16, f16};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.5f32..1.5)).collect()
}

/// `[columns, inner]` rows as panels, with NaN where the last panel has no column: it must never show.
fn panels(rows: &[f32], columns: usize, inner: usize) -> Vec<f32> {
    let mut stored = vec![f32::NAN; columns.div_ceil(PANEL) * inner * PANEL];
    WeightLayout::Panels.place(&mut stored, &[columns, inner], 0, rows).unwrap();
    stored
}

/// The product into a target that is wider than it must be and poisoned.
fn product<W: Element>(tiles: Tiles, left: Left<'_>, right: Right<'_, W>, bias: Option<&[f32]>) -> Vec<f32> {
    let stride = right.columns + 3;
    let mut out = vec![f32::NAN; left.rows * stride];
    let target = Target { start: out.as_mut_ptr(), stride };
    #[allow(unsafe_code)]
    // SAFETY: `out` has the rows, each longer than it must be.
    unsafe {
        multiply(tiles, left, right, bias, target);
    }
    for row in out.chunks(stride) {
        assert!(row[right.columns..].iter().all(|x| x.is_nan()), "written beyond the columns");
    }
    out.chunks(stride).flat_map(|row| row[..right.columns].to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Against the definition in f64, on every instruction set of this processor.
    #[test]
    fn it_is_the_product_of_rows_and_panels(
        (rows, columns, inner) in (0usize..210, 1usize..70, 0usize..900), gap in 0usize..9, seed: u64, with_bias: bool,
    ) {
        let stride = inner + gap;
        let a = random(rows * stride, seed);
        let b = random(columns * inner, seed ^ 1);
        let bias = with_bias.then(|| random(columns, seed ^ 2));
        let stored = panels(&b, columns, inner);
        let left = Left { data: &a, rows, inner, stride };
        let right = Right::panels(&stored, inner, columns);
        for tiles in Tiles::all() {
            let got = product(tiles, left, right, bias.as_deref());
            for i in 0..rows {
                for j in 0..columns {
                    let sum: f64 = (0..inner).map(|p| f64::from(a[i * stride + p]) * f64::from(b[j * inner + p])).sum();
                    let want = sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[j]));
                    let error = (f64::from(got[i * columns + j]) - want).abs();
                    prop_assert!(error <= 1e-5 * (inner as f64 + 1.0).sqrt() * 2.0, "{tiles:?} [{i}, {j}]: {error}");
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_to_the_bit_whatever_stands_beside_it(
        rows in 1usize..120, columns in 1usize..100, inner in 1usize..800, seed: u64,
    ) {
        let a = random(rows * inner, seed);
        let stored = panels(&random(columns * inner, seed ^ 1), columns, inner);
        let right = Right::panels(&stored, inner, columns);
        for tiles in Tiles::all() {
            let together = product(tiles, Left { data: &a, rows, inner, stride: inner }, right, None);
            for i in 0..rows {
                let alone = Left { data: &a[i * inner..(i + 1) * inner], rows: 1, inner, stride: inner };
                let alone: Vec<u32> = product(tiles, alone, right, None).into_iter().map(f32::to_bits).collect();
                let row: Vec<u32> = together[i * columns..][..columns].iter().map(|x| x.to_bits()).collect();
                prop_assert_eq!(alone, row);
            }
        }
    }

    /// On every instruction set: the same sums of the same numbers.
    #[test]
    fn elements_of_16_bits_multiply_as_what_they_are(
        rows in 0usize..40, columns in 1usize..70, inner in 0usize..500, seed: u64,
    ) {
        let a = random(rows * inner, seed);
        let stored = panels(&random(columns * inner, seed ^ 1), columns, inner);
        let left = Left { data: &a, rows, inner, stride: inner };
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let halves: Vec<f16> = stored.iter().map(|value| f16::from_f32(*value)).collect();
        let wide: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
        let brains: Vec<bf16> = stored.iter().map(|value| bf16::from_f32(*value)).collect();
        let broad: Vec<f32> = brains.iter().map(|brain| brain.to_f32()).collect();
        for tiles in Tiles::all() {
            let of = |wide| product(tiles, left, Right::<f32>::panels(wide, inner, columns), None);
            let got = product(tiles, left, Right::panels(&halves, inner, columns), None);
            prop_assert_eq!(bits(got), bits(of(&wide)));
            let got = product(tiles, left, Right::panels(&brains, inner, columns), None);
            prop_assert_eq!(bits(got), bits(of(&broad)));
        }
    }

    #[test]
    fn parts_of_the_panels_are_parts_of_the_product(
        rows in 1usize..20, columns in 1usize..100, inner in 1usize..50, cut in 0usize..7, seed: u64,
    ) {
        let a = random(rows * inner, seed);
        let stored = panels(&random(columns * inner, seed ^ 1), columns, inner);
        let right = Right::panels(&stored, inner, columns);
        let left = Left { data: &a, rows, inner, stride: inner };
        let cut = cut.min(columns.div_ceil(PANEL));
        let whole = product(Tiles::best(), left, right, None);
        let parts = [right.part(0, cut), right.part(cut, columns.div_ceil(PANEL))];
        let mut column = 0;
        for part in parts.into_iter().filter(|part| part.columns > 0) {
            let got = product(Tiles::best(), left, part, None);
            for i in 0..rows {
                prop_assert_eq!(&got[i * part.columns..][..part.columns], &whole[i * columns + column..][..part.columns]);
            }
            column += part.columns;
        }
        prop_assert_eq!(column, columns);
    }
}

#[test]
fn slices_cover_the_inner_dimension_once() {
    for inner in [0, 1, 383, 384, 385, 768, 1000, 3072] {
        let all: Vec<(usize, usize)> = slices(inner).collect();
        assert!(all.iter().all(|(_, size)| *size <= SLICE), "{inner}: {all:?}");
        assert_eq!(all.iter().map(|(_, size)| size).sum::<usize>(), inner);
        assert!(all.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "{inner}: {all:?}");
    }
}

#[test]
fn a_product_may_be_added_to_what_is_there() {
    let (rows, columns, inner) = (5, 37, 11);
    let (a, b) = (random(rows * inner, 1), random(columns * inner, 2));
    let (stored, before) = (panels(&b, columns, inner), random(rows * columns, 3));
    let (left, right) = (Left { data: &a, rows, inner, stride: inner }, Right::panels(&stored, inner, columns));
    for tiles in Tiles::all() {
        let product = product(tiles, left, right, None);
        let mut out = before.clone();
        #[allow(unsafe_code)]
        // SAFETY: `out` has the rows, and was written.
        unsafe {
            multiply_onto(tiles, left, right, Target { start: out.as_mut_ptr(), stride: columns });
        }
        for (at, got) in out.iter().enumerate() {
            assert!((got - before[at] - product[at]).abs() < 1e-5, "{tiles:?}, {at}: {got}");
        }
    }
}
