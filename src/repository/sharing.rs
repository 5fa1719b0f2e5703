//! How a candidate meets live traffic before it has all of it: shares of a canary, whom they stick to, and the shadow.
//!
//! Keys of `model.toml` and words of requests alike, with their ranges. It must not know routes.

use std::time::Duration;

use serde::de::{Deserializer, Error as _};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::fields::{at_least_one_u64, share, some_at_least_one_u64, some_longer_than_zero, write_some_duration};
use super::rules::{Limit, Metric, Rule};

const NOT_BOTH: &str = "`step` and `requests`: a step lasts for a time or for so many requests, not both";

/// What a client, or a request, is known by, where two versions share requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sticky {
    /// The value of this header, whose name is in lower case; requests without it are placed by themselves.
    Header(String),
    /// The API key that is shown; requests without one are placed by themselves.
    ApiKey,
    /// Nothing but what is asked: the same goes where it went.
    #[default]
    Request,
}

/// The shares of requests that a candidate answers one after the other before it answers all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "CanaryKeys", into = "CanaryKeys")]
pub struct CanaryConfig {
    /// Percent, each more than the one before. None: all at once.
    pub steps: Vec<f64>,
    pub lasts: Lasts,
    pub sticky: Sticky,
}

/// How long each step of a canary lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    Time(Duration),
    /// Until the candidate has answered so many requests in it.
    Requests(u64),
}

/// The keys of `[canary]`.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CanaryKeys {
    #[serde(deserialize_with = "steps")]
    steps: Vec<f64>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_some_duration",
        deserialize_with = "some_longer_than_zero"
    )]
    step: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_at_least_one_u64")]
    requests: Option<u64>,
    sticky: Sticky,
}

/// Answers of the live version that are computed again by the other one that is resident, and compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowConfig {
    /// Of requests, 0 to 1.
    #[serde(deserialize_with = "share")]
    pub share: f64,
    /// How much the two must agree on average; without it nothing is demanded.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_share")]
    pub min_agreement: Option<f64>,
    /// Below so many answers nothing is judged.
    #[serde(deserialize_with = "at_least_one_u64")]
    pub min_samples: u64,
    /// Whether what agreed worst is kept with its input, for operators to see.
    pub keep_inputs: bool,
}

impl Default for CanaryConfig {
    fn default() -> Self {
        CanaryConfig { steps: Vec::new(), lasts: Lasts::Time(Duration::from_secs(60)), sticky: Sticky::default() }
    }
}

impl TryFrom<CanaryKeys> for CanaryConfig {
    type Error = &'static str;

    fn try_from(keys: CanaryKeys) -> Result<Self, Self::Error> {
        let lasts = match (keys.step, keys.requests) {
            (None, None) => CanaryConfig::default().lasts,
            (Some(time), None) => Lasts::Time(time),
            (None, Some(requests)) => Lasts::Requests(requests),
            (Some(_), Some(_)) => return Err(NOT_BOTH),
        };
        Ok(CanaryConfig { steps: keys.steps, lasts, sticky: keys.sticky })
    }
}

impl From<CanaryConfig> for CanaryKeys {
    fn from(CanaryConfig { steps, lasts, sticky }: CanaryConfig) -> Self {
        let (step, requests) = match lasts {
            Lasts::Time(time) => (Some(time), None),
            Lasts::Requests(requests) => (None, Some(requests)),
        };
        CanaryKeys { steps, step, requests, sticky }
    }
}

impl Default for ShadowConfig {
    fn default() -> Self {
        ShadowConfig { share: 0.0, min_agreement: None, min_samples: 50, keep_inputs: true }
    }
}

impl CanaryConfig {
    /// Whether shares can follow each other so.
    ///
    /// # Errors
    /// What is wrong with them, and what was expected.
    pub fn check_steps(steps: &[f64]) -> Result<(), String> {
        const EXPECTED: &str =
            "expected percentages above 0 and below 100, each more than the one before, such as [5, 25, 50]";
        let in_range = |step: &f64| *step > 0.0 && *step < 100.0;
        if let Some(wrong) = steps.iter().find(|step| !in_range(step)) {
            return Err(format!("{wrong}, {EXPECTED}"));
        }
        match steps.windows(2).find(|pair| pair[1] <= pair[0]) {
            Some(pair) => Err(format!("{} after {}, {EXPECTED}", pair[1], pair[0])),
            None => Ok(()),
        }
    }
}

impl ShadowConfig {
    /// What `min_agreement` demands, if it does.
    pub fn rule(&self) -> Option<Rule> {
        let (metric, limit) = (Metric::ShadowAgreement, Limit::AtLeast(self.min_agreement?));
        let name = metric.title().into();
        Some(Rule { name, metric, limit, min_samples: self.min_samples, hold: Duration::ZERO })
    }
}

impl std::str::FromStr for Sticky {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.split_once(':')) {
            ("request", _) => Ok(Sticky::Request),
            ("api-key", _) => Ok(Sticky::ApiKey),
            // A token of HTTP (RFC 9110, 5.6.2).
            (_, Some(("header", name))) if !name.is_empty() && name.bytes().all(is_token) => {
                Ok(Sticky::Header(name.to_ascii_lowercase()))
            }
            _ => Err(format!("{text:?}, expected \"request\", \"api-key\" or \"header:<name>\"")),
        }
    }
}

impl std::fmt::Display for Sticky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sticky::Header(name) => write!(f, "header:{name}"),
            Sticky::ApiKey => f.write_str("api-key"),
            Sticky::Request => f.write_str("request"),
        }
    }
}

impl Serialize for Sticky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sticky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn steps<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let steps = Vec::deserialize(deserializer)?;
    CanaryConfig::check_steps(&steps).map_err(D::Error::custom)?;
    Ok(steps)
}

fn some_share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    share(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_stick_to_is_written_and_read_alike() {
        for text in ["request", "api-key", "header:x-user"] {
            assert_eq!(text.parse::<Sticky>().unwrap().to_string(), text);
        }
        assert_eq!("header:X-User".parse(), Ok(Sticky::Header("x-user".into())));
        for text in ["", "cookie", "header", "header:", "header:a b", "header:ä"] {
            assert!(text.parse::<Sticky>().unwrap_err().contains("header:<name>"), "{text}");
        }
    }

    #[test]
    fn shares_of_a_canary_grow_and_stay_below_all() {
        for good in [&[][..], &[5.0], &[0.1, 25.0, 99.9]] {
            assert_eq!(CanaryConfig::check_steps(good), Ok(()));
        }
        for bad in [&[0.0][..], &[100.0], &[-1.0], &[f64::NAN], &[5.0, 5.0], &[50.0, 25.0]] {
            assert!(CanaryConfig::check_steps(bad).unwrap_err().contains("such as [5, 25, 50]"), "{bad:?}");
        }
    }
}
