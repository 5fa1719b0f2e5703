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

/// Every byte, to be borrowed.
static BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        bytes[byte] = byte as u8;
        byte += 1;
    }
    bytes
};

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

    /// What a token is in a text, special or not; nothing where no token has the id. Of a tokenizer that puts a space before
    /// every text, that space included.
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        match self.pieces.get(id as usize).map(|piece| piece.kind) {
            Some(Kind::Byte(byte)) => std::slice::from_ref(&BYTES[usize::from(byte)]),
            _ => self.letters_of(id),
        }
    }

    /// A token as it is spelled: `<0xE5>` where [`TextDecoder::bytes_of`] is that byte.
    pub fn letters_of(&self, id: u32) -> &[u8] {
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
    /// Special tokens that are spelled out all the same.
    kept: Arc<[u32]>,
    /// Bytes of a character that is not complete, or of a run of byte tokens.
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

impl Detokenizer {
    /// For a text that stands by itself: an answer in a chat, whose leading space is dropped where the tokenizer puts
    /// one before every text.
    pub fn new(decoder: Arc<TextDecoder>, specials: Specials) -> Detokenizer {
        let steps = decoder.join.steps().to_vec();
        Detokenizer { decoder, specials, kept: Arc::default(), bytes: Vec::new(), steps }
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

    /// From here on these special tokens are spelled out, whatever becomes of others.
    pub fn keeping(self, kept: Arc<[u32]>) -> Detokenizer {
        Detokenizer { kept, ..self }
    }

    /// The text that is certain with this token; `None` where there is none.
    ///
    /// It never ends within a character. Of byte tokens, each character comes as it is complete, as streams of vLLM and llama.cpp have it:
    /// of a run that is not UTF-8 as a whole, what is none is replacement characters, where `ByteFallback` would spell all of it so.
    /// Where what follows looks at whole tokens, a run is held back until it ends.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let decoder = Arc::clone(&self.decoder);
        let piece = *decoder.pieces.get(id as usize)?;
        let spelling = &decoder.spelling[piece.start as usize..piece.end as usize];
        let mut text = String::new();
        match piece.kind {
            Kind::Nothing => return None,
            Kind::Special if self.specials == Specials::Skip && !self.kept.contains(&id) => return None,
            Kind::Byte(byte) => self.byte(byte, &mut text),
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
                        Some(byte) => self.byte(byte, &mut text),
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

    /// One more of a run of byte tokens.
    fn byte(&mut self, byte: u8, text: &mut String) {
        self.bytes.push(byte);
        while self.decoder.join.takes_parts() && !self.bytes.is_empty() {
            match std::str::from_utf8(&self.bytes) {
                Ok(_) => self.end_run(text),
                Err(error) => match error.error_len() {
                    Some(bad) => {
                        self.bytes.drain(..bad).for_each(|_| super::steps::pass(&mut self.steps, "\u{fffd}", text))
                    }
                    None => return,
                },
            }
        }
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
#[path = "detokenizer_tests.rs"]
mod tests;
