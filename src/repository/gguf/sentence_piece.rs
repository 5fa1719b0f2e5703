//! SentencePiece's byte pairs, as Llama 2 has them: words with a mark for their space, joined in the order of scores, and
//! bytes for what has no token.
//!
//! Source: Hugging Face's `convert_slow_tokenizer.py` for such models, whose merges are made from the scores as here.

use serde_json::{Value, json};

use super::tokenizer::Parts;
use super::vocabulary::{MOST, TOKENS, Vocabulary};
use crate::gguf::Metadata;

const SCORES: &str = "tokenizer.ggml.scores";
const PREFIX: &str = "tokenizer.ggml.add_space_prefix";
/// Stands for a space.
const MARK: &str = "\u{2581}";

pub(super) fn parts(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Parts, String> {
    let prefix = metadata.bool(PREFIX)?.unwrap_or(true);
    let marks = json!({ "type": "Replace", "pattern": { "String": " " }, "content": MARK });
    let before = json!({ "type": "Prepend", "prepend": MARK });
    let normalizers = if prefix { vec![before, marks] } else { vec![marks] };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": MARK }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    // The first, as SentencePiece has it, where the file does not say.
    let unknown = vocabulary.special("unk").or_else(|| vocabulary.iter().next().filter(|(id, _)| *id == 0));
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown.map(|(_, text)| text),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": (0..=u8::MAX).all(|byte| vocabulary.id(&format!("<0x{byte:02X}>")).is_some()),
        "ignore_merges": false,
        "vocab": vocabulary.json(),
        "merges": merges(&scores(metadata, vocabulary)?, vocabulary)?,
    });
    Ok(Parts {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model,
    })
}

fn scores(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Vec<f32>, String> {
    let numbers = metadata.numbers(SCORES)?.ok_or_else(|| format!("{SCORES} is missing"))?;
    if numbers.len() != vocabulary.len() {
        return Err(format!("{SCORES} has {} scores for {} tokens", numbers.len(), vocabulary.len()));
    }
    let scores = numbers.f32s().filter(|scores| !scores.iter().any(|score| score.is_nan()));
    scores.ok_or_else(|| format!("{SCORES}: expected numbers of f32"))
}

/// Every way to make a token of two others, the best token first; of one token those whose parts come first in the
/// vocabulary, longer parts before shorter ones.
fn merges(scores: &[f32], vocabulary: &Vocabulary<'_>) -> Result<Vec<[String; 2]>, String> {
    struct Merge<'a> {
        score: f32,
        parts: (&'a str, &'a str),
        /// In characters.
        lengths: (usize, usize),
    }
    let mut merges: Vec<Merge<'_>> = Vec::new();
    for (id, token) in vocabulary.iter() {
        let score = scores.get(id as usize).copied().unwrap_or_default();
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut own: Vec<_> = splits
            .filter_map(|(left, right)| Some(((vocabulary.id(left)?, vocabulary.id(right)?), (left, right))))
            .collect();
        if merges.len() + own.len() > MOST {
            return Err(format!("{TOKENS}: its tokens are made of each other in more than {MOST} ways"));
        }
        own.sort_by_key(|(ids, _)| *ids);
        merges.extend(own.into_iter().map(|(_, parts)| {
            let lengths = (parts.0.chars().count(), parts.1.chars().count());
            Merge { score, parts, lengths }
        }));
    }
    // Stable: what is equal stays in the order of the vocabulary.
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| b.lengths.cmp(&a.lengths)));
    Ok(merges.into_iter().map(|merge| [merge.parts.0, merge.parts.1].map(str::to_owned)).collect())
}
