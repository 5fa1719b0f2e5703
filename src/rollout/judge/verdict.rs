//! What a rule found: what was seen, against what, with how many samples. For people and for programs.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Beside;
use crate::repository::{Limit, Metric, Rule};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decided {
    /// It is shown to keep the rule.
    Pass,
    /// Neither is shown.
    Undecided,
    /// It is shown to break the rule, not yet for as long as it must to be taken back.
    Breaking,
    /// It is shown to break the rule.
    Breach,
}

/// Shares are from 0 to 1, latencies in milliseconds, counts in requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub rule: String,
    pub metric: Metric,
    pub decided: Decided,
    /// The rate, the quantile or the mean of the candidate; `None` without samples.
    pub seen: Option<f64>,
    /// What the true one lies between, at every look, but with the chance `risk` at each end.
    pub interval: Option<(f64, Option<f64>)>,
    /// The same of the version that it is compared with.
    pub against: Option<f64>,
    /// What it may come to; of a relative rule unknown without the other version's samples.
    pub limit: Option<f64>,
    /// Requests that broke the limit, of `samples`; none where a mean is judged.
    pub events: u64,
    pub samples: u64,
    pub reference_samples: u64,
    /// The chance with which a version that keeps the rule is found to break it, however often one looks.
    pub risk: f64,
    /// How probable evidence like this is, at whatever look, of a version that keeps the rule: an anytime-valid p-value.
    pub significance: f64,
    /// When that began which it tells of, counted from when the candidate began; `None` from there on.
    pub since: Option<Duration>,
    pub(super) bound: Limit,
    pub(super) beside: Beside,
}

impl Verdict {
    pub(super) fn of(rule: &Rule) -> Verdict {
        Verdict {
            rule: rule.name.clone(),
            metric: rule.metric,
            decided: Decided::Undecided,
            seen: None,
            interval: None,
            against: None,
            limit: None,
            events: 0,
            samples: 0,
            reference_samples: 0,
            risk: 0.0,
            significance: 1.0,
            since: None,
            bound: rule.limit,
            beside: Beside::Nothing,
        }
    }

    /// `share`, `ms` or `requests`.
    pub fn unit(&self) -> &'static str {
        match self.bound {
            Limit::Count(_) => "requests",
            Limit::Times(_) | Limit::Time(_) => "ms",
            Limit::AtMost(_) | Limit::AtLeast(_) | Limit::Above(_) => "share",
        }
    }

    /// As the record of a rollout keeps it.
    pub fn to_json(&self) -> Value {
        let number = |value: Option<f64>| value.map(rounded);
        json!({
            "rule": self.rule,
            "metric": self.metric,
            "decided": self.decided,
            "unit": self.unit(),
            "seen": number(self.seen),
            "interval": self.interval.map(|(low, high)| json!([rounded(low), number(high)])),
            "against": number(self.against),
            "limit": number(self.limit),
            "events": self.events,
            "samples": self.samples,
            "against_samples": self.reference_samples,
            "risk": rounded(self.risk),
            "significance": rounded(self.significance),
            "since_s": self.since.map(|since| rounded(since.as_secs_f64())),
        })
    }

    fn other(&self) -> &'static str {
        match self.beside {
            Beside::Live => "the live version",
            Beside::LiveEarlier => "the live version before",
            Beside::Before | Beside::Nothing => "the version before",
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let title = self.metric.title();
        write!(f, "{}: ", self.rule)?;
        if self.rule != title {
            write!(f, "{title} ")?;
        }
        if let Some(since) = self.since {
            write!(f, "after {}, ", after(since))?;
        }
        let (Some(seen), Some(limit)) = (self.seen, self.limit) else {
            return write!(f, "nothing to judge yet ({} samples)", self.samples);
        };
        let low = self.interval.map_or(seen, |(low, _)| low);
        let high = self.interval.and_then(|(_, high)| high).unwrap_or(seen);
        match self.bound {
            Limit::Count(most) => {
                write!(f, "{} of {} requests against at most {most}", self.events, self.samples)
            }
            Limit::AtMost(most) => write!(
                f,
                "{} of {} requests, {} and {} at least, against at most {}",
                self.events,
                self.samples,
                percent(seen),
                percent(low),
                percent(most)
            ),
            Limit::Above(more) => write!(
                f,
                "{} of {} requests, {} and {} at least, against at most {} more than the {} of {} in {}",
                self.events,
                self.samples,
                percent(seen),
                percent(low),
                percent(more),
                self.against.map_or_else(|| "unknown rate".into(), percent),
                self.other(),
                self.reference_samples
            ),
            Limit::AtLeast(least) => write!(
                f,
                "{seen:.4} on average in {} answers, {high:.4} at most, against at least {least}",
                self.samples
            ),
            Limit::Time(_) => write!(
                f,
                "{} in {} answers, {} at least, against at most {}",
                ms(seen),
                self.samples,
                ms(low),
                ms(limit)
            ),
            Limit::Times(times) => write!(
                f,
                "{} in {} answers, {} at least, against at most {}, {} times that of {} ({} in {})",
                ms(seen),
                self.samples,
                ms(low),
                ms(limit),
                rounded(times),
                self.other(),
                self.against.map_or_else(|| "unknown".into(), ms),
                self.reference_samples
            ),
        }
    }
}

fn after(since: Duration) -> String {
    match since.as_secs_f64() {
        short if short < 180.0 => format!("{short:.0} s"),
        middle if middle < 3.0 * 3600.0 => format!("{:.0} min", middle / 60.0),
        long => format!("{:.0} h", long / 3600.0),
    }
}

/// To four significant digits: more say nothing of a sample.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    if scale.is_finite() && scale > 0.0 { (value * scale).round() / scale } else { value }
}

fn percent(share: f64) -> String {
    format!("{} %", short(share * 100.0))
}

fn ms(value: f64) -> String {
    format!("{} ms", short(value))
}

fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 1.0 => format!("{}", (value * 10.0).round() / 10.0),
        small if small >= 1e-4 => format!("{}", (value * 1e4).round() / 1e4),
        0.0 => "0".into(),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let told: Vec<_> = [0.0, 0.000_003, 0.031_279, 1.88, 44.04, 316.2, 12_345.0].map(short).to_vec();
        assert_eq!(told, ["0", "3.0e-6", "0.0313", "1.9", "44", "316", "12345"]);
        assert_eq!([rounded(0.000_501_234_5), rounded(123_456.0), rounded(0.0)], [0.000_501_2, 123_500.0, 0.0]);
    }
}
