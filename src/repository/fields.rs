//! Values of configuration files that have a range: deserialized with an error that says what was expected.

use std::time::Duration;

use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer as _, Visitor};
use serde::{Deserialize, Serializer};

use super::{duration, name, size};

/// A name from a fixed list. TOML would also take an enum as a table; here it is a string or an error.
pub(super) fn one_of<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

pub(super) fn some_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.trim().is_empty() {
        return Err(D::Error::custom("an empty string, expected a name"));
    }
    Ok(Some(text))
}

pub(super) fn some_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    name::check(&text).map_err(|why| D::Error::custom(format!("{why}, expected the name of a version folder")))?;
    Ok(Some(text))
}

pub(super) fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    at_least_one_u64(deserializer).and_then(size::fits)
}

pub(super) fn at_least_one_u64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    some_of(size::whole(deserializer)?)
}

/// Bytes, with a unit where one is wanted.
pub(super) fn at_least_one_byte<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    some_of(size::deserialize(deserializer)?)
}

pub(super) fn at_least_one_byte_usize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    at_least_one_byte(deserializer).and_then(size::fits)
}

fn some_of<E: serde::de::Error>(number: u64) -> Result<u64, E> {
    match number {
        0 => Err(E::custom("0, expected a whole number of at least 1")),
        number => Ok(number),
    }
}

pub(super) fn some_at_least_one_u64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    at_least_one_u64(deserializer).map(Some)
}

pub(super) fn some_at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    at_least_one(deserializer).map(Some)
}

pub(super) fn some_longer_than_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    longer_than_zero(deserializer).map(Some).map_err(D::Error::custom)
}

pub(super) fn write_some_duration<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(time) => duration::serialize(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// A number, whole or not; the library's own message names a type of this program's.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    struct Number;
    impl Visitor<'_> for Number {
        type Value = f64;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a number")
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<f64, E> {
            Ok(number as f64)
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<f64, E> {
            Ok(number as f64)
        }

        fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<f64, E> {
            Ok(number)
        }
    }
    deserializer.deserialize_any(Number)
}

pub(super) fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = number(deserializer)?;
    // `contains` is false for NaN, which TOML can spell
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(D::Error::custom(format!("{value}, expected a share from 0.0 to 1.0")))
    }
}

pub(super) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = number(deserializer)?;
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(D::Error::custom(format!("{value}, expected a finite number above 0")))
    }
}

pub(super) fn some_positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    positive(deserializer).map(Some)
}

pub(super) fn positive_f32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    let value = positive(deserializer)? as f32;
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(D::Error::custom(format!("{value}, expected a number above 0 that a 32-bit float can hold")))
    }
}

pub(super) fn longer_than_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    match duration::deserialize(deserializer)? {
        Duration::ZERO => Err(D::Error::custom("a duration of zero, expected a longer one")),
        duration => Ok(duration),
    }
}
