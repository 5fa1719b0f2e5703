//! What holds a load back, as people write it: `auto`, `none`, `800MB/s`, `4GB/s`.

use serde::de::{self, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::size;

/// What it looks like, for error messages.
const EXPECTED: &str = "\"auto\", \"none\", or a rate such as \"800MB/s\" or \"4GB/s\"";
const MEGABYTE: u64 = 1_000_000;
/// Bytes a second: more than any bus carries.
const MOST: u64 = 1_000_000_000_000;

/// How fast a version may be loaded beside live traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoadThrottle {
    /// As fast as clients do not notice.
    #[default]
    Auto,
    None,
    /// Bytes a second.
    Rate(u64),
}

impl LoadThrottle {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => return Some(LoadThrottle::Auto),
            "none" => return Some(LoadThrottle::None),
            _ => {}
        }
        let rate = size::parse(text.strip_suffix("/s")?).ok()?;
        (1..=MOST).contains(&rate).then_some(LoadThrottle::Rate(rate))
    }
}

impl Serialize for LoadThrottle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            LoadThrottle::Auto => serializer.serialize_str("auto"),
            LoadThrottle::None => serializer.serialize_str("none"),
            LoadThrottle::Rate(rate) if rate.is_multiple_of(MEGABYTE) => {
                serializer.collect_str(&format_args!("{}MB/s", rate / MEGABYTE))
            }
            LoadThrottle::Rate(rate) => serializer.collect_str(&format_args!("{rate}B/s")),
        }
    }
}

impl<'de> Deserialize<'de> for LoadThrottle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("expected {EXPECTED}, found {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_anything_else_is_refused() {
        assert_eq!(LoadThrottle::parse("auto"), Some(LoadThrottle::Auto));
        assert_eq!(LoadThrottle::parse("none"), Some(LoadThrottle::None));
        assert_eq!(LoadThrottle::parse("4GB/s"), Some(LoadThrottle::Rate(4_000_000_000)));
        assert_eq!(LoadThrottle::parse("800 MiB/s"), Some(LoadThrottle::Rate(800 << 20)));
        for wrong in [
            "",
            "4",
            "GB/s",
            "0MB/s",
            "-1GB/s",
            "+1GB/s",
            "1.5GB/s",
            "4GB",
            "4/s",
            "2000GB/s",
            "99999999999999999999GB/s",
            "Auto",
        ] {
            assert_eq!(LoadThrottle::parse(wrong), None, "{wrong}");
        }
    }
}
