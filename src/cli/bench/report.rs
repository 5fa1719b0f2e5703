//! From samples to figures: percentiles, failures by kind, and their rows in a table. Pure.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::output::{Failure, human_ms};
use super::super::table::Table;
use super::load::Sample;

/// Latency of the requests that succeeded, in milliseconds, and the count of those that did not.
///
/// Failures have no place in percentiles: a quick refusal would flatter them. They are counted beside them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Summary {
    pub requests: u64,
    pub failures: BTreeMap<String, u64>,
    pub mean_ms: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub p99_9_ms: Option<f64>,
    pub max_ms: Option<f64>,
}

impl Summary {
    pub(super) fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Result<Summary, Failure> {
        let mut summary = Summary::default();
        let mut latencies = histogram()?;
        for sample in samples {
            summary.requests += 1;
            if sample.outcome.ok() {
                latencies.saturating_record(sample.latency());
            } else {
                *summary.failures.entry(sample.outcome.name()).or_default() += 1;
            }
        }
        if !latencies.is_empty() {
            let at = |quantile| Some(round(latencies.value_at_quantile(quantile) as f64 / 1e6));
            summary.mean_ms = Some(round(latencies.mean() / 1e6));
            summary.p50_ms = at(0.5);
            summary.p90_ms = at(0.9);
            summary.p99_ms = at(0.99);
            summary.p99_9_ms = at(0.999);
            summary.max_ms = Some(round(latencies.max() as f64 / 1e6));
        }
        Ok(summary)
    }

    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The columns that [`Summary::cells`] fills.
    pub(super) const HEAD: [&str; 7] = ["requests", "failed", "p50", "p90", "p99", "p99.9", "max"];

    pub(super) fn cells(&self) -> Vec<String> {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), human_ms);
        let latencies = [self.p50_ms, self.p90_ms, self.p99_ms, self.p99_9_ms, self.max_ms].map(ms);
        [self.requests.to_string(), self.failed().to_string()].into_iter().chain(latencies).collect()
    }
}

/// How late requests began, in milliseconds at the 99th percentile: the generator's own error in an open loop,
/// and the wait for a free connection when the server is behind. It is part of the latencies.
pub(super) fn lag_p99_ms<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Result<f64, Failure> {
    let mut lags = histogram()?;
    for sample in samples {
        lags.saturating_record(sample.started.saturating_sub(sample.intended));
    }
    Ok(round(lags.value_at_quantile(0.99) as f64 / 1e6))
}

/// Nanoseconds up to an hour, to three digits.
fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3).map_err(|e| Failure::Failed(format!("histogram: {e}")))
}

/// Microseconds are enough.
pub(super) fn round(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

/// `503 ×12, timeout ×1`, most frequent kinds of all summaries.
pub(super) fn failures_line<'a>(summaries: impl IntoIterator<Item = &'a Summary>) -> Option<String> {
    let mut all: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, count) in summaries.into_iter().flat_map(|summary| &summary.failures) {
        *all.entry(kind).or_default() += count;
    }
    let told: Vec<String> = all.iter().map(|(kind, count)| format!("{kind} ×{count}")).collect();
    (!told.is_empty()).then(|| told.join(", "))
}

/// A table of summaries behind some columns of their own.
pub(super) fn table(columns: &[&str]) -> Table {
    Table::new(columns.iter().copied().chain(Summary::HEAD))
}

#[cfg(test)]
mod tests {
    use super::super::load::Outcome;
    use super::*;

    fn sample(latency_ms: u64, outcome: Outcome) -> Sample {
        Sample { intended: 5, started: 5 + latency_ms * 100_000, ended: 5 + latency_ms * 1_000_000, stamp: 0, outcome }
    }

    #[test]
    fn percentiles_are_those_of_the_samples_and_failures_stand_apart() {
        let mut samples: Vec<Sample> = (1..=1000).map(|ms| sample(ms, Outcome::Status(200))).collect();
        samples.extend([
            sample(9999, Outcome::Status(503)),
            sample(9999, Outcome::TimedOut),
            sample(0, Outcome::Status(503)),
        ]);
        let summary = Summary::of(&samples).unwrap();
        let near =
            |got: Option<f64>, want: f64| assert!((got.unwrap() / want - 1.0).abs() < 0.002, "{got:?} for {want}");
        near(summary.p50_ms, 500.0);
        near(summary.p90_ms, 900.0);
        near(summary.p99_ms, 990.0);
        near(summary.p99_9_ms, 999.0);
        near(summary.max_ms, 1000.0);
        assert_eq!((summary.requests, summary.failed()), (1003, 3));
        assert_eq!(failures_line([&summary, &summary]).unwrap(), "503 ×4, timeout ×2");
        near(Some(lag_p99_ms(&samples[..1000]).unwrap()), 99.0);
    }

    #[test]
    fn nothing_measured_is_nothing_told() {
        let summary = Summary::of(&[sample(1, Outcome::Unreachable)]).unwrap();
        assert_eq!((summary.p50_ms, summary.max_ms, summary.requests), (None, None, 1));
    }
}
