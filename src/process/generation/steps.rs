//! Which decoders of `tokenizers` can be run token by token, and how.
//!
//! A decoder maps a list of strings to a list of strings. Those that look at one token alone are applied to the whole
//! vocabulary beforehand; of the others each has a small state here. It must not know ids or sequences.

use tokenizers::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

/// What joins the tokens of a text.
#[derive(Debug)]
pub(super) enum Join {
    /// `ByteLevel`: the letters of a token stand for bytes, and the bytes of all tokens are one text.
    Bytes { steps: Vec<Step> },
    /// Tokens are text. With `fallback` some of them are bytes.
    Tokens { fallback: bool, steps: Vec<Step> },
}

/// What is done to the strings of a text, in turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// `Metaspace`: the mark is a space, and nothing in the first token of the text.
    Metaspace { mark: char, first: bool },
    /// `Strip` of whole tokens, at their beginning.
    StripEach { what: char, most: usize },
    /// `Strip` of the fused text: so many may still be dropped from its beginning.
    StripText { what: char, left: usize },
}

impl Join {
    /// The decoders that are applied to each token alone, and what follows them.
    pub(super) fn plan(decoder: &DecoderWrapper) -> Result<(Vec<&DecoderWrapper>, Join), String> {
        let mut chain = Vec::new();
        flatten(decoder, &mut chain);
        let alone = chain.iter().take_while(|d| matches!(d, DecoderWrapper::Replace(_))).count();
        let each = chain[..alone].to_vec();
        let mut rest = chain[alone..].iter();
        let join = match chain.get(alone) {
            Some(DecoderWrapper::ByteLevel(_)) => Join::Bytes { steps: steps(rest.skip(1), true)? },
            Some(DecoderWrapper::ByteFallback(_)) => {
                rest.next();
                Join::Tokens { fallback: true, steps: steps(rest, false)? }
            }
            _ => Join::Tokens { fallback: false, steps: steps(rest, false)? },
        };
        Ok((each, join))
    }

    pub(super) fn steps(&self) -> &[Step] {
        match self {
            Join::Bytes { steps } | Join::Tokens { steps, .. } => steps,
        }
    }

    /// Whether byte tokens are joined to text before anything looks at it, so that it may come in parts.
    pub(super) fn takes_parts(&self) -> bool {
        let Join::Tokens { fallback: true, steps } = self else { return false };
        steps.iter().all(|step| matches!(step, Step::StripText { .. }))
    }

    /// The byte that a token stands for.
    pub(super) fn byte(&self, token: &str) -> Option<u8> {
        let Join::Tokens { fallback: true, .. } = self else { return None };
        let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
        if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
    }

    /// Appends what the token is in the text.
    pub(super) fn spell(&self, token: &str, spelling: &mut Vec<u8>) {
        let start = spelling.len();
        if let Join::Bytes { .. } = self {
            let bytes = token.chars().map_while(byte_of_letter);
            spelling.extend(bytes);
            if spelling.len() - start == token.chars().count() {
                return;
            }
            // one letter that is no byte, as in most added tokens: the token is text
            spelling.truncate(start);
        }
        spelling.extend_from_slice(token.as_bytes());
    }
}

fn flatten<'a>(decoder: &'a DecoderWrapper, chain: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().for_each(|d| flatten(d, chain)),
        other => chain.push(other),
    }
}

fn steps<'a>(decoders: impl Iterator<Item = &'a &'a DecoderWrapper>, mut fused: bool) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    for decoder in decoders {
        steps.push(match decoder {
            // all that follows is one token, in parts
            DecoderWrapper::Fuse(_) => {
                fused = true;
                continue;
            }
            DecoderWrapper::Strip(strip) if strip.stop == 0 => match fused {
                true => Step::StripText { what: strip.content, left: strip.start },
                false => Step::StripEach { what: strip.content, most: strip.start },
            },
            DecoderWrapper::Metaspace(m) if !fused => {
                Step::Metaspace { mark: m.get_replacement(), first: m.prepend_scheme != PrependScheme::Never }
            }
            other => return Err(format!("its decoder {} cannot be run token by token there", name(other))),
        });
    }
    Ok(steps)
}

fn name(decoder: &DecoderWrapper) -> &'static str {
    match decoder {
        DecoderWrapper::BPE(_) => "BPEDecoder",
        DecoderWrapper::ByteLevel(_) => "ByteLevel",
        DecoderWrapper::WordPiece(_) => "WordPiece",
        DecoderWrapper::Metaspace(_) => "Metaspace",
        DecoderWrapper::CTC(_) => "CTC",
        DecoderWrapper::Sequence(_) => "Sequence",
        DecoderWrapper::Replace(_) => "Replace",
        DecoderWrapper::Fuse(_) => "Fuse",
        DecoderWrapper::Strip(_) => "Strip",
        DecoderWrapper::ByteFallback(_) => "ByteFallback",
    }
}

/// The letters that byte-level BPE writes bytes with: printable ones of Latin-1 stand for themselves, the other 68
/// bytes are the letters from U+0100 on, in order (`bytes_to_unicode` of GPT-2).
pub(super) fn byte_of_letter(letter: char) -> Option<u8> {
    match (letter, u32::from(letter)) {
        ('!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}', code) => u8::try_from(code).ok(),
        (_, code @ 0x100..=0x120) => u8::try_from(code - 0x100).ok(),
        (_, code @ 0x121..=0x142) => u8::try_from(code - 0x121 + 0x7f).ok(),
        (_, 0x143) => Some(0xad),
        _ => None,
    }
}

/// Runs a piece through the steps and appends what comes out.
pub(super) fn pass(steps: &mut [Step], piece: &str, text: &mut String) {
    let Some((step, rest)) = steps.split_first_mut() else {
        text.push_str(piece);
        return;
    };
    match step {
        Step::Metaspace { mark, first } => {
            let gap = if std::mem::take(first) { "" } else { " " };
            pass(rest, &piece.replace(*mark, gap), text);
        }
        Step::StripEach { what, most } => pass(rest, strip(piece, *what, *most), text),
        Step::StripText { what, left } => {
            let kept = strip(piece, *what, *left);
            // once anything else was there, the beginning is over
            *left = if kept.is_empty() { *left - piece.chars().count() } else { 0 };
            pass(rest, kept, text);
        }
    }
}

fn strip(piece: &str, what: char, most: usize) -> &str {
    let dropped = piece.chars().take(most).take_while(|c| *c == what).count();
    &piece[dropped * what.len_utf8()..]
}
