//! Passes over one row of logits, for sampling: as fast as the row can be read, or nearly.
//!
//! It knows numbers only, nothing of tokens or options. A logit of negative infinity is a token that cannot be chosen.

use super::simd::{exp, max_of, sum_of, wide};

/// Rows are looked through in pieces of so many, most of which can be passed over.
const PIECE: usize = 64;

wide! {
    /// The largest logit, and whether all are numbers below positive infinity.
    fn scan<FMA>(row: &[f32]) -> (f32, bool) {
        // numbers rather than truths: as wide as what is compared
        let mut unsound = [0u32; PIECE];
        let pieces = row.chunks_exact(PIECE);
        let rest = pieces.remainder().iter().all(|&x| x < f32::INFINITY);
        for piece in pieces {
            for (unsound, &x) in unsound.iter_mut().zip(piece) {
                *unsound |= if x < f32::INFINITY { 0 } else { 1 };
            }
        }
        (max_of(row), rest && unsound == [0; PIECE])
    }
}

wide! {
    fn sum_of_exp<FMA>(row: &[f32], peak: f32, scale: f32) -> f32 {
        sum_of(row, |x| exp::<FMA>((x - peak) * scale))
    }
}

wide! {
    fn find_between<FMA>(row: &[f32], floor: f32, ceiling: f32, found: &mut Vec<u32>) {
        for (at, piece) in row.chunks(PIECE).enumerate() {
            let mut any = false;
            for &x in piece {
                any |= x >= floor;
            }
            if any {
                let inside = piece.iter().enumerate().filter(|(_, x)| **x >= floor && **x < ceiling);
                found.extend(inside.map(|(offset, _)| (at * PIECE + offset) as u32));
            }
        }
    }
}

wide! {
    fn find_first<FMA>(row: &[f32], floor: f32) -> Option<usize> {
        for (at, piece) in row.chunks(PIECE).enumerate() {
            let mut any = false;
            for &x in piece {
                any |= x >= floor;
            }
            if any {
                return piece.iter().position(|x| *x >= floor).map(|offset| at * PIECE + offset);
            }
        }
        None
    }
}

/// The largest logit; `None` where one is NaN or positive infinity. Negative infinity where there is nothing else.
pub fn peak(row: &[f32]) -> Option<f32> {
    let (peak, sound) = scan(row);
    sound.then_some(peak)
}

/// The sum of `e^(scale (x − peak))`; the row holds no NaN, and nothing above `peak`. Relative error below 1e-5.
pub fn exp_sum(row: &[f32], peak: f32, scale: f32) -> f32 {
    sum_of_exp(row, peak, scale)
}

/// Appends the places of the logits in `floor <= x < ceiling`, ascending.
pub fn between(row: &[f32], floor: f32, ceiling: f32, found: &mut Vec<u32>) {
    find_between(row, floor, ceiling, found);
}

/// The first place with a logit of at least `floor`.
pub fn first(row: &[f32], floor: f32) -> Option<u32> {
    find_first(row, floor).map(|at| at as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn passes_agree_with_their_definitions(
            row in proptest::collection::vec(prop_oneof![8 => -30f32..30.0, 1 => Just(f32::NEG_INFINITY)], 1..400),
            floor in -30f32..30.0,
            width in 0f32..20.0,
        ) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(peak(&row), Some(largest));
            prop_assert_eq!(first(&row, floor), row.iter().position(|x| *x >= floor).map(|at| at as u32));
            let mut found = Vec::new();
            between(&row, floor, floor + width, &mut found);
            let inside = |x: f32| x >= floor && x < floor + width;
            let want: Vec<u32> = (0..row.len() as u32).filter(|&at| inside(row[at as usize])).collect();
            prop_assert_eq!(found, want);
            if largest > f32::NEG_INFINITY {
                let exact: f64 = row.iter().map(|&x| ((f64::from(x) - f64::from(largest)) * 0.7).exp()).sum();
                let sum = f64::from(exp_sum(&row, largest, 0.7));
                prop_assert!((sum - exact).abs() < 1e-5 * exact, "{} is not {}", sum, exact);
            }
        }

        #[test]
        fn one_bad_number_is_found_wherever_it_stands(length in 1usize..300, at in 0usize..300, infinite: bool) {
            let mut row = vec![0.5; length];
            row[at % length] = if infinite { f32::INFINITY } else { f32::NAN };
            prop_assert_eq!(peak(&row), None);
        }
    }

    #[test]
    fn nothing_to_choose_from_is_told_by_the_peak() {
        assert_eq!(peak(&[f32::NEG_INFINITY; 70]), Some(f32::NEG_INFINITY));
        assert_eq!(peak(&[]), Some(f32::NEG_INFINITY));
    }
}
