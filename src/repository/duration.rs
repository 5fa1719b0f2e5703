//! Durations as people write them in configuration and requests: `500ms`, `5m`, `1h30m`.
//!
//! A leaf of a leaf: text in, `Duration` out. It must not know what a duration is for.

use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;

/// The longest duration that is accepted. Far above any use, and far below what would overflow
/// the clock when it is added to an instant.
pub const MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What a duration looks like, for error messages.
pub const EXPECTED: &str = "a duration such as \"500ms\", \"30s\", \"5m\" or \"1h30m\"";

/// Units from the largest to the smallest, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads whole numbers with units `d h m s ms`, each at most once and from large to small: `1h30m`.
/// A bare `0` is a duration too; any other bare number is refused, because its unit is a guess.
pub fn parse(text: &str) -> Result<Duration, String> {
    let refused = |why: &str| format!("{why} in {text:?}, expected {EXPECTED}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(format!("an empty string, expected {EXPECTED}"));
    }
    let mut rest = text;
    let mut smallest_allowed = 0;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (digits, after) = split_where(rest, |c| !c.is_ascii_digit());
        let (unit, after) = split_where(after, |c| c.is_ascii_digit());
        let count: u64 = match digits {
            "" => return Err(refused("a number is missing")),
            digits => digits.parse().map_err(|_| refused("a number is too large"))?,
        };
        if unit.is_empty() {
            return Err(refused("a unit is missing"));
        }
        let index = UNITS.iter().position(|(name, _)| *name == unit).ok_or_else(|| refused("an unknown unit"))?;
        if index < smallest_allowed {
            return Err(refused("units that do not go from large to small"));
        }
        smallest_allowed = index + 1;
        total_ms = count
            .checked_mul(UNITS[index].1)
            .and_then(|ms| total_ms.checked_add(ms))
            .ok_or_else(|| refused("a number is too large"))?;
        rest = after;
    }
    let total = Duration::from_millis(total_ms);
    if total > MAX {
        return Err(format!("{text:?} is too long, expected at most {}", format(MAX)));
    }
    Ok(total)
}

/// Writes a duration so that [`parse`] reads it back: the largest units first, `0s` for none.
/// Anything finer than a millisecond is dropped.
pub fn format(duration: Duration) -> String {
    let mut ms = duration.as_millis();
    if ms == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (name, unit_ms) in UNITS {
        let count = ms / u128::from(unit_ms);
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
            ms %= u128::from(unit_ms);
        }
    }
    text
}

fn split_where(text: &str, at: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(at).unwrap_or(text.len()))
}

/// For `#[serde(with = "duration")]`.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// For `#[serde(with = "duration")]`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = Duration;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(EXPECTED)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual_forms_are_read() {
        let cases = [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("90m", 5_400_000),
        ];
        for (text, ms) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_was_expected() {
        let long = "9".repeat(50) + "s";
        for bad in ["", "5", "m", "5 m", " 5m", "-5m", "1.5s", "5min", "5M", "30m1h", "1s1s", "5m3", "∞", &long] {
            let message = parse(bad).unwrap_err();
            assert!(message.contains("expected a duration"), "{bad}: {message}");
        }
        assert!(parse("366d").unwrap_err().contains("at most 365d"));
        assert!(parse("18446744073709551615d").unwrap_err().contains("too large"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ms in 0u64..=31_536_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,12}") {
            let _ = parse(&text);
        }
    }
}
