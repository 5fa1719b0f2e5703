//! What one generation did in a time: requests by outcome, and how long answers took. Plain numbers, for whoever judges them.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::Agreements;

/// Microseconds; longer answers count as this.
pub(super) const LONGEST: u64 = 600_000_000;

/// Counts, and latencies to two significant digits.
#[derive(Debug, Clone)]
pub struct Observed {
    pub answered: u64,
    /// Requests that it failed although another generation could answer them.
    pub blamed: u64,
    /// Of these, those with outputs that were not finite.
    pub nonfinite: u64,
    /// Requests that ran into the model's own deadline.
    pub timed_out: u64,
    /// How much its answers agreed with another generation's to the same inputs, of those that were compared.
    pub agreement: Agreements,
    /// Microseconds, timeouts included.
    pub latency: Histogram<u64>,
}

impl Default for Observed {
    fn default() -> Self {
        Observed::of(histogram())
    }
}

impl Observed {
    pub(super) fn of(latency: Histogram<u64>) -> Observed {
        Observed { answered: 0, blamed: 0, nonfinite: 0, timed_out: 0, agreement: Agreements::default(), latency }
    }

    /// An answer that took so long.
    pub fn answer(&mut self, took: Duration) {
        self.answered += 1;
        self.latency.saturating_record(micros(took));
    }

    /// Requests that it answered or is to blame for.
    pub fn requests(&self) -> u64 {
        self.answered + self.blamed
    }

    /// Answers whose latency is known.
    pub fn timed(&self) -> u64 {
        self.latency.len()
    }

    /// What was done since `before`, an earlier look at the same counters.
    pub fn since(&self, before: &Observed) -> Observed {
        let mut latency = self.latency.clone();
        // It fails where the earlier look holds more than the later one: the counters began anew, and all of it is since.
        if latency.subtract(&before.latency).is_err() {
            latency = self.latency.clone();
        }
        Observed {
            answered: self.answered.saturating_sub(before.answered),
            blamed: self.blamed.saturating_sub(before.blamed),
            nonfinite: self.nonfinite.saturating_sub(before.nonfinite),
            timed_out: self.timed_out.saturating_sub(before.timed_out),
            // Of a shadow, which has begun since.
            agreement: self.agreement.clone(),
            latency,
        }
    }

    /// Answers that certainly took longer: one that may have taken just as long is not counted.
    pub fn slower_than(&self, limit: Duration) -> u64 {
        let limit = micros(limit);
        if limit >= LONGEST {
            return 0;
        }
        self.latency.count_between(self.latency.next_non_equivalent(limit), LONGEST)
    }

    /// What so large a share of the answers did not exceed; `None` without any.
    pub fn quantile(&self, level: f64) -> Option<Duration> {
        (!self.latency.is_empty()).then(|| Duration::from_micros(self.latency.value_at_quantile(level)))
    }

    /// Between which times the answer lies that was the `rank`th, the fastest being the first; `None` where there are fewer.
    pub fn ranked(&self, rank: u64) -> Option<(Duration, Duration)> {
        let mut passed = 0;
        let bucket = self.latency.iter_recorded().find(|bucket| {
            passed += bucket.count_since_last_iteration();
            passed >= rank.max(1)
        })?;
        let (low, high) = (
            self.latency.lowest_equivalent(bucket.value_iterated_to()),
            self.latency.highest_equivalent(bucket.value_iterated_to()),
        );
        Some((Duration::from_micros(low), Duration::from_micros(high)))
    }
}

pub(super) fn micros(took: Duration) -> u64 {
    (took.as_micros() as u64).clamp(1, LONGEST)
}

/// An empty histogram of latencies, in microseconds.
pub fn histogram() -> Histogram<u64> {
    // Two significant digits over 1 µs to 10 min: a constant and valid pair of bounds.
    #[allow(clippy::expect_used)]
    Histogram::new_with_bounds(1, LONGEST, 2).expect("constant bounds are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(times: impl IntoIterator<Item = u64>) -> Observed {
        let mut seen = Observed::default();
        times.into_iter().for_each(|ms| seen.answer(Duration::from_millis(ms)));
        seen
    }

    #[test]
    fn ranks_and_counts_agree() {
        let seen = seen(1..=1000);
        for rank in [1, 10, 500, 990, 1000] {
            let (low, high) = seen.ranked(rank).unwrap();
            assert!(
                low <= Duration::from_millis(rank) && Duration::from_millis(rank) <= high,
                "{rank}: {low:?} {high:?}"
            );
            assert!(seen.slower_than(high) <= 1000 - rank);
            assert!(high.as_secs_f64() <= 1.016 * low.as_secs_f64(), "{low:?} to {high:?}");
        }
        assert_eq!(seen.ranked(1001), None);
        assert_eq!((seen.slower_than(Duration::from_secs(2)), seen.slower_than(Duration::MAX)), (0, 0));
    }

    #[test]
    fn what_was_done_since_an_earlier_look_is_told_apart() {
        let before = seen([5, 5, 5]);
        let mut after = before.clone();
        after.answer(Duration::from_millis(80));
        after.blamed = 2;
        let since = after.since(&before);
        assert_eq!((since.requests(), since.timed(), since.slower_than(Duration::from_millis(50))), (3, 1, 1));
        assert_eq!(before.since(&after).timed(), 3, "counters that began anew are all since");
    }
}
