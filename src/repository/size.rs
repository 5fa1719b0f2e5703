//! Whole numbers and sizes in bytes as people write them in configuration: `67108864`, `"64MiB"`, `"24 GB"`.
//!
//! A leaf of a leaf: a value in, a number out. It must not know what a size is for.

use serde::de::{self, Deserializer, Visitor};

/// What a size looks like, for error messages.
pub const EXPECTED: &str = "bytes as a whole number, or a size such as \"64MiB\" or \"24GB\"";

/// Decimal units (SI) and binary ones (IEC 80000-13), in bytes; however they are capitalised.
const UNITS: [(&str, u64); 9] = [
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Reads a whole number and its unit, with or without a space between them. A bare number as text is refused: whoever writes
/// quotation marks has a unit in mind.
pub fn parse(text: &str) -> Result<u64, String> {
    let refused = |why: &str| format!("{why} in {text:?}, expected {EXPECTED}");
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    if digits.is_empty() {
        return Err(refused("no whole number"));
    }
    if unit.is_empty() {
        return Err(refused("a unit is missing"));
    }
    let Some((_, each)) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
        return Err(refused("an unknown unit"));
    };
    let count: Option<u64> = digits.parse().ok();
    count.and_then(|count| count.checked_mul(*each)).ok_or_else(|| refused("a number is too large"))
}

/// A whole number, and with `sizes` one with a unit as well.
struct Number {
    sizes: bool,
}

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.sizes { EXPECTED } else { "a whole number" })
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
        number.try_into().map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        match self.sizes {
            true => parse(text).map_err(E::custom),
            false => Err(E::invalid_type(de::Unexpected::Str(text), &self)),
        }
    }
}

/// For `#[serde(deserialize_with = "…")]`: bytes, as a number or with a unit.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Number { sizes: true })
}

/// A whole number from 0 that counts something else than bytes.
pub fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Number { sizes: false })
}

/// The same for what is counted in memory.
pub fn whole_usize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    whole(deserializer).and_then(fits)
}

/// A number of bytes or things as `usize`, which holds fewer than `u64` on some machines.
pub fn fits<E: de::Error>(number: u64) -> Result<usize, E> {
    number.try_into().map_err(|_| E::custom(format!("{number} is too large for this machine")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual_forms_are_read() {
        let cases = [
            ("0B", 0),
            ("1GB", 1_000_000_000),
            ("24 GiB", 24 << 30),
            ("64MiB", 64 << 20),
            ("10mb", 10_000_000),
            ("512 KiB", 512 << 10),
            ("2TB", 2_000_000_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_was_expected() {
        for bad in
            ["", "5", "GB", "-5GB", "1.5GB", "5G", "5  GB", "5GB ", "99999999999999999999B", "18446744073709551615kB"]
        {
            let message = parse(bad).unwrap_err();
            assert!(message.contains("expected bytes as a whole number"), "{bad}: {message}");
        }
    }

    #[test]
    fn numbers_and_sizes_are_told_apart_by_what_is_counted() {
        #[derive(Debug, serde::Deserialize)]
        struct Both {
            #[serde(default, deserialize_with = "deserialize")]
            bytes: u64,
            #[serde(default, deserialize_with = "whole")]
            count: u64,
        }
        let read = |text: &str| toml::from_str::<Both>(text).map_err(|error| error.message().to_owned());
        let both = read("bytes = '1kB'\ncount = 3").unwrap();
        assert_eq!((both.bytes, both.count, read("bytes = 7").unwrap().bytes), (1000, 3, 7));
        for (text, says) in [
            ("count = '3'", "invalid type: string \"3\", expected a whole number"),
            ("count = -3", "invalid value: integer `-3`, expected a whole number"),
            ("count = 1.5", "invalid type: floating point `1.5`, expected a whole number"),
            ("bytes = true", "expected bytes as a whole number, or a size such as"),
            ("bytes = '1 elephant'", "an unknown unit in \"1 elephant\""),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(says), "{text}: {told}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,12}") {
            let _ = parse(&text);
        }
    }
}
