//! Texts, or texts as token ids, one or several: read as what their first value is.
//!
//! Nothing is held untyped on the way. Serde's `untagged` would hold whatever comes, 32 bytes for each number of two, before it
//! is looked at.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Unexpected, Visitor};

/// What a request is about, in dialects that take token ids in a text's place.
#[derive(Debug, PartialEq, Eq)]
pub enum Texts {
    One(String),
    Many(Vec<String>),
    Ids(Vec<u32>),
    ManyIds(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsTexts;
        impl<'de> Visitor<'de> for AsTexts {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of strings, a list of token ids, or a list of such lists")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts::One(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Texts, E> {
                Ok(Texts::One(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                Ok(match list.next_element()? {
                    None => Texts::Many(Vec::new()),
                    Some(First::Text(text)) => Texts::Many(rest(text, list)?),
                    Some(First::Id(id)) => Texts::Ids(rest(id, list)?),
                    Some(First::Ids(ids)) => Texts::ManyIds(rest(ids, list)?),
                })
            }
        }
        deserializer.deserialize_any(AsTexts)
    }
}

/// What a list begins with: by that it is known what the rest of it must be.
pub(super) enum First {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsFirst;
        impl<'de> Visitor<'de> for AsFirst {
            type Value = First;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id, or a list of token ids")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<First, E> {
                Ok(First::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<First, E> {
                Ok(First::Text(text))
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<First, E> {
                let wrong = |_| E::invalid_value(Unexpected::Unsigned(id), &self);
                u32::try_from(id).map(First::Id).map_err(wrong)
            }

            fn visit_i64<E: de::Error>(self, id: i64) -> Result<First, E> {
                let wrong = |_| E::invalid_value(Unexpected::Signed(id), &self);
                u32::try_from(id).map(First::Id).map_err(wrong)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First, A::Error> {
                match list.next_element()? {
                    None => Ok(First::Ids(Vec::new())),
                    Some(id) => rest(id, list).map(First::Ids),
                }
            }
        }
        deserializer.deserialize_any(AsFirst)
    }
}

/// A list whose first element was read.
pub(super) fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut list: A) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = list.next_element()? {
        all.push(next);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Texts, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn every_form_is_read_from_text_and_from_values() {
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        for (json, texts) in [
            (r#""a""#, Texts::One("a".into())),
            (r#""\u0061\n""#, Texts::One("a\n".into())),
            ("[]", Texts::Many(vec![])),
            (r#"["a", "b"]"#, Texts::Many(strings(&["a", "b"]))),
            ("[1, 4294967295]", Texts::Ids(vec![1, u32::MAX])),
            ("[[], [1, 2]]", Texts::ManyIds(vec![vec![], vec![1, 2]])),
        ] {
            assert_eq!(parse(json).unwrap(), texts);
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::from_value::<Texts>(value).unwrap(), texts);
        }
    }

    #[test]
    fn what_is_neither_or_mixed_is_told_as_what_it_is() {
        for (json, says) in [
            ("7", "integer `7`, expected a string, a list of strings, a list of token ids, or a list of such lists"),
            ("null", "null, expected a string"),
            (r#"{"a": 1}"#, "map, expected a string"),
            ("[null]", "null, expected a string, a token id"),
            ("[-1]", "integer `-1`, expected a string, a token id"),
            ("[4294967296]", "integer `4294967296`, expected a string, a token id"),
            ("[1.5]", "floating point `1.5`, expected a string, a token id"),
            (r#"["a", 1]"#, "integer `1`, expected a string"),
            (r#"[1, "a"]"#, "string \"a\", expected u32"),
            (r#"["a", [1]]"#, "sequence, expected a string"),
            ("[[1], 2]", "integer `2`, expected a sequence"),
            ("[[[1]]]", "sequence, expected u32"),
            ("[1, 2", "EOF while parsing"),
        ] {
            let message = parse(json).unwrap_err();
            assert!(message.contains(says), "{json}: {message}");
        }
    }
}
