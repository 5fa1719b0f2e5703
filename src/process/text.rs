//! Texts to token ids, as Hugging Face's fast tokenizers and sentence-transformers make them.
//!
//! `tokenizer.json` decides how a text is cut into ids. What it says about padding and truncation is ignored: batches
//! are packed, never padded, and the length is the model's (all-MiniLM-L6-v2 asks for 128 there, and means 256).
//! Texts are truncated here rather than by the library, which keeps every cut-off piece, and for a long pair the
//! product of them.

use std::borrow::Cow;

use serde_json::Value;
use tokenizers::{Encoding, ModelWrapper, PostProcessor, Token, Tokenizer};

use crate::error::{Error, Result};
use crate::model::{Input, Tokens};
use crate::process::PrepareOptions;
use crate::process::ascii::AsciiWords;
use crate::process::settings::{Settings, label};
use crate::repository::{Limits, Spec};
use crate::value::Task;

/// A `model_max_length` from here on is Hugging Face's way of writing "none".
const NO_MAXIMUM: f64 = 1e9;

#[derive(Debug)]
pub(super) struct TextProcessor {
    /// Neither pads nor truncates.
    tokenizer: Tokenizer,
    /// Where it has one.
    short_way: Option<AsciiWords>,
    /// How many special tokens a text and a pair get.
    special: [usize; 2],
    max_tokens: usize,
    max_bytes: usize,
    vocab_size: usize,
    /// Models with one token type have no use for the second: all ids are zero.
    one_type: bool,
    keep: Keep,
    /// sentence-transformers trims texts, and lowers their case where it is told to.
    trim: bool,
    lowercase: bool,
}

/// Which end of a text survives truncation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Start,
    End,
}

impl TextProcessor {
    pub(super) fn load(spec: &Spec, limits: &Limits) -> Result<TextProcessor> {
        let none = Value::Object(serde_json::Map::new());
        const CONFIG: &str = "tokenizer_config.json";
        let json = spec.read_file(CONFIG)?.map(|bytes| parse(spec, CONFIG, &bytes)).transpose()?;
        let config = Settings::new(spec, CONFIG, json.as_ref().unwrap_or(&none));
        let tokenizer = read_tokenizer(spec, &config)?;
        let special = [false, true].map(|pair| tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(pair)));
        let processor = TextProcessor {
            short_way: AsciiWords::of(&tokenizer),
            special,
            max_tokens: max_tokens(spec, &config, limits)?,
            max_bytes: limits.max_text_bytes,
            vocab_size: Settings::config(spec).usize("vocab_size")?.ok_or_else(|| no_vocab_size(spec))?,
            one_type: type_vocab_size(spec)? == 1,
            keep: keep(&config)?,
            trim: spec.task == Task::Embed,
            lowercase: spec.embedding.as_ref().is_some_and(|e| e.do_lower_case),
            tokenizer,
        };
        processor.check(spec)?;
        Ok(processor)
    }

    pub(super) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How texts are cut, and how many tokens there are.
    pub(super) fn kind(&self) -> (&'static str, usize) {
        kind_of(&self.tokenizer)
    }

    pub(super) fn single(&self, text: &str, options: &PrepareOptions) -> Result<Input> {
        self.assemble(self.encode(text)?, None, options)
    }

    pub(super) fn pair(&self, a: &str, b: &str, options: &PrepareOptions) -> Result<Input> {
        self.assemble(self.encode(a)?, Some(self.encode(b)?), options)
    }

    /// Ids that the client made itself: taken as they are, no special tokens added.
    pub(super) fn literal(&self, ids: &[u32], options: &PrepareOptions) -> Result<Input> {
        self.check_length(ids.len(), options)?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            let message = format!("token id {id} is not in the vocabulary of {}", self.vocab_size);
            return Err(Error::bad_request(message));
        }
        let kept = &ids[self.kept(ids.len(), self.max_tokens.min(ids.len()))];
        not_empty(Tokens { ids: kept.to_vec(), type_ids: vec![0; kept.len()] })
    }

    /// The ids of one text, without special tokens.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() > self.max_bytes {
            let (got, limit) = (text.len() as u64, self.max_bytes as u64);
            return Err(Error::TooLarge { what: "text in bytes", got, limit });
        }
        let text = if self.trim { trim(text) } else { text };
        let text = if self.lowercase { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) };
        let short = self.short_way.as_ref().and_then(|way| way.encode(&self.tokenizer, &text));
        let ids = short.unwrap_or_else(|| Ok(self.tokenizer.encode_fast(&*text, false)?.get_ids().to_vec()));
        ids.map_err(|e| Error::bad_request(format!("the text cannot be tokenized: {e}")))
    }

    /// Truncates, then adds the special tokens and the token types.
    fn assemble(&self, a: Vec<u32>, b: Option<Vec<u32>>, options: &PrepareOptions) -> Result<Input> {
        let special = self.special[usize::from(b.is_some())];
        let (n1, n2) = (a.len(), b.as_ref().map_or(0, Vec::len));
        self.check_length(n1 + n2 + special, options)?;
        let (k1, k2) = longest_first(n1, n2, self.max_tokens.saturating_sub(special));
        let a = encoding(&a[self.kept(n1, k1)], 0);
        let b = b.map(|b| encoding(&b[self.kept(n2, k2)], 1));
        let whole = self
            .tokenizer
            .post_process(a, b, true)
            .map_err(|e| Error::internal(format!("special tokens cannot be added: {e}")))?;
        let ids = whole.get_ids().to_vec();
        let type_ids = if self.one_type { vec![0; ids.len()] } else { whole.get_type_ids().to_vec() };
        not_empty(Tokens { ids, type_ids })
    }

    /// The part of `len` tokens that stays when `keep` of them do.
    fn kept(&self, len: usize, keep: usize) -> std::ops::Range<usize> {
        match self.keep {
            Keep::Start => 0..keep,
            Keep::End => len - keep..len,
        }
    }

    fn check_length(&self, tokens: usize, options: &PrepareOptions) -> Result<()> {
        if options.truncate || tokens <= self.max_tokens {
            return Ok(());
        }
        let max = self.max_tokens;
        let message = format!("the input is {tokens} tokens long, this version takes {max}");
        Err(Error::ContextExceeded { message, param: None })
    }

    /// What could fail on the first request must fail at load.
    fn check(&self, spec: &Spec) -> Result<()> {
        let file = label(spec, "tokenizer.json");
        let pairs = matches!(spec.task, Task::Rerank | Task::Classify);
        let special = self.special[usize::from(pairs)];
        if self.max_tokens <= special {
            let reason =
                format!("inputs of at most {} tokens leave no room beside {special} special tokens", self.max_tokens);
            return Err(Error::unloadable(file, reason));
        }
        let largest = self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= self.vocab_size {
            let reason = format!(
                "its largest token id is {largest}, but the model's vocab_size is {}: it belongs to another model",
                self.vocab_size
            );
            return Err(Error::unloadable(file, reason));
        }
        let types = type_vocab_size(spec)?;
        let mut probes = vec![self.single("a", &PrepareOptions::default())];
        if pairs {
            probes.push(self.pair("a", "b", &PrepareOptions::default()));
        }
        for probe in probes {
            let Input::Tokens(tokens) = probe.map_err(|e| Error::unloadable(&file, e))? else { continue };
            let id = tokens.ids.iter().max().map_or(0, |id| *id as usize);
            let kind = tokens.type_ids.iter().max().map_or(0, |kind| *kind as usize);
            if id >= self.vocab_size || kind >= types {
                let reason =
                    format!("it makes token id {id} and type {kind}, the model has {} and {types}", self.vocab_size);
                return Err(Error::unloadable(file, reason));
            }
        }
        Ok(())
    }
}

/// How texts are cut, and how many tokens there are.
pub(super) fn kind_of(tokenizer: &Tokenizer) -> (&'static str, usize) {
    let kind = match tokenizer.get_model() {
        ModelWrapper::BPE(_) => "BPE",
        ModelWrapper::WordPiece(_) => "WordPiece",
        ModelWrapper::WordLevel(_) => "WordLevel",
        ModelWrapper::Unigram(_) => "Unigram",
    };
    (kind, tokenizer.get_vocab_size(true))
}

fn not_empty(tokens: Tokens) -> Result<Input> {
    if tokens.is_empty() { Err(Error::bad_request("the input has no tokens")) } else { Ok(Input::Tokens(tokens)) }
}

/// Ids dressed for the post-processor, which looks at nothing else.
fn encoding(ids: &[u32], type_id: u32) -> Encoding {
    Encoding::from_tokens(ids.iter().map(|id| Token::new(*id, String::new(), (0, 0))).collect(), type_id)
}

/// How many tokens of two texts stay, if `budget` may: the longer text loses first, then both alike, and the second
/// gets the odd one. (`TruncationStrategy::LongestFirst` of the tokenizers library, which transformers uses.)
fn longest_first(n1: usize, n2: usize, budget: usize) -> (usize, usize) {
    if n1 + n2 <= budget {
        return (n1, n2);
    }
    let (short, half) = (n1.min(n2), budget / 2);
    let (kept_short, kept_long) = if 2 * short > budget { (half, half + budget % 2) } else { (short, budget - short) };
    if n1 > n2 { (kept_long, kept_short) } else { (kept_short, kept_long) }
}

/// Python's `str.strip`, which also takes the four separators U+001C to U+001F for white space.
fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

pub(super) fn parse(spec: &Spec, name: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::unloadable(label(spec, name), e))
}

pub(super) fn read_tokenizer(spec: &Spec, config: &Settings) -> Result<Tokenizer> {
    const NAME: &str = "tokenizer.json";
    let wrong = |e: tokenizers::Error| Error::unloadable(label(spec, NAME), e);
    let Some(mut bytes) = spec.read_file(NAME)? else {
        return Err(Error::unloadable(label(spec, NAME), "missing; a model of texts needs its tokenizer"));
    };
    let mut json = parse(spec, NAME, &bytes)?;
    if apply_overrides(&mut json, config)? {
        bytes = serde_json::to_vec(&json).map_err(|e| wrong(e.into()))?;
    }
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(wrong)?;
    tokenizer.with_padding(None).with_truncation(None).map_err(wrong)?;
    Ok(tokenizer)
}

/// transformers lets a few settings of `tokenizer_config.json` overrule `tokenizer.json`, for the tokenizer classes
/// that know them. Only what the file states is applied, not the defaults of the Python classes. Tells whether anything
/// changed.
fn apply_overrides(json: &mut Value, config: &Settings) -> Result<bool> {
    let class = config.str("tokenizer_class")?.unwrap_or_default().trim_end_matches("Fast");
    let (part, kind, keys): (_, _, &[(&str, &str)]) = match class {
        "BertTokenizer" | "DistilBertTokenizer" => (
            "normalizer",
            "BertNormalizer",
            &[
                ("do_lower_case", "lowercase"),
                ("strip_accents", "strip_accents"),
                ("tokenize_chinese_chars", "handle_chinese_chars"),
            ],
        ),
        "RobertaTokenizer" => ("pre_tokenizer", "ByteLevel", &[("add_prefix_space", "add_prefix_space")]),
        _ => return Ok(false),
    };
    let Some(Value::Object(part)) = json.get_mut(part) else { return Ok(false) };
    if part.get("type").and_then(Value::as_str) != Some(kind) {
        return Ok(false);
    }
    let mut changed = false;
    for (from, to) in keys {
        if let Some(value) = config.bool(from)?.map(Value::Bool) {
            changed |= part.insert((*to).to_string(), value.clone()) != Some(value);
        }
    }
    Ok(changed)
}

/// The smallest of what the version's files, the position table and the operator allow.
fn max_tokens(spec: &Spec, tokenizer_config: &Settings, limits: &Limits) -> Result<usize> {
    let config = Settings::config(spec);
    // the default of every family's configuration class
    let mut positions = config.usize("max_position_embeddings")?.unwrap_or(512);
    if counts_positions_from_padding(spec) {
        let padding = config.usize("pad_token_id")?.unwrap_or(1);
        positions = positions.saturating_sub(padding + 1);
    }
    let sentence = spec.embedding.as_ref().and_then(|e| e.max_seq_length);
    // written as 1000000000000000019884624838656 when there is none
    let tokenizer = tokenizer_config.f64("model_max_length")?.filter(|n| *n < NO_MAXIMUM);
    if tokenizer.is_some_and(|n| n < 1.0) {
        return Err(tokenizer_config.wrong("model_max_length", "1 or more"));
    }
    let all = [Some(positions), sentence, tokenizer.map(|n| n as usize), limits.max_tokens];
    Ok(all.into_iter().flatten().min().unwrap_or(positions))
}

/// RoBERTa numbers positions from `pad_token_id + 1`, so that many rows of its position table hold no token.
fn counts_positions_from_padding(spec: &Spec) -> bool {
    matches!(spec.family.as_str(), "roberta" | "xlm-roberta" | "xlm-roberta-xl" | "camembert")
}

/// How many token types the model knows. DistilBERT has no such embedding at all.
fn type_vocab_size(spec: &Spec) -> Result<usize> {
    let default = if spec.family == "distilbert" { 1 } else { 2 };
    Ok(Settings::config(spec).usize("type_vocab_size")?.unwrap_or(default))
}

fn keep(config: &Settings) -> Result<Keep> {
    match config.str("truncation_side")? {
        None | Some("right") => Ok(Keep::Start),
        Some("left") => Ok(Keep::End),
        Some(_) => Err(config.wrong("truncation_side", "right or left")),
    }
}

fn no_vocab_size(spec: &Spec) -> Error {
    Error::unloadable(label(spec, "config.json"), "'vocab_size' is missing")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::{TruncationParams, truncate_encodings};

    use super::*;

    proptest! {
        #[test]
        fn truncation_agrees_with_the_library(n1 in 0usize..40, n2 in 0usize..40, budget in 1usize..50) {
            let ids: Vec<u32> = (0..40).collect();
            let params = TruncationParams { max_length: budget, ..Default::default() };
            let (a, b) =
                truncate_encodings(encoding(&ids[..n1], 0), Some(encoding(&ids[..n2], 1)), &params).unwrap();
            prop_assert_eq!(longest_first(n1, n2, budget), (a.len(), b.unwrap().len()));
            let (a, _) = truncate_encodings(encoding(&ids[..n1], 0), None, &params).unwrap();
            prop_assert_eq!(longest_first(n1, 0, budget), (a.len(), 0));
        }
    }

    #[test]
    fn trimming_is_pythons() {
        assert_eq!(trim("\u{1c} \n a\u{a0}b \u{2003}\u{1f}"), "a\u{a0}b");
        assert_eq!(trim("\u{200b}a\0"), "\u{200b}a\0");
    }
}
