//! Tokens as they are told beside a text: how they are spelled, how likely they were, and where in the text they begin.
//!
//! It must not know how answers are sent.

use crate::process::{Choice, TextDecoder};

/// A token with its spelling, its bytes and the logarithm of its probability, and others in its place.
pub(super) struct Spelled {
    pub(super) chosen: (String, Vec<u8>, f32),
    pub(super) top: Vec<(String, Vec<u8>, f32)>,
    /// It is no part of the text.
    silent: bool,
}

impl Spelled {
    pub(super) fn of(choice: &Choice, decoder: &TextDecoder) -> Spelled {
        let spell = |id: u32, logprob: f32| {
            let bytes = decoder.bytes_of(id).to_vec();
            (String::from_utf8_lossy(&bytes).into_owned(), bytes, logprob)
        };
        Spelled {
            chosen: spell(choice.token, choice.logprob.unwrap_or(f32::NAN)),
            top: choice.top.iter().map(|(id, logprob)| spell(*id, *logprob)).collect(),
            silent: decoder.is_special(choice.token),
        }
    }
}

/// The characters of a text whose tokens come one by one; bytes that are no UTF-8 are replacement characters in it, as
/// [`String::from_utf8_lossy`] has them.
#[derive(Debug, Default)]
pub(super) struct Characters {
    /// Those that are complete.
    count: usize,
    /// What there is of the next one.
    rest: Vec<u8>,
}

impl Characters {
    /// Where the next token begins: within a character, at that.
    pub(super) fn place(&mut self, token: &Spelled) -> usize {
        let before = self.count;
        if token.silent {
            return before;
        }
        let mut held = self.rest.len();
        self.rest.extend_from_slice(&token.chosen.1);
        let mut begins = before;
        loop {
            match std::str::from_utf8(&self.rest) {
                Ok(text) => {
                    self.count += text.chars().count();
                    self.rest.clear();
                    return begins;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.count += String::from_utf8_lossy(&self.rest[..valid]).chars().count();
                    let Some(bad) = error.error_len() else {
                        self.rest.drain(..valid);
                        return begins;
                    };
                    self.count += 1;
                    // What was held was no beginning of a character after all: the token begins after it.
                    if valid == 0 && (1..=held).contains(&bad) {
                        begins = self.count;
                    }
                    self.rest.drain(..valid + bad);
                    held = 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(bytes: &[u8]) -> Spelled {
        Spelled { chosen: (String::new(), bytes.to_vec(), 0.0), top: Vec::new(), silent: false }
    }

    fn places(tokens: &[&[u8]]) -> Vec<usize> {
        let mut characters = Characters::default();
        tokens.iter().map(|bytes| characters.place(&token(bytes))).collect()
    }

    #[test]
    fn a_token_within_a_character_is_at_it_and_one_after_half_of_one_is_not() {
        assert_eq!(places(&[b"ab", "é".as_bytes(), b"c"]), [0, 2, 3]);
        // Three parts of one.
        assert_eq!(places(&[b"a\xf0", b"\x9f\x98", b"\x80b", b"c"]), [0, 1, 1, 3]);
        // What began is not gone on with.
        assert_eq!(places(&[b"a\xf0\x9f", b"b", b"c"]), [0, 2, 3]);
        assert_eq!(places(&[b"\xc2", b"\x80\x80", b"x"]), [0, 0, 2]);
        assert_eq!(places(&[b"\xff", b"\xff\xc3", b"\xc3", b"x"]), [0, 1, 3, 4]);
        let mut characters = Characters::default();
        let special = Spelled { silent: true, ..token(b"<end>") };
        assert_eq!([&token(b"ab"), &special, &token(b"c")].map(|token| characters.place(token)), [0, 2, 2]);
    }

    proptest! {
        /// Where a token begins after whole characters, it begins where the text before it ends.
        #[test]
        fn places_are_lengths_of_the_text_before(tokens in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..4), 1..12)) {
            let mut characters = Characters::default();
            let mut before = Vec::new();
            for bytes in tokens {
                let place = characters.place(&token(&bytes));
                let text = String::from_utf8_lossy(&before).chars().count();
                let both = String::from_utf8_lossy(&[&before[..], &bytes].concat()).into_owned();
                prop_assert!(place == text || place + 1 == text, "{place} of {text}");
                before.extend(bytes);
                prop_assert_eq!(characters.count + usize::from(!characters.rest.is_empty()), both.chars().count());
            }
        }
    }
}
