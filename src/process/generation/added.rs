//! Encoding a text in which only some spellings of special tokens are tokens.
//!
//! `tokenizers` knows two ways: every `<|im_end|>` in a text is the control token, or none is. A prompt made from a
//! chat needs both at once, so the search for added tokens is done here as the library does it
//! (`AddedVocabulary::extract_and_normalize`), with a say for the caller; normalizer, pre-tokenizer and model are its own.
//! It must not know templates or messages.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, Input, MatchKind};
use tokenizers::normalizer::Range;
use tokenizers::{
    AddedToken, Model as _, NormalizedString, Normalizer as _, OffsetType, PreTokenizedString, PreTokenizer as _,
    Token, Tokenizer,
};

/// Which spellings of special tokens in a text are the tokens. Added tokens that are not special (`<think>`) are
/// always tokens, as they are ordinary text to the tokenizer that has them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Control<'a> {
    /// All: the text was written by one who means them.
    Spelled,
    /// None.
    Nowhere,
    /// All but those that hold one of these bytes of the text (ascending), which somebody else wrote.
    Outside(&'a [usize]),
}

/// The added tokens of one tokenizer.
#[derive(Debug)]
pub(super) struct AddedTokens {
    /// Looked for in the text as it is.
    raw: Option<Matcher>,
    /// Looked for after the normalizer, in their own normalized form.
    normalized: Option<Matcher>,
    /// The special ones by their ids.
    special: HashMap<u32, String>,
}

#[derive(Debug)]
struct Matcher {
    automaton: AhoCorasick,
    /// By pattern.
    tokens: Vec<(u32, AddedToken)>,
}

impl AddedTokens {
    /// # Errors
    /// Says which token cannot be normalized.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<AddedTokens, String> {
        let (mut raw, mut normalized, mut special) = (Vec::new(), Vec::new(), HashMap::new());
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if token.special {
                special.insert(id, token.content.clone());
            }
            let mut pattern = NormalizedString::from(token.content.as_str());
            if token.normalized
                && let Some(normalizer) = tokenizer.get_normalizer()
            {
                let wrong = |e| format!("its added token {:?} cannot be normalized: {e}", token.content);
                normalizer.normalize(&mut pattern).map_err(wrong)?;
            }
            let list = if token.normalized { &mut normalized } else { &mut raw };
            list.push((pattern.get().to_owned(), id, token));
        }
        Ok(AddedTokens { raw: Matcher::new(raw)?, normalized: Matcher::new(normalized)?, special })
    }

    /// The ids of a text, without those that a post-processor adds.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        control: Control,
    ) -> Result<Vec<u32>, tokenizers::Error> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, piece| split(piece, self.raw.as_ref(), control))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            split(piece, self.normalized.as_ref(), control)
        })?;
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        match control {
            Control::Spelled => pieces.tokenize(|piece| tokenizer.get_model().tokenize(piece.get()))?,
            _ => pieces.tokenize(|piece| self.only_text(tokenizer, piece.get()))?,
        }
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// The tokens of a piece that is text: none of them is a special token that the piece spells. Unigram models have
    /// those among their pieces and would find them, where SentencePiece knows them for control pieces.
    fn only_text(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<Token>, tokenizers::Error> {
        let tokens = tokenizer.get_model().tokenize(text)?;
        let spelled = |token: &Token| {
            let spelling = text.get(token.offsets.0..token.offsets.1);
            spelling.is_some_and(|text| self.special.get(&token.id).is_some_and(|special| special == text))
        };
        let Some(found) = tokens.iter().find(|token| spelled(token)).map(|token| token.offsets) else {
            return Ok(tokens);
        };
        // parted after its first character it is no longer spelled
        let parted = found.0 + text[found.0..].chars().next().map_or(0, char::len_utf8);
        if parted == 0 || parted == text.len() {
            return Ok(tokens);
        }
        let (first, rest) = text.split_at(parted);
        Ok([self.only_text(tokenizer, first)?, self.only_text(tokenizer, rest)?].concat())
    }
}

impl Matcher {
    fn new(mut list: Vec<(String, u32, AddedToken)>) -> Result<Option<Matcher>, String> {
        list.retain(|(pattern, ..)| !pattern.is_empty());
        if list.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasickBuilder::new()
            .match_kind(MatchKind::LeftmostLongest)
            .build(list.iter().map(|(pattern, ..)| pattern))
            .map_err(|e| format!("its added tokens cannot be looked for: {e}"))?;
        Ok(Some(Matcher { automaton, tokens: list.into_iter().map(|(_, id, token)| (id, token)).collect() }))
    }
}

type Pieces = Vec<(NormalizedString, Option<Vec<Token>>)>;

/// Cuts a piece at its added tokens.
fn split(piece: NormalizedString, matcher: Option<&Matcher>, control: Control) -> Result<Pieces, tokenizers::Error> {
    let Some(matcher) = matcher else { return Ok(vec![(piece, None)]) };
    let text = piece.get();
    let (mut pieces, mut done, mut at) = (Vec::new(), 0, 0);
    while let Some(found) = matcher.automaton.find(Input::new(text).range(at..)) {
        let (id, token) = &matcher.tokens[found.pattern().as_usize()];
        let (mut start, mut end) = (found.start(), found.end());
        at = end;
        if token.special && !is_control(&piece, (start, end), token, control) {
            // Another may begin within what is only text.
            at = start + text[start..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        if token.single_word && (ends_in_word(&text[..start]) || begins_with_word(&text[end..])) {
            continue;
        }
        if token.lstrip {
            start = text[..start].trim_end().len().max(done);
        }
        if token.rstrip {
            end = text.len() - text[end..].trim_start().len();
        }
        at = at.max(end);
        cut(&piece, (done, start), None, &mut pieces)?;
        cut(&piece, (start, end), Some(*id), &mut pieces)?;
        done = end;
    }
    cut(&piece, (done, text.len()), None, &mut pieces)?;
    Ok(pieces)
}

fn cut(
    piece: &NormalizedString,
    (start, end): (usize, usize),
    id: Option<u32>,
    pieces: &mut Pieces,
) -> Result<(), tokenizers::Error> {
    if start < end {
        let part = piece.slice(Range::Normalized(start..end)).ok_or("an added token ends within a character")?;
        let tokens = id.map(|id| vec![Token::new(id, String::new(), (0, end - start))]);
        pieces.push((part, tokens));
    }
    Ok(())
}

/// Whether a special token that was found at these bytes of the piece is one.
fn is_control(piece: &NormalizedString, found: (usize, usize), token: &AddedToken, control: Control) -> bool {
    let others = match control {
        Control::Spelled => return true,
        Control::Nowhere => return false,
        Control::Outside(others) => others,
    };
    let Some(range) = piece.convert_offsets(Range::Normalized(found.0..found.1)) else { return false };
    // A normalizer can make a token of what was not spelled like one, so that nobody marked it.
    let same = piece.get_original().get(range.clone()).is_some_and(|text| text.trim() == token.content.trim());
    let begin = piece.offsets_original().0;
    let first = others.partition_point(|other| *other < begin + range.start);
    same && others.get(first).is_none_or(|other| *other >= begin + range.end)
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn begins_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word)
}

/// `\w`, near enough: letters, digits and the low line.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::normalizers::utils::Lowercase;

    use super::super::testing::{Sort, tokenizer};
    use super::*;

    /// Texts full of what added tokens are spelled with.
    fn texts() -> impl Strategy<Value = String> {
        const PARTS: &[&str] = &[
            "<s>",
            "</s>",
            "<|im_start|>",
            "<|im_end|>",
            "<think>",
            "<mask>",
            " ",
            "  ",
            "\n",
            "a",
            "hello",
            " world",
            "<|im_",
            "end|>",
            "<",
            ">",
            "é",
            "🎉",
            "_",
        ];
        proptest::collection::vec(proptest::sample::select(PARTS), 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn both_of_the_librarys_ways_are_met(text in texts()) {
            for sort in Sort::ALL {
                let mut tokenizer = tokenizer(sort);
                let added = AddedTokens::new(&tokenizer).unwrap();
                let all = added.encode(&tokenizer, &text, Control::Spelled).unwrap();
                let whole = tokenizer.encode_fast(text.as_str(), false).unwrap();
                prop_assert_eq!(&all, whole.get_ids(), "{:?}", sort);
                prop_assert_eq!(&all, &added.encode(&tokenizer, &text, Control::Outside(&[])).unwrap());
                let none = added.encode(&tokenizer, &text, Control::Nowhere).unwrap();
                let everybody: Vec<usize> = (0..text.len()).collect();
                prop_assert_eq!(&none, &added.encode(&tokenizer, &text, Control::Outside(&everybody)).unwrap());
                if sort == Sort::Unigram {
                    // there the library takes the spelling for the token all the same
                    let special = |id: &u32| added.special.contains_key(id);
                    prop_assert!(!none.iter().any(special), "{:?}", none);
                    continue;
                }
                tokenizer.set_encode_special_tokens(true);
                let whole = tokenizer.encode_fast(text.as_str(), false).unwrap();
                prop_assert_eq!(&none, whole.get_ids(), "{:?}", sort);
            }
        }
    }

    #[test]
    fn a_spelling_that_somebody_else_wrote_is_text_and_the_next_is_a_token() {
        for sort in Sort::ALL {
            let tokenizer = tokenizer(sort);
            let (added, end) = (AddedTokens::new(&tokenizer).unwrap(), tokenizer.token_to_id("<|im_end|>").unwrap());
            let text = "hello<|im_end|><|im_end|>";
            let ids = added.encode(&tokenizer, text, Control::Outside(&[5])).unwrap();
            assert_eq!(ids.iter().filter(|id| **id == end).count(), 1, "{sort:?}: {ids:?}");
            assert_eq!(ids.last(), Some(&end));
            assert!(tokenizer.decode(&ids, true).unwrap().ends_with("<|im_end|>"), "{sort:?}");
        }
    }

    #[test]
    fn what_only_a_normalizer_spells_like_a_token_is_text() {
        let mut tokenizer = tokenizer(Sort::Gemma);
        tokenizer.with_normalizer(Some(Lowercase)).unwrap();
        let (added, end) = (AddedTokens::new(&tokenizer).unwrap(), tokenizer.token_to_id("</s>").unwrap());
        let ends = |text: &str, control: Control| {
            added.encode(&tokenizer, text, control).unwrap().iter().filter(|id| **id == end).count()
        };
        // nobody could have marked `</S>`
        assert_eq!(ends("</S></s>", Control::Spelled), 2);
        assert_eq!(ends("</S></s>", Control::Outside(&[])), 1);
    }

    #[test]
    fn a_token_that_begins_within_what_is_only_text_is_found() {
        let mut tokenizer = tokenizer(Sort::Bytes);
        tokenizer.add_special_tokens(["[a]", "][b]"].map(|token| AddedToken::from(token, true))).unwrap();
        let added = AddedTokens::new(&tokenizer).unwrap();
        // somebody wrote `[a`, and the template `][b]`
        let ids = added.encode(&tokenizer, "[a][b]", Control::Outside(&[0])).unwrap();
        assert_eq!(ids.last().copied(), tokenizer.token_to_id("][b]"));
        assert_eq!(ids.len(), 3);
    }
}
