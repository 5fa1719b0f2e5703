//! The rules of the observation window: counters in, verdict out. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use crate::generation::Snapshot;
use crate::repository::ObserveConfig;

/// A rule that was broken: what was seen, against what, with how many samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Breach {
    pub rule: &'static str,
    pub measure: Value,
    pub limit: Value,
    pub samples: u64,
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (measure, limit) = (short(&self.measure), short(&self.limit));
        write!(f, "{}: {measure} against a limit of {limit} ({} samples)", self.rule, self.samples)
    }
}

/// For people: as it is in JSON, with four digits after the point at most.
fn short(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if value.is_f64() => json!((number * 1e4).round() / 1e4).to_string(),
        _ => value.to_string(),
    }
}

/// Judges what the new version did since the switch.
///
/// `baseline` is the old version's p99 just before the switch, when it had traffic enough to have one.
pub fn judge(rules: &ObserveConfig, since: &Snapshot, baseline: Option<Duration>) -> Option<Breach> {
    let requests = since.answered + since.blamed;
    if since.nonfinite > rules.max_nonfinite {
        return Some(Breach {
            rule: "non-finite outputs",
            measure: json!(since.nonfinite),
            limit: json!(rules.max_nonfinite),
            samples: requests,
        });
    }
    let rate = since.blamed as f64 / requests.max(1) as f64;
    if requests >= rules.min_requests && rate > rules.max_error_rate {
        return Some(Breach {
            rule: "error rate",
            measure: json!(rate),
            limit: json!(rules.max_error_rate),
            samples: requests,
        });
    }
    let (p99, baseline) = (since.p99?, baseline?);
    let limit = baseline.mul_f64(rules.max_p99_ratio);
    // Below a millisecond the ratio measures the clock's company, not the model.
    if since.samples >= rules.min_requests.max(100) && p99 > limit && p99 - limit > Duration::from_millis(1) {
        return Some(Breach {
            rule: "p99 latency in ms",
            measure: json!(p99.as_secs_f64() * 1e3),
            limit: json!(limit.as_secs_f64() * 1e3),
            samples: since.samples,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> ObserveConfig {
        ObserveConfig { min_requests: 20, max_error_rate: 0.02, max_p99_ratio: 2.0, ..ObserveConfig::default() }
    }

    fn seen(answered: u64, blamed: u64) -> Snapshot {
        Snapshot { answered, blamed, samples: answered, ..Snapshot::default() }
    }

    #[test]
    fn a_clean_window_is_left_alone() {
        assert_eq!(judge(&rules(), &seen(10_000, 3), Some(Duration::from_millis(5))), None);
    }

    #[test]
    fn a_single_non_finite_answer_is_enough() {
        let since = Snapshot { nonfinite: 1, blamed: 1, ..Snapshot::default() };
        assert_eq!(judge(&rules(), &since, None).unwrap().rule, "non-finite outputs");
    }

    #[test]
    fn errors_are_judged_once_there_are_requests_enough() {
        assert_eq!(judge(&rules(), &seen(10, 5), None), None);
        let breach = judge(&rules(), &seen(30, 1), None).unwrap();
        assert_eq!((breach.rule, breach.samples), ("error rate", 31));
        assert_eq!(breach.to_string(), "error rate: 0.0323 against a limit of 0.02 (31 samples)");
        assert_eq!(judge(&rules(), &seen(98, 2), None), None, "two in a hundred is the limit, not over it");
    }

    #[test]
    fn latency_is_judged_against_the_old_version_and_with_samples_enough() {
        let slow = |samples| Snapshot {
            answered: samples,
            samples,
            p99: Some(Duration::from_millis(50)),
            ..Snapshot::default()
        };
        let baseline = Some(Duration::from_millis(20));
        assert_eq!(judge(&rules(), &slow(99), baseline), None);
        assert_eq!(judge(&rules(), &slow(100), baseline).unwrap().rule, "p99 latency in ms");
        assert_eq!(judge(&rules(), &slow(100), Some(Duration::from_millis(25))), None);
        assert_eq!(judge(&rules(), &slow(100), None), None, "no baseline, no verdict");
    }
}
