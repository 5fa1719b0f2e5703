//! `tokenizer.json` and `tokenizer_config.json` from the keys `tokenizer.*`, as llama.cpp reads them (`llama-vocab.cpp`).

use std::path::Path;

use serde_json::{Map, Value, json};

use super::vocabulary::Vocabulary;
use super::{byte_level, sentence_piece};
use crate::gguf::{self, Metadata, shown};

const MODEL: &str = "tokenizer.ggml.model";
const TEMPLATE: &str = "tokenizer.chat_template";

/// What two files of Hugging Face's layout would hold.
#[derive(Debug, Clone)]
pub struct TokenizerFiles {
    /// `tokenizer.json`
    pub tokenizer: Value,
    /// `tokenizer_config.json`: special tokens, whether a text begins with one, and the chat template where there is one.
    pub config: Value,
}

impl TokenizerFiles {
    /// From a file.
    ///
    /// Errors say what is wrong, without the file's name: what [`gguf::open`] refuses, a kind of tokenizer or
    /// pre-tokenizer that is not read (by its name), keys that are missing or of another type, tokens that are there twice
    /// or of no known type, scores and types that are not as many as tokens, merges of what is no token, and ids outside
    /// the vocabulary.
    pub fn read(path: &Path) -> Result<TokenizerFiles, String> {
        Self::of(&gguf::open(path)?.metadata)
    }

    /// From metadata.
    pub fn of(metadata: &Metadata) -> Result<TokenizerFiles, String> {
        let kind = metadata.str(MODEL)?.ok_or_else(|| format!("{MODEL} is missing"))?;
        let vocabulary = Vocabulary::read(metadata)?;
        let (parts, adds_bos) = match kind {
            "gpt2" => byte_level::parts(metadata, &vocabulary)?,
            "llama" => (sentence_piece::parts(metadata, &vocabulary)?, true),
            other => return Err(format!("{MODEL}: {} is not read; gpt2 and llama are", shown(other))),
        };
        let adds = |name: &str, usual: bool| {
            let wanted = metadata.bool(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(usual);
            // As llama.cpp: what is not there is not added.
            Ok::<_, String>(wanted && vocabulary.special(name).is_some())
        };
        let (bos, eos) = (adds("bos", adds_bos)?, adds("eos", false)?);
        let ends = [("bos", bos), ("eos", eos)].map(|(name, added)| vocabulary.special(name).filter(|_| added));
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": vocabulary.added(),
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": post_processor(ends),
            "decoder": parts.decoder,
            "model": parts.model,
        });
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        config.insert("add_bos_token".into(), json!(bos));
        config.insert("add_eos_token".into(), json!(eos));
        for name in ["bos", "eos", "unk", "pad"] {
            if let Some((_, text)) = vocabulary.special(name) {
                config.insert(format!("{name}_token"), json!(text));
            }
        }
        if let Some(template) = metadata.str(TEMPLATE)? {
            config.insert("chat_template".into(), json!(template));
        }
        Ok(TokenizerFiles { tokenizer, config: Value::Object(config) })
    }
}

/// What differs between the kinds of tokenizers.
pub(super) struct Parts {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    pub(super) model: Value,
}

/// Puts special tokens (id and text) before and after each text.
fn post_processor([before, after]: [Option<(u32, &str)>; 2]) -> Value {
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let token = |text: &str, kind: u32| json!({ "SpecialToken": { "id": text, "type_id": kind } });
    let around = |name: &str, kind: u32| {
        let text = json!({ "Sequence": { "id": name, "type_id": kind } });
        let [before, after] = [before, after].map(|special| special.map(|(_, text)| token(text, kind)));
        before.into_iter().chain([text]).chain(after).collect::<Vec<_>>()
    };
    let special: Map<String, Value> = [before, after]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": special,
    })
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
