//! Means with intervals that hold however often they are looked at. Pure.
//!
//! Asymptotic confidence sequences (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and
//! asymptotic confidence sequences", Annals of Statistics 52(6), 2024, theorem 2.2): with probability `1 - alpha` the true mean
//! lies within the interval at all times at once, so that whoever stops at the first look that pleases is not deceived.

use crate::generation::Scores;

/// Of fewer values nothing is said: the sequence is valid for large numbers.
const FEWEST: u64 = 10;
/// The number of values at which intervals are to be narrowest.
const TUNED_FOR: f64 = 500.0;

/// A mean, and how far the truth may lie from it on either side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mean {
    pub(super) value: f64,
    pub(super) radius: f64,
}

impl Mean {
    /// `None` for too few values.
    pub(super) fn of(scores: &Scores, alpha: f64) -> Option<Mean> {
        if scores.count < FEWEST {
            return None;
        }
        let count = scores.count as f64;
        let value = scores.sum / count;
        let variance = (scores.squares / count - value * value).max(0.0);
        let log = -2.0 * alpha.ln();
        let rho2 = (log + (log + 1.0).ln()) / TUNED_FOR;
        let spread = 2.0 * (count * rho2 + 1.0) / (count * count * rho2) * ((count * rho2 + 1.0).sqrt() / alpha).ln();
        Some(Mean { value, radius: (variance * spread).sqrt() })
    }

    /// `other` less `self`. The intervals hold together with probability `1 - alpha` where each does with half of that.
    pub(super) fn to(self, other: Mean) -> Mean {
        Mean { value: other.value - self.value, radius: self.radius + other.radius }
    }

    pub(super) fn low(self) -> f64 {
        self.value - self.radius
    }

    pub(super) fn high(self) -> f64 {
        self.value + self.radius
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    #[test]
    fn the_truth_is_left_out_at_no_look_of_a_thousand_in_all_but_few_runs() {
        let mut random = SmallRng::seed_from_u64(7);
        let mut missed = 0;
        for _ in 0..400 {
            let mut scores = Scores::default();
            let misses = (0..1000).any(|_| {
                scores.add(f64::from(random.random_bool(0.3)));
                Mean::of(&scores, 0.05).is_some_and(|mean| scores.count >= 50 && (mean.value - 0.3).abs() > mean.radius)
            });
            missed += usize::from(misses);
        }
        assert!(missed <= 20, "{missed} of 400 at 5 %");
    }

    #[test]
    fn a_difference_is_found_and_none_is_not() {
        let mut random = SmallRng::seed_from_u64(8);
        let (mut better, mut same, mut worse) = (Scores::default(), Scores::default(), Scores::default());
        for _ in 0..2000 {
            better.add(f64::from(random.random_bool(0.6)));
            same.add(f64::from(random.random_bool(0.5)));
            worse.add(f64::from(random.random_bool(0.5)));
        }
        let of = |scores| Mean::of(scores, 0.025).unwrap();
        let (up, none) = (of(&worse).to(of(&better)), of(&worse).to(of(&same)));
        assert!(up.low() > 0.0 && up.high() < 0.25, "{up:?}");
        assert!(none.low() < 0.0 && none.high() > 0.0, "{none:?}");
        assert_eq!(Mean::of(&Scores { count: 9, sum: 9.0, squares: 9.0 }, 0.05), None);
    }
}
