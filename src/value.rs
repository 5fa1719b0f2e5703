//! What goes into a model and what comes out, as clients and golden files write it.
//!
//! A leaf: the one vocabulary that the HTTP dialects, the golden files and the processors share.
//! It must not know tensors, tokenizers or HTTP.

use std::sync::Arc;

use serde::de::{self, Deserializer};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

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
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Wire {
            Text(String),
            Pair([String; 2]),
            Tokens(Vec<u32>),
            Named(Named),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Named {
            text: Option<String>,
            pair: Option<String>,
            image: Option<String>,
        }
        const EXPECTED: &str = "an input is a string, a pair [\"a\", \"b\"], {\"text\", \"pair\"}, a list of token ids, or {\"image\": base64}";
        let wire = Wire::deserialize(deserializer).map_err(|error: D::Error| {
            // Broken or bottomless JSON is told as such, the rest in words of inputs and not of this type.
            let text = error.to_string();
            if text.starts_with("data did not match") { de::Error::custom(EXPECTED) } else { error }
        })?;
        Ok(match wire {
            Wire::Text(text) => RawInput::Text(text),
            Wire::Pair([a, b]) => RawInput::Pair(a.into(), b),
            Wire::Tokens(ids) => RawInput::Tokens(ids),
            Wire::Named(Named { text: Some(a), pair: Some(b), image: None }) => RawInput::Pair(a.into(), b),
            Wire::Named(Named { text: Some(a), pair: None, image: None }) => RawInput::Text(a),
            Wire::Named(Named { text: None, pair: None, image: Some(image) }) => {
                RawInput::Image(decode_base64(&image).map_err(de::Error::custom)?)
            }
            Wire::Named(_) => return Err(de::Error::custom(EXPECTED)),
        })
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
        for bad in ["1", "null", "{}", r#"{"image":"a","text":"b"}"#, r#"{"foo":1}"#, "[-1]", r#"["a"]"#] {
            let message = parse(bad).unwrap_err();
            assert!(message.contains("an input is"), "{bad}: {message}");
        }
        assert!(parse(r#"{"image":"%%"}"#).unwrap_err().contains("base64"));
    }
}
