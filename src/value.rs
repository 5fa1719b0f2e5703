//! What goes into a model and what comes out, as clients and golden files write it.
//!
//! A leaf: the one vocabulary that the HTTP dialects, the golden files and the processors share.
//! It must not know tensors, tokenizers or HTTP.

mod texts;

use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

pub use texts::Texts;
use texts::{First, rest};

/// What a model answers. Named as in `model.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    Embed,
    Classify,
    Rerank,
    Generate,
    ImageClassify,
}

impl Task {
    pub const ALL: [Task; 5] = [Task::Embed, Task::Classify, Task::Rerank, Task::Generate, Task::ImageClassify];

    pub fn name(self) -> &'static str {
        match self {
            Task::Embed => "embed",
            Task::Classify => "classify",
            Task::Rerank => "rerank",
            Task::Generate => "generate",
            Task::ImageClassify => "image-classify",
        }
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One input as the client gave it, before any model's processor has seen it.
///
/// It is kept until the request is answered: failover (promise 7) runs it again from here,
/// through the other generation's own tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RawInput {
    Text(String),
    /// Two texts judged together (reranking, pair classification). The first may be shared by many: a query of
    /// megabytes is held once for a thousand texts.
    Pair(Arc<str>, String),
    /// Token ids, taken literally (OpenAI embeddings allow them).
    Tokens(Vec<u32>),
    /// An encoded image file (PNG or JPEG).
    Image(Vec<u8>),
}

/// One answer, in the shape of the native dialect.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Output {
    Embedding {
        embedding: Vec<f32>,
    },
    Labels {
        labels: Vec<LabelScore>,
    },
    Score {
        score: f32,
    },
    /// Of a text that a model judged and did not write: the logarithms of its tokens' probabilities, and of those of the
    /// likeliest tokens in their places.
    Likelihood {
        logprobs: Vec<f32>,
        likeliest: Vec<f32>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelScore {
    pub label: String,
    pub score: f32,
}

impl RawInput {
    /// Of its texts or its file; token ids are few.
    pub fn bytes(&self) -> u64 {
        let bytes = match self {
            RawInput::Text(text) => text.len(),
            RawInput::Pair(a, b) => a.len() + b.len(),
            RawInput::Tokens(_) => 0,
            RawInput::Image(file) => file.len(),
        };
        bytes as u64
    }
}

impl<'de> Deserialize<'de> for RawInput {
    /// A string, a pair `["a", "b"]` or `{"text", "pair"}`, token ids `[1, 2]`, or `{"image": base64}`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AsInput)
    }
}

struct AsInput;

impl<'de> Visitor<'de> for AsInput {
    type Value = RawInput;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "an input: a string, a pair [\"a\", \"b\"], {\"text\", \"pair\"}, a list of token ids, or {\"image\": base64}",
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<RawInput, E> {
        Ok(RawInput::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<RawInput, E> {
        Ok(RawInput::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawInput, A::Error> {
        match list.next_element()? {
            None => Ok(RawInput::Tokens(Vec::new())),
            Some(First::Id(id)) => rest(id, list).map(RawInput::Tokens),
            Some(First::Ids(_)) => Err(de::Error::invalid_type(Unexpected::Seq, &self)),
            Some(First::Text(a)) => {
                let b: String = list.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                match list.next_element::<IgnoredAny>()? {
                    None => Ok(RawInput::Pair(a.into(), b)),
                    Some(_) => Err(de::Error::invalid_length(3, &self)),
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawInput, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Named {
            text: Option<String>,
            pair: Option<String>,
            image: Option<String>,
        }
        match Named::deserialize(MapAccessDeserializer::new(map))? {
            Named { text: Some(a), pair: Some(b), image: None } => Ok(RawInput::Pair(a.into(), b)),
            Named { text: Some(a), pair: None, image: None } => Ok(RawInput::Text(a)),
            Named { text: None, pair: None, image: Some(image) } => {
                Ok(RawInput::Image(decode_base64(&image).map_err(de::Error::custom)?))
            }
            Named { .. } => Err(de::Error::invalid_value(Unexpected::Map, &self)),
        }
    }
}

impl Serialize for RawInput {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            RawInput::Text(text) => serializer.serialize_str(text),
            RawInput::Pair(a, b) => [&**a, b].serialize(serializer),
            RawInput::Tokens(ids) => ids.serialize(serializer),
            RawInput::Image(bytes) => {
                use base64::Engine as _;
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("image", &base64::engine::general_purpose::STANDARD.encode(bytes))?;
                map.end()
            }
        }
    }
}

/// Decodes standard base64, with or without a `data:` prefix and padding.
fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let data = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(',').map(|(_, data)| data).unwrap_or(rest),
        None => text,
    };
    LENIENT.decode(data.trim()).map_err(|e| format!("image is not valid base64: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<RawInput, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn every_form_of_input_is_read() {
        assert_eq!(parse(r#""hi""#), Ok(RawInput::Text("hi".into())));
        assert_eq!(parse(r#"["a","b"]"#), Ok(RawInput::Pair("a".into(), "b".into())));
        assert_eq!(parse(r#"{"text":"a","pair":"b"}"#), Ok(RawInput::Pair("a".into(), "b".into())));
        assert_eq!(parse(r#"{"text":"a"}"#), Ok(RawInput::Text("a".into())));
        assert_eq!(parse("[1,2,3]"), Ok(RawInput::Tokens(vec![1, 2, 3])));
        assert_eq!(parse(r#"{"image":"aGk="}"#), Ok(RawInput::Image(b"hi".to_vec())));
        assert_eq!(parse(r#"{"image":"data:image/png;base64,aGk"}"#), Ok(RawInput::Image(b"hi".to_vec())));
    }

    #[test]
    fn other_forms_are_refused_with_what_was_expected() {
        for bad in ["1", "null", "{}", r#"{"image":"a","text":"b"}"#, r#"["a"]"#, r#"["a","b","c"]"#, "[[1]]"] {
            let message = parse(bad).unwrap_err();
            assert!(message.contains("expected an input: a string"), "{bad}: {message}");
        }
        for (bad, says) in [
            (r#"{"foo":1}"#, "unknown field `foo`, expected one of `text`, `pair`, `image`"),
            ("[-1]", "integer `-1`, expected a string, a token id"),
            (r#"["a",1]"#, "integer `1`, expected a string"),
            (r#"[1,"a"]"#, "string \"a\", expected u32"),
        ] {
            let message = parse(bad).unwrap_err();
            assert!(message.contains(says), "{bad}: {message}");
        }
        assert!(parse(r#"{"image":"%%"}"#).unwrap_err().contains("base64"));
    }
}
