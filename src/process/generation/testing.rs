//! Tokenizers of every sort that generative models have, small enough to be written here.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// Byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM2.
    Bytes,
    /// SentencePiece with byte fallback, a space before every text: Llama 2 and Mistral as they were converted at first.
    Llama,
    /// The same by `Metaspace`, with a space before the first text only: as they are converted now.
    Llama4,
    /// Without any space before: Gemma.
    Gemma,
    /// Unigram: what T5 and XLM-R have.
    Unigram,
}

impl Sort {
    pub(super) const ALL: [Sort; 5] = [Sort::Bytes, Sort::Llama, Sort::Llama4, Sort::Gemma, Sort::Unigram];
}

/// Ids 0 to 2 are `<unk>`, `<s>` and `</s>`; the others' places differ.
pub(super) fn tokenizer(sort: Sort) -> Tokenizer {
    serde_json::from_value(description(sort)).unwrap()
}

fn description(sort: Sort) -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let letters = match sort {
        Sort::Bytes => {
            let mut letters: Vec<char> = ByteLevel::alphabet().into_iter().collect();
            letters.sort_unstable();
            letters
        }
        _ => {
            tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
            "▁abcdehlorw_<>|/s.é".chars().collect()
        }
    };
    tokens.extend(letters.into_iter().map(String::from));
    let space = if sort == Sort::Bytes { "Ġ" } else { "▁" };
    let merges = [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], [space, "w"], [space, space]]
        .map(|m| m.map(str::to_owned));
    tokens.extend(merges.iter().map(|[a, b]| format!("{a}{b}")));
    let special = |token: &str, special: bool, normalized: bool, lstrip: bool| json!({"content": token, "single_word": false, "lstrip": lstrip, "rstrip": false, "normalized": normalized, "special": special});
    let mut added = Vec::new();
    for (content, description) in [
        ("<unk>", special("<unk>", true, false, false)),
        ("<s>", special("<s>", true, false, false)),
        ("</s>", special("</s>", true, true, false)),
        ("<|im_start|>", special("<|im_start|>", true, false, false)),
        ("<|im_end|>", special("<|im_end|>", true, false, false)),
        ("<mask>", special("<mask>", true, false, true)),
        ("<think>", special("<think>", false, false, false)),
    ] {
        let known = tokens.iter().position(|token| token == content);
        let id = known.unwrap_or_else(|| {
            tokens.push(content.to_owned());
            tokens.len() - 1
        });
        let mut entry = description;
        entry["id"] = json!(id);
        added.push(entry);
    }
    let vocabulary: Map<String, Value> = tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
    let bpe = json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": sort != Sort::Bytes, "ignore_merges": false,
        "vocab": vocabulary, "merges": merges,
    });
    let scores: Vec<Value> = tokens.iter().enumerate().map(|(id, t)| json!([t, -(id as f64)])).collect();
    let unigram = json!({"type": "Unigram", "unk_id": 0, "vocab": scores, "byte_fallback": true});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": scheme == "always"});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let unspace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let respace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let [fallback, fuse] = ["ByteFallback", "Fuse"].map(|kind| json!({"type": kind}));
    let normalizer = match sort {
        Sort::Llama => {
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, respace]})
        }
        Sort::Gemma => respace,
        Sort::Bytes | Sort::Llama4 | Sort::Unigram => Value::Null,
    };
    let pre_tokenizer = match sort {
        Sort::Bytes => byte_level.clone(),
        Sort::Llama4 => metaspace("first"),
        Sort::Unigram => metaspace("always"),
        Sort::Llama | Sort::Gemma => Value::Null,
    };
    let decoder = match sort {
        Sort::Bytes => byte_level,
        Sort::Llama | Sort::Llama4 => {
            json!({"type": "Sequence", "decoders": [unspace, fallback, fuse, strip]})
        }
        Sort::Gemma => json!({"type": "Sequence", "decoders": [unspace, fallback, fuse]}),
        Sort::Unigram => json!({"type": "Sequence", "decoders": [fallback, metaspace("always")]}),
    };
    let post_processor = match sort {
        Sort::Llama | Sort::Llama4 => json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        }),
        Sort::Bytes | Sort::Gemma | Sort::Unigram => Value::Null,
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder,
        "model": if sort == Sort::Unigram { unigram } else { bpe },
    })
}
