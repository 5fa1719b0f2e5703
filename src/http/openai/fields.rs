//! Fields of requests that write whose values have a form of their own: read without holding what they may not be.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};

/// Tokens of one `logit_bias`: each is looked up for every token that is written.
const MOST_BIASES: usize = 1024;

/// `logit_bias`, by the spellings of token ids.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::http) struct Biases(Vec<(String, f32)>);

impl Biases {
    /// # Errors
    /// `BadRequest` for what is no token id, or one that is there twice.
    pub(super) fn by_token(&self) -> Result<Arc<[(u32, f32)]>> {
        let one = |(spelled, bias): &(String, f32)| {
            // As `to_string` spells them: two spellings would be two biases of one token.
            let id = spelled.parse().ok().filter(|id: &u32| id.to_string() == *spelled);
            let wrong = || Error::bad_param("logit_bias", format!("logit_bias has {spelled:?} for a token id"));
            Ok((id.ok_or_else(wrong)?, *bias))
        };
        let mut biases = self.0.iter().map(one).collect::<Result<Vec<_>>>()?;
        biases.sort_unstable_by_key(|(id, _)| *id);
        match biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(Error::bad_param("logit_bias", format!("logit_bias has the token {} twice", pair[0].0))),
            None => Ok(biases.into()),
        }
    }
}

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsBiases;
        impl<'de> Visitor<'de> for AsBiases {
            type Value = Biases;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {MOST_BIASES} token ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Biases, A::Error> {
                let mut biases = Vec::new();
                while let Some(bias) = map.next_entry()? {
                    if biases.len() == MOST_BIASES {
                        return Err(de::Error::custom(format!("more than {MOST_BIASES} token ids")));
                    }
                    biases.push(bias);
                }
                Ok(Biases(biases))
            }
        }
        deserializer.deserialize_map(AsBiases)
    }
}

/// Texts at which an answer ends: one, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http) struct Stop(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsStop;
        impl<'de> Visitor<'de> for AsStop {
            type Value = Stop;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Stop, E> {
                Ok(Stop(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Stop, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Stop(texts))
            }
        }
        deserializer.deserialize_any(AsStop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn biases(json: &str) -> Result<Vec<(u32, f32)>, String> {
        let biases: Biases = serde_json::from_str(json).map_err(|error| error.to_string())?;
        biases.by_token().map(|all| all.to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn biases_are_of_token_ids_in_one_spelling_and_once_each() {
        assert_eq!(biases(r#"{"50256": -100, "0": 1.5}"#).unwrap(), [(0, 1.5), (50256, -100.0)]);
        assert_eq!(biases("{}").unwrap(), []);
        for spelled in ["05", "+5", " 5", "5 ", "-1", "0x5", "", "x", "4294967296", "5.0"] {
            let message = biases(&format!(r#"{{"{spelled}": 1}}"#)).unwrap_err();
            assert!(message.contains(&format!("logit_bias has {spelled:?} for a token id")), "{message}");
        }
        assert_eq!(biases(r#"{"5": 1, "7": 2, "5": 1}"#).unwrap_err(), "logit_bias has the token 5 twice");
        for (json, says) in [(r#"{"5": "x"}"#, "expected f32"), ("[1]", "expected an object of at most 1024 token ids")]
        {
            let message = biases(json).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn biases_are_bounded() {
        let many = |count: usize| {
            let all: Vec<String> = (0..count).map(|id| format!("\"{id}\": 1")).collect();
            biases(&format!("{{{}}}", all.join(",")))
        };
        assert_eq!(many(MOST_BIASES).unwrap().len(), MOST_BIASES);
        assert!(many(MOST_BIASES + 1).unwrap_err().contains("more than 1024 token ids"));
    }

    #[test]
    fn a_stop_is_one_text_or_several() {
        let stop = |json: &str| serde_json::from_str::<Stop>(json).map_err(|error| error.to_string());
        assert_eq!(stop(r#""a""#).unwrap(), Stop(vec!["a".into()]));
        assert_eq!(stop(r#"["a", "b"]"#).unwrap(), Stop(vec!["a".into(), "b".into()]));
        assert_eq!(stop("[]").unwrap(), Stop(vec![]));
        for bad in ["7", r#"["a", 7]"#, "{}", "null"] {
            assert!(stop(bad).unwrap_err().contains("expected a string"), "{bad}");
        }
    }
}
