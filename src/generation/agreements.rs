//! How much answers agree with another generation's to the same inputs, of those that were compared: what their mean is judged by.

use hdrhistogram::Histogram;

/// How far two answers are apart is counted in so many parts of all.
const PARTS: u64 = 1_000_000;

/// Agreements from 0 to 1; what is less counts as none at all.
#[derive(Debug, Clone)]
pub struct Agreements {
    sum: f64,
    /// How far they are from 1, to two significant digits.
    apart: Histogram<u64>,
}

impl Default for Agreements {
    fn default() -> Self {
        // Two significant digits over a millionth to all of it: a constant and valid pair of bounds.
        #[allow(clippy::expect_used)]
        let apart = Histogram::new_with_bounds(1, PARTS, 2).expect("constant bounds are valid");
        Agreements { sum: 0.0, apart }
    }
}

impl Agreements {
    pub fn add(&mut self, agreement: f64) {
        let agreement = agreement.clamp(0.0, 1.0);
        self.sum += agreement;
        self.apart.saturating_record(((1.0 - agreement) * PARTS as f64) as u64);
    }

    pub fn count(&self) -> u64 {
        self.apart.len()
    }

    /// `None` where there are none.
    pub fn mean(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.sum / self.count() as f64)
    }

    /// How far they are apart, from 0 to 1: at least and at most, and how many of them.
    pub fn apart(&self) -> impl Iterator<Item = (f64, f64, u64)> {
        self.apart.iter_recorded().map(|bucket| {
            let value = bucket.value_iterated_to();
            let (low, high) = (self.apart.lowest_equivalent(value), self.apart.highest_equivalent(value) + 1);
            let share = |parts: u64| (parts as f64 / PARTS as f64).min(1.0);
            (share(low), share(high), bucket.count_at_value())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_between_its_bounds_and_the_mean_is_exact() {
        for agreement in [1.0, 0.999_999_94, 0.9999, 0.987_654_3, 0.5, 0.001, 0.0, -0.4] {
            let mut agreements = Agreements::default();
            (0..3).for_each(|_| agreements.add(agreement));
            let all: Vec<_> = agreements.apart().collect();
            let &[(low, high, 3)] = &all[..] else { panic!("{agreement}: {all:?}") };
            let apart = 1.0 - agreement.clamp(0.0, 1.0);
            assert!(
                low <= apart && apart <= high && high - low <= 0.011 * apart + 1.1e-6,
                "{agreement}: {low} to {high}"
            );
            assert!((agreements.mean().unwrap() - agreement.clamp(0.0, 1.0)).abs() < 1e-12);
        }
        assert_eq!((Agreements::default().mean(), Agreements::default().apart().count()), (None, 0));
    }
}
