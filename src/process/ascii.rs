//! A short way to the same ids: ASCII texts under BERT's own rules of cleaning and splitting.
//!
//! The tokenizers library turns every character of every text through the rules for all of Unicode, and keeps the way back
//! to the original; for an English sentence that takes longer than looking its words up. Where a text is ASCII and the
//! rules are BERT's, cleaning and splitting are a few comparisons of bytes. The words go to the library's own WordPiece.
//! Whatever is not plainly so takes the long way; a property holds the two against each other.

use tokenizers::{Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Longer words are the library's: it has a limit of its own, which is no shorter in any checkpoint that we know.
const LONGEST_WORD: usize = 64;

#[derive(Debug)]
pub(super) struct AsciiWords {
    lowercase: bool,
    /// Bytes that an added token may begin with, in either case: a text with one of them takes the long way.
    barred: [bool; 128],
}

impl AsciiWords {
    /// Where the tokenizer is BERT's: `BertNormalizer` that cleans, `BertPreTokenizer`, `WordPiece`.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<AsciiWords> {
        let (Some(NormalizerWrapper::BertNormalizer(rules)), Some(PreTokenizerWrapper::BertPreTokenizer(_))) =
            (tokenizer.get_normalizer(), tokenizer.get_pre_tokenizer())
        else {
            return None;
        };
        let ModelWrapper::WordPiece(model) = tokenizer.get_model() else { return None };
        if !rules.clean_text || model.max_input_chars_per_word < LONGEST_WORD {
            return None;
        }
        let mut barred = [false; 128];
        for token in tokenizer.get_added_tokens_decoder().values() {
            let first = token.content.bytes().next()?;
            // One whose first character the rules would change or take away may be found where it does not begin so.
            if !first.is_ascii() || first.is_ascii_control() {
                return None;
            }
            barred[usize::from(first.to_ascii_lowercase())] = true;
            barred[usize::from(first.to_ascii_uppercase())] = true;
        }
        Some(AsciiWords { lowercase: rules.lowercase, barred })
    }

    /// The ids that the tokenizer gives `text`; `None` where it must be asked.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Option<tokenizers::Result<Vec<u32>>> {
        if text.bytes().any(|byte| self.barred.get(usize::from(byte)).is_none_or(|barred| *barred)) {
            return None;
        }
        let model = tokenizer.get_model();
        let mut ids = Vec::with_capacity(text.len() / 4);
        let mut word = String::with_capacity(LONGEST_WORD);
        for byte in text.bytes() {
            let done = match byte {
                b' ' | b'\t' | b'\n' | b'\r' => end(model, &mut word, &mut ids),
                // Cleaned away: what stands on both sides of it is one word.
                _ if byte.is_ascii_control() => Ok(()),
                _ if byte.is_ascii_punctuation() => end(model, &mut word, &mut ids).and_then(|()| {
                    word.push(char::from(byte));
                    end(model, &mut word, &mut ids)
                }),
                _ => {
                    word.push(char::from(if self.lowercase { byte.to_ascii_lowercase() } else { byte }));
                    Ok(())
                }
            };
            if let Err(error) = done {
                return Some(Err(error));
            }
        }
        Some(end(model, &mut word, &mut ids).map(|()| ids))
    }
}

/// The ids of a word, which is empty afterwards. One that the vocabulary has as a whole is the longest piece of itself.
fn end(model: &ModelWrapper, word: &mut String, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
    if word.is_empty() {
        return Ok(());
    }
    match model.token_to_id(word).filter(|_| word.len() <= LONGEST_WORD) {
        Some(id) => ids.push(id),
        None => ids.extend(model.tokenize(word)?.into_iter().map(|piece| piece.id)),
    }
    word.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn tokenizer(lowercase: bool, added: &[&str]) -> Tokenizer {
        let pieces =
            ["[UNK]", "[CLS]", "[SEP]", "the", "The", "cat", "##s", "##a", "a", "b", "##b", "!", ".", "[", "]", "1"];
        let vocabulary: serde_json::Map<_, _> =
            pieces.iter().zip(0..).map(|(p, id)| (p.to_string(), json!(id))).collect();
        let added: Vec<_> = (added.iter().zip(100..))
            .map(|(content, id)| {
                json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": id % 2 == 0, "special": true })
            })
            .collect();
        let whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                            "strip_accents": null, "lowercase": lowercase },
            "pre_tokenizer": { "type": "BertPreTokenizer" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                       "max_input_chars_per_word": 100, "vocab": vocabulary },
        });
        Tokenizer::from_bytes(whole.to_string()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn ids_are_the_librarys(
            words in prop::collection::vec(
                prop_oneof!["the", "The", "cats", "CAT", "[CLS]", "[cls]", "[SEP]", "q1", "[ -~]{0,6}", "[\\x00-\\x7f]{0,5}", "a{60,110}",
                            " ", "\t", "é"],
                0..12,
            ),
            lowercase: bool, bare: bool,
        ) {
            let text = words.concat();
            let added: &[&str] = if bare { &[] } else { &["[CLS]", "[SEP]", "q1"] };
            let tokenizer = tokenizer(lowercase, added);
            let short = AsciiWords::of(&tokenizer).unwrap();
            if let Some(ids) = short.encode(&tokenizer, &text) {
                let long = tokenizer.encode_fast(text.as_str(), false).unwrap();
                prop_assert_eq!(ids.unwrap(), long.get_ids(), "{:?}", text);
            } else {
                prop_assert!(!text.is_ascii() || text.contains(['[', 'q', 'Q']));
            }
        }
    }

    #[test]
    fn a_plain_sentence_takes_the_short_way() {
        let tokenizer = tokenizer(true, &["[CLS]"]);
        let short = AsciiWords::of(&tokenizer).unwrap();
        assert_eq!(short.encode(&tokenizer, "The cats.\n").unwrap().unwrap(), [3, 5, 6, 12]);
        assert!(short.encode(&tokenizer, "the [CLS]").is_none() && short.encode(&tokenizer, "thé").is_none());
    }

    #[test]
    fn other_rules_have_no_short_way() {
        let mut other = tokenizer(true, &[]);
        other.with_normalizer(None::<NormalizerWrapper>).unwrap();
        assert!(AsciiWords::of(&other).is_none());
    }
}
