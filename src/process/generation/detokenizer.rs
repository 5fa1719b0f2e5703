//! Token ids to text, one by one: the same text as decoding all of them at once.
//!
//! It knows the decoders of `tokenizers` that generative models use. It must not know stop strings or sequences.

use std::sync::Arc;

use tokenizers::{Decoder as _, DecoderWrapper, Tokenizer};

use super::steps::{Join, Step};

/// What becomes of special tokens in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They are left out, as from an answer.
    Skip,
    /// They are spelled out.
    Keep,
}

/// How the ids of one tokenizer are spelled. Made once a generation and shared by its sequences.
///
/// As `tokenizers` decodes (`TokenizerImpl::decode`), which transformers' fast tokenizers use; ids that no token has
/// are nothing. What `clean_up_tokenization_spaces` does to a whole text afterwards (" ." to ".") is not done, as vLLM
/// does not do it: it would change text that was sent already.
#[derive(Debug)]
pub struct TextDecoder {
    /// By id.
    pieces: Vec<Piece>,
    /// The spelling of all pieces, one after the other. Pieces of a byte-level tokenizer need not be UTF-8.
    spelling: Vec<u8>,
    join: Join,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    start: u32,
    end: u32,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No token has this id.
    Nothing,
    Plain,
    Special,
    /// A token that stands for one byte (`<0xE5>`).
    Byte(u8),
}

impl TextDecoder {
    /// # Errors
    /// Says which decoder cannot be run token by token.
    pub fn new(tokenizer: &Tokenizer) -> Result<TextDecoder, String> {
        let decoder = tokenizer.get_decoder().ok_or("it has no decoder, so that its tokens cannot be text again")?;
        let (each, join) = Join::plan(decoder)?;
        let last = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let mut whole = TextDecoder { pieces: Vec::with_capacity(last), spelling: Vec::new(), join };
        for id in 0..last as u32 {
            whole.add(tokenizer, &each, id)?;
        }
        Ok(whole)
    }

    /// A token as it is spelled, special or not; nothing where no token has the id. Of a tokenizer that puts a space before
    /// every text, that space included.
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        let piece = self.pieces.get(id as usize);
        piece.and_then(|piece| self.spelling.get(piece.start as usize..piece.end as usize)).unwrap_or_default()
    }

    /// Whether a token is one that an answer's text skips.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.get(id as usize).is_some_and(|piece| piece.kind == Kind::Special)
    }

    fn add(&mut self, tokenizer: &Tokenizer, each: &[&DecoderWrapper], id: u32) -> Result<(), String> {
        let start = self.spelling.len();
        let mut kind = Kind::Nothing;
        if let Some(token) = tokenizer.id_to_token(id) {
            let special = tokenizer.get_added_vocabulary().is_special_token(&token);
            let mut tokens = vec![token];
            for decoder in each {
                tokens = decoder.decode_chain(tokens).map_err(|e| format!("token {id} cannot be decoded: {e}"))?;
            }
            let token = tokens.concat();
            kind = match self.join.byte(&token) {
                _ if special => Kind::Special,
                Some(byte) => Kind::Byte(byte),
                None => Kind::Plain,
            };
            self.join.spell(&token, &mut self.spelling);
        }
        let offset = |n: usize| u32::try_from(n).map_err(|_| "its tokens are longer than 4 GB together".to_owned());
        self.pieces.push(Piece { start: offset(start)?, end: offset(self.spelling.len())?, kind });
        Ok(())
    }
}

/// The text of one sequence, as its tokens come.
#[derive(Debug)]
pub struct Detokenizer {
    decoder: Arc<TextDecoder>,
    specials: Specials,
    /// Bytes of a character that is not complete, or of a run of byte tokens.
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

impl Detokenizer {
    /// For a text that stands by itself: an answer in a chat, whose leading space is dropped where the tokenizer puts
    /// one before every text.
    pub fn new(decoder: Arc<TextDecoder>, specials: Specials) -> Detokenizer {
        let steps = decoder.join.steps().to_vec();
        Detokenizer { decoder, specials, bytes: Vec::new(), steps }
    }

    /// For a text that goes on after `prompt`: what decoding both together adds to the text of the prompt, its leading
    /// space included. A character that the prompt leaves incomplete comes whole with the token that completes it.
    pub fn after(decoder: Arc<TextDecoder>, specials: Specials, prompt: &[u32]) -> Detokenizer {
        let mut detokenizer = Detokenizer::new(decoder, specials);
        for id in prompt {
            detokenizer.push(*id);
        }
        detokenizer
    }

    /// The text that is certain with this token; `None` where there is none.
    ///
    /// It never ends within a character. A run of byte tokens is held back until it ends: `ByteFallback` spells the
    /// whole run as replacement characters where any of it is not UTF-8.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let decoder = Arc::clone(&self.decoder);
        let piece = *decoder.pieces.get(id as usize)?;
        let spelling = &decoder.spelling[piece.start as usize..piece.end as usize];
        let mut text = String::new();
        match piece.kind {
            Kind::Nothing => return None,
            Kind::Special if self.specials == Specials::Skip => return None,
            Kind::Byte(byte) => self.bytes.push(byte),
            // A special token may be spelled like a byte (`<0x00>`), and is one to `ByteFallback` where it is kept.
            Kind::Special | Kind::Plain => match &decoder.join {
                Join::Bytes { .. } => {
                    self.bytes.extend_from_slice(spelling);
                    let complete = take_lossy(&mut self.bytes, false);
                    self.pass(&complete, &mut text);
                }
                Join::Tokens { .. } => {
                    let spelling = String::from_utf8_lossy(spelling);
                    match decoder.join.byte(&spelling) {
                        Some(byte) => self.bytes.push(byte),
                        None => {
                            self.end_run(&mut text);
                            self.pass(&spelling, &mut text);
                        }
                    }
                }
            },
        }
        (!text.is_empty()).then_some(text)
    }

    /// The rest: what was incomplete is a replacement character now, as where all is decoded at once.
    pub fn finish(&mut self) -> Option<String> {
        let mut text = String::new();
        match self.decoder.join {
            Join::Bytes { .. } => {
                let rest = take_lossy(&mut self.bytes, true);
                self.pass(&rest, &mut text);
            }
            Join::Tokens { .. } => self.end_run(&mut text),
        }
        (!text.is_empty()).then_some(text)
    }

    /// Spells a run of byte tokens: as the text that it is, or as one replacement character a byte.
    fn end_run(&mut self, text: &mut String) {
        if self.bytes.is_empty() {
            return;
        }
        match String::from_utf8(std::mem::take(&mut self.bytes)) {
            Ok(run) => self.pass(&run, text),
            Err(error) => {
                for _ in error.as_bytes() {
                    self.pass("\u{fffd}", text);
                }
            }
        }
    }

    fn pass(&mut self, piece: &str, text: &mut String) {
        super::steps::pass(&mut self.steps, piece, text);
    }
}

/// Takes the text out of `bytes` as `String::from_utf8_lossy` reads it. An incomplete character at the end stays,
/// unless nothing follows.
fn take_lossy(bytes: &mut Vec<u8>, last: bool) -> String {
    let mut text = String::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                rest = after;
                match error.error_len() {
                    Some(length) => rest = &rest[length..],
                    None if last => rest = &[],
                    None => break,
                }
                text.push('\u{fffd}');
            }
        }
    }
    let kept = bytes.len() - rest.len();
    bytes.drain(..kept);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Sort, tokenizer};
    use super::*;
    use crate::process::tests::fixture;

    fn decoder(sort: Sort) -> (Tokenizer, Arc<TextDecoder>) {
        let tokenizer = tokenizer(sort);
        let decoder = TextDecoder::new(&tokenizer).unwrap();
        (tokenizer, Arc::new(decoder))
    }

    /// All the pieces of text, each of which must be whole characters (which `String` sees to).
    fn streamed(detokenizer: &mut Detokenizer, ids: &[u32]) -> String {
        let mut text: String = ids.iter().filter_map(|id| detokenizer.push(*id)).collect();
        text.extend(detokenizer.finish());
        text
    }

    fn agrees(
        tokenizer: &Tokenizer,
        decoder: &Arc<TextDecoder>,
        ids: &[u32],
        prompt: usize,
    ) -> Result<(), TestCaseError> {
        for (specials, skip) in [(Specials::Skip, true), (Specials::Keep, false)] {
            let whole = tokenizer.decode(ids, skip).unwrap();
            let mut detokenizer = Detokenizer::new(Arc::clone(decoder), specials);
            prop_assert_eq!(streamed(&mut detokenizer, ids), whole.as_str(), "ids {:?}", ids);
            let (prompt, answer) = ids.split_at(prompt.min(ids.len()));
            let mut detokenizer = Detokenizer::after(Arc::clone(decoder), specials, prompt);
            let continued = streamed(&mut detokenizer, answer);
            let told = whole.ends_with(&continued);
            prop_assert!(told, "{:?} after {:?} gives {:?} of {:?}", answer, prompt, continued, whole);
            // Where the prompt ends with a character, the answer is exactly what it adds.
            let before = tokenizer.decode(prompt, skip).unwrap();
            if !before.ends_with('\u{fffd}') && whole.len() == before.len() + continued.len() {
                prop_assert_eq!(before + &continued, whole);
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn ids_one_by_one_are_the_text_of_all_at_once(
            ids in proptest::collection::vec(0u32..300, 0..40),
            prompt in 0usize..40,
        ) {
            for sort in Sort::ALL {
                let (tokenizer, decoder) = decoder(sort);
                agrees(&tokenizer, &decoder, &ids, prompt)?;
            }
        }

        /// Half of all bytes begin or go on with a character of several bytes, so that many runs are nearly right.
        #[test]
        fn runs_of_bytes_are_the_text_of_all_at_once(
            bytes in proptest::collection::vec(
                prop_oneof![Just("é".as_bytes().to_vec()), Just("🎉".as_bytes().to_vec()), Just(vec![0xe5]), Just(vec![0x61]),
                    Just(vec![0xf0, 0x9f]), Just(vec![0x80]), Just(Vec::new())],
                0..12,
            ),
            prompt in 0usize..40,
        ) {
            for sort in Sort::ALL {
                let (tokenizer, decoder) = decoder(sort);
                // an empty part is a token that is no byte
                let id = |byte: u8| match sort {
                    Sort::Bytes => tokenizer.token_to_id(&letter(byte)).unwrap(),
                    _ => 3 + u32::from(byte),
                };
                let other = tokenizer.token_to_id("hello").unwrap();
                let ids: Vec<u32> = bytes
                    .iter()
                    .flat_map(|part| if part.is_empty() { vec![other] } else { part.iter().map(|b| id(*b)).collect() })
                    .collect();
                agrees(&tokenizer, &decoder, &ids, prompt)?;
            }
        }

        #[test]
        fn trained_tokenizers_agree_too(ids in proptest::collection::vec(0u32..400, 0..40), prompt in 0usize..40) {
            for name in ["roberta-classify", "xlmr-embed"] {
                let tokenizer = Tokenizer::from_file(fixture(name).join("tokenizer.json")).unwrap();
                let decoder = Arc::new(TextDecoder::new(&tokenizer).unwrap());
                agrees(&tokenizer, &decoder, &ids, prompt)?;
            }
        }
    }

    /// The letter of a byte, by asking the tokenizer's own pre-tokenizer.
    fn letter(byte: u8) -> String {
        let letters: Vec<char> = (0..=255u8)
            .map(|b| {
                (0..400)
                    .filter_map(char::from_u32)
                    .find(|c| super::super::steps::byte_of_letter(*c) == Some(b))
                    .unwrap()
            })
            .collect();
        letters[usize::from(byte)].to_string()
    }

    #[test]
    fn a_character_comes_whole_with_the_token_that_completes_it() {
        let (tokenizer, decoder) = decoder(Sort::Bytes);
        let mut detokenizer = Detokenizer::new(decoder, Specials::Skip);
        let ids = tokenizer.encode_fast("🎉", false).unwrap().get_ids().to_vec();
        let pushed: Vec<_> = ids.iter().map(|id| detokenizer.push(*id)).collect();
        assert_eq!(pushed, [None, None, None, Some("🎉".to_owned())]);
        assert_eq!(detokenizer.push(ids[0]), None);
        assert_eq!(detokenizer.finish(), Some("\u{fffd}".to_owned()));
    }

    #[test]
    fn the_space_before_an_answer_depends_on_what_it_goes_on_from() {
        let (tokenizer, decoder) = decoder(Sort::Llama);
        let [hello, word] = ["hello", "▁w"].map(|token| tokenizer.token_to_id(token).unwrap());
        let mut alone = Detokenizer::new(Arc::clone(&decoder), Specials::Skip);
        assert_eq!(alone.push(word), Some("w".to_owned()));
        assert_eq!(alone.push(word), Some(" w".to_owned()));
        let mut after = Detokenizer::after(Arc::clone(&decoder), Specials::Skip, &[1, hello]);
        assert_eq!(after.push(word), Some(" w".to_owned()));
        // a beginning that is left out does not count as text
        let mut after = Detokenizer::after(decoder, Specials::Skip, &[1]);
        assert_eq!(after.push(word), Some("w".to_owned()));
    }

    #[test]
    fn decoders_that_need_the_whole_text_are_refused_by_name() {
        let tokenizer = Tokenizer::from_file(fixture("bert-classify").join("tokenizer.json")).unwrap();
        let error = TextDecoder::new(&tokenizer).unwrap_err();
        assert!(error.contains("WordPiece cannot be run token by token"), "{error}");
    }
}
