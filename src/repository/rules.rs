//! The rules of an observation window as data: what is measured, against what, and how far it may go.
//!
//! `[[observe.rule]]` writes a rule out in full; the short keys of `[observe]` are rules too. It knows which of them make
//! sense, and must not know how they are judged.

use std::time::Duration;

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::duration;
use super::fields::{one_of, some_at_least_one_u64, some_longer_than_zero, write_some_duration};
use super::model_toml::ObserveConfig;

/// Quantiles say nothing of fewer answers than this.
const FEWEST_FOR_QUANTILES: u64 = 100;
/// No single second may prove that a version is slow: see [`Rule::hold`].
const HOLD_OF_LATENCIES: Duration = Duration::from_secs(3);
/// Longer answers are counted as this long.
const LONGEST: Duration = Duration::from_secs(600);
const LONGEST_NAME: usize = 64;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Requests that the version failed although another could answer them, of all.
    ErrorRate,
    /// Of these, those whose outputs were not finite.
    Nonfinite,
    /// Requests that were not answered within the model's own deadline.
    Timeouts,
    P50,
    P95,
    P99,
    /// How much answers agree with those of the live version to the same inputs, on average.
    ShadowAgreement,
}

/// What a threshold is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// From nothing.
    Absolute,
    /// From what the version before does, or the live version beside it.
    Relative,
    /// From nothing, and in requests; a fact, not an estimate.
    Count,
}

/// How far a rule lets its metric go.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// So large a share of the requests.
    AtMost(f64),
    /// At least so large a mean.
    AtLeast(f64),
    /// So much more, as a share of all requests, than the version compared with.
    Above(f64),
    /// So many requests.
    Count(u64),
    /// So many times the latency of the version compared with.
    Times(f64),
    /// So long.
    Time(Duration),
}

/// One rule, whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rule {
    pub name: String,
    pub metric: Metric,
    pub limit: Limit,
    /// Nothing is judged from fewer, neither of the candidate nor of the version that it is compared with.
    pub min_samples: u64,
    /// For how long it must be broken, to the second: the proof must be spread over it, so that no second counts for more than its
    /// share; of agreement, each look in that time must show it. Zero does not ask.
    pub hold: Duration,
}

/// A rule as it is written: `[[observe.rule]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    pub name: String,
    #[serde(deserialize_with = "one_of")]
    pub metric: Metric,
    /// As fits the metric where nothing is said: latencies are relative, everything else is absolute.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_one_of")]
    pub comparison: Option<Comparison>,
    pub threshold: Threshold,
    /// `min_requests` where nothing is said, and 100 at least for quantiles.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_at_least_one_u64")]
    pub min_samples: Option<u64>,
    #[serde(
        default,
        rename = "for",
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_some_duration",
        deserialize_with = "some_longer_than_zero"
    )]
    pub hold: Option<Duration>,
}

/// A number, or a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    Number(f64),
    Time(Duration),
}

impl Metric {
    /// As in `model.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Metric::ErrorRate => "error_rate",
            Metric::Nonfinite => "nonfinite",
            Metric::Timeouts => "timeouts",
            Metric::P50 => "p50",
            Metric::P95 => "p95",
            Metric::P99 => "p99",
            Metric::ShadowAgreement => "shadow_agreement",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Metric::ErrorRate => "error rate",
            Metric::Nonfinite => "non-finite outputs",
            Metric::Timeouts => "timeouts",
            Metric::P50 => "p50 latency",
            Metric::P95 => "p95 latency",
            Metric::P99 => "p99 latency",
            Metric::ShadowAgreement => "shadow agreement",
        }
    }

    /// Which share of the answers is to be no slower; `None` for what is no latency.
    pub fn level(self) -> Option<f64> {
        match self {
            Metric::P50 => Some(0.5),
            Metric::P95 => Some(0.95),
            Metric::P99 => Some(0.99),
            _ => None,
        }
    }
}

impl ObserveConfig {
    /// Every rule that holds: those of the short keys, then those written out.
    pub fn rules(&self) -> Vec<Rule> {
        let rate = |metric: Metric, limit| Rule {
            name: metric.title().into(),
            metric,
            limit,
            min_samples: self.min_requests.max(1),
            hold: Duration::ZERO,
        };
        let slow = |metric: Metric, ratio| Rule {
            min_samples: self.min_requests.max(FEWEST_FOR_QUANTILES),
            hold: HOLD_OF_LATENCIES,
            ..rate(metric, Limit::Times(ratio))
        };
        let mut rules = vec![
            rate(Metric::Nonfinite, Limit::Count(self.max_nonfinite)),
            rate(Metric::ErrorRate, Limit::AtMost(self.max_error_rate)),
            slow(Metric::P99, self.max_p99_ratio),
            slow(Metric::P50, self.max_p50_ratio.unwrap_or(self.max_p99_ratio)),
        ];
        // What was read has been checked: each has a limit.
        rules.extend(self.rule.iter().filter_map(|written| written.rule(self).ok()));
        // In a window that is shorter than they are made for, they must still be able to be broken.
        rules.iter_mut().for_each(|rule| rule.hold = rule.hold.min(self.longest_hold()));
        rules
    }

    /// A rule that must be broken for longer cannot be in the window: when that began is known to a second, and looks come each second.
    fn longest_hold(&self) -> Duration {
        match self.window.is_zero() {
            // There is none; a canary has its own time.
            true => Duration::MAX,
            false => self.window.saturating_sub(Duration::from_secs(2)),
        }
    }

    /// Whether the rules make sense: else the key, and what was expected.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let mut names: Vec<String> =
            ObserveConfig { rule: Vec::new(), ..self.clone() }.rules().into_iter().map(|rule| rule.name).collect();
        for (at, written) in self.rule.iter().enumerate() {
            let refused = |key: &str, reason: String| Err((format!("observe.rule[{at}].{key}"), reason));
            let name = written.name.trim();
            if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
                return refused("name", format!("expected a name in one line of at most {LONGEST_NAME} bytes"));
            }
            if names.iter().any(|other| other == name) {
                return refused("name", format!("{name:?} names another rule, expected a name of its own"));
            }
            names.push(name.to_owned());
            match written.rule(self) {
                Err((key, reason)) => return refused(key, reason),
                Ok(rule) if matches!(rule.limit, Limit::Count(_)) && written.hold.is_some() => {
                    return refused("for", "expected none: what is counted is broken at once".to_owned());
                }
                Ok(rule) if rule.hold > self.longest_hold() && written.hold.is_some() => {
                    let (hold, window) = (duration::format(rule.hold), duration::format(self.window));
                    let expected = "expected two seconds less than the window at most";
                    return refused("for", format!("{hold:?}, {expected}, which is {window:?}"));
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

impl RuleConfig {
    fn rule(&self, of: &ObserveConfig) -> Result<Rule, (&'static str, String)> {
        let (fewest, hold) = match self.metric.level() {
            Some(_) => (of.min_requests.max(FEWEST_FOR_QUANTILES), HOLD_OF_LATENCIES),
            None => (of.min_requests.max(1), Duration::ZERO),
        };
        Ok(Rule {
            name: self.name.trim().to_owned(),
            metric: self.metric,
            limit: self.limit()?,
            min_samples: self.min_samples.unwrap_or(fewest),
            hold: self.hold.unwrap_or(hold),
        })
    }

    fn limit(&self) -> Result<Limit, (&'static str, String)> {
        use Comparison::{Absolute, Count, Relative};
        let metric = self.metric.name();
        let is_latency = self.metric.level().is_some();
        let comparison = self.comparison.unwrap_or(if is_latency { Relative } else { Absolute });
        let expected = |what: &str| Err(("threshold", format!("{}, expected {what}", self.threshold)));
        match (self.metric, comparison, self.threshold) {
            (Metric::ShadowAgreement, Absolute, Threshold::Number(share)) if share > 0.0 && share <= 1.0 => {
                Ok(Limit::AtLeast(share))
            }
            (Metric::ShadowAgreement, Absolute, _) => {
                expected("how much both must agree on average, above 0.0 and at most 1.0")
            }
            (Metric::ShadowAgreement, ..) => {
                Err(("comparison", format!("expected `absolute`: {metric} is a comparison already")))
            }
            (_, Absolute, Threshold::Time(time)) if is_latency && !time.is_zero() && time < LONGEST => {
                Ok(Limit::Time(time))
            }
            (_, Absolute, _) if is_latency => {
                expected(&format!("how long {metric} may be at most, such as \"250ms\", below ten minutes"))
            }
            (_, Relative, Threshold::Number(times)) if is_latency && times.is_finite() && times >= 1.0 => {
                Ok(Limit::Times(times))
            }
            (_, Relative, _) if is_latency => {
                expected(&format!("how many times that of the version before {metric} may be, 1.0 or more"))
            }
            (_, Count, _) if is_latency => {
                Err(("comparison", format!("expected `absolute` or `relative` for {metric}")))
            }
            (_, Absolute, Threshold::Number(share)) if (0.0..1.0).contains(&share) => Ok(Limit::AtMost(share)),
            (_, Absolute, _) => expected("a share of all requests, from 0.0 to below 1.0"),
            (_, Relative, Threshold::Number(share)) if (0.0..1.0).contains(&share) => Ok(Limit::Above(share)),
            (_, Relative, _) => {
                expected("how much more than of the version before, as a share of all requests, from 0.0 to below 1.0")
            }
            (_, Count, Threshold::Number(count)) if (0.0..=1e15).contains(&count) && count.fract() == 0.0 => {
                Ok(Limit::Count(count as u64))
            }
            (_, Count, _) => expected("a whole number of requests"),
        }
    }
}

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Threshold::Number(number) => write!(f, "{number}"),
            Threshold::Time(time) => write!(f, "{:?}", duration::format(*time)),
        }
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Threshold::Number(number) => serializer.serialize_f64(*number),
            Threshold::Time(time) => duration::serialize(time, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Threshold;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a number, or {}", duration::EXPECTED)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Threshold, E> {
                Ok(Threshold::Number(number as f64))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Threshold, E> {
                Ok(Threshold::Number(number as f64))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Threshold, E> {
                match number.is_finite() {
                    true => Ok(Threshold::Number(number)),
                    false => Err(E::custom(format!("{number}, expected a finite number"))),
                }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Threshold, E> {
                let percent: Option<f64> = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
                match percent {
                    Some(percent) => Err(E::custom(format!("{text:?}, expected it as a share: {}", percent / 100.0))),
                    None => duration::parse(text)
                        .map(Threshold::Time)
                        .map_err(|_| E::custom(format!("{text:?}, expected a number, or {}", duration::EXPECTED))),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn some_one_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Comparison>, D::Error> {
    one_of(deserializer).map(Some)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
