//! Byte pairs in the manner of GPT-2: bytes written as printable characters, cut before they are merged by a pre-tokenizer
//! that the file names.
//!
//! Sources: the names and expressions in `llama-vocab.cpp` of llama.cpp, and Hugging Face's `tokenizer.json` of the models
//! that the names come from, which say the same.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::tokenizer::Parts;
use super::vocabulary::{MOST, Vocabulary};
use crate::gguf::{Metadata, shown};

const PRE: &str = "tokenizer.ggml.pre";
const MERGES: &str = "tokenizer.ggml.merges";

/// Words with their space, numbers, and runs of anything else; contractions are cut off.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// As GPT-4's: a word may have any one character before it, and lines end where they end. Up to three digits together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with each digit by itself.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's own for files that name none: each cuts what the one before left.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// How texts are cut and what goes with it.
struct Pre {
    /// One after the other.
    cuts: &'static [&'static str],
    nfc: bool,
    /// A whole piece that is a token is that token, whatever its merges would make of it.
    ignore_merges: bool,
    /// A text begins with a special token where the file does not say.
    adds_bos: bool,
}

impl Pre {
    fn named(name: &str) -> Option<Pre> {
        let plain = Pre { cuts: &[GPT2], nfc: false, ignore_merges: false, adds_bos: false };
        Some(match name {
            "default" => Pre { cuts: &DEFAULT, ..plain },
            "gpt-2" => plain,
            "smollm" | "starcoder" | "refact" | "command-r" => Pre { cuts: &[r"\p{N}", GPT2], ..plain },
            "llama-bpe" | "llama3" | "llama-v3" => {
                Pre { cuts: &[LLAMA3], ignore_merges: true, adds_bos: true, ..plain }
            }
            "qwen2" | "deepseek-r1-qwen" => Pre { cuts: &[QWEN2], nfc: true, ..plain },
            _ => return None,
        })
    }

    fn json(&self) -> Value {
        let cut = |expression: &&str| json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false });
        let mut steps: Vec<Value> = self.cuts.iter().map(cut).collect();
        steps.push(bytes());
        json!({ "type": "Sequence", "pretokenizers": steps })
    }
}

/// Bytes to characters, and back.
fn bytes() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false })
}

/// Also whether a text begins with a special token where the file does not say.
pub(super) fn parts(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<(Parts, bool), String> {
    let name = metadata.str(PRE)?.unwrap_or("default");
    let pre = Pre::named(name).ok_or_else(|| {
        format!(
            "{PRE}: the pre-tokenizer {} is not known; default, gpt-2, smollm, llama-bpe and qwen2 are",
            shown(name)
        )
    })?;
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": pre.ignore_merges,
        "vocab": vocabulary.json(),
        "merges": merges(metadata, vocabulary)?,
    });
    let normalizer = if pre.nfc { json!({ "type": "NFC" }) } else { Value::Null };
    Ok((Parts { normalizer, pre_tokenizer: pre.json(), decoder: bytes(), model }, pre.adds_bos))
}

/// Two tokens with a space between them, the first of two equal ones counting; together they must be a token.
fn merges(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Vec<[String; 2]>, String> {
    let lines = metadata.strings(MERGES)?.ok_or_else(|| format!("{MERGES} is missing"))?;
    if lines.len() > MOST {
        return Err(format!("{MERGES} has {} pairs, the limit is {MOST}", lines.len()));
    }
    let (mut merges, mut seen) = (Vec::with_capacity(lines.len()), HashSet::new());
    for line in lines.iter().filter(|line| seen.insert(*line)) {
        let wrong = |why: &str| format!("{MERGES}: {} {why}", shown(line));
        // A token may begin with a space, as llama.cpp has it.
        let first = line.chars().next().map_or(0, char::len_utf8);
        let space = line.get(first..).and_then(|rest| rest.find(' ')).map(|at| first + at);
        let (left, right) = space.map(|at| (&line[..at], &line[at + 1..])).ok_or_else(|| wrong("is no pair"))?;
        let whole = [left, right].concat();
        if [left, right, &whole].iter().any(|token| vocabulary.id(token).is_none()) {
            return Err(wrong("is not of tokens, or makes none"));
        }
        merges.push([left.to_owned(), right.to_owned()]);
    }
    Ok(merges)
}
