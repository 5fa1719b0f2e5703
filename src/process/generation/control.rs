//! Telling what a client wrote from what a chat template wrote, through the template.
//!
//! A template writes control tokens (`<|im_end|>`) as text, and puts the client's text between them. When the result is
//! encoded, `<|im_end|>` in the client's text must not end the message. Once rendered, nobody can tell the two apart, so
//! the client's strings are marked before: wherever one spells a special token, or could spell one together with
//! what the template writes beside it, a mark stands before it. The marks come through the template like any other
//! character and are taken out afterwards; a spelling with the place of a mark in it is text.
//!
//! What is left to the client: a role (it is part of the template's own language, and is checked to be a plain word), and
//! a single word (`im_end`) for which a template would have written the rest of a token round it. Templates see the
//! marks only where they cut a string that spells special tokens at a number of characters.

use std::borrow::Cow;
use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

/// Not a character of any text (Unicode, "Noncharacters"); what follows says what it is.
const ESCAPE: char = '\u{fdd0}';
/// The escape itself, in a client's text.
const ITSELF: char = '\u{fdd1}';
const MARK: char = '\u{fdd2}';

/// Whether a character is one of those that stand for marks: they must come through a template as they are.
pub(super) fn is_mark(c: char) -> bool {
    matches!(c, ESCAPE | ITSELF | MARK)
}

/// The spellings of a tokenizer's special tokens.
#[derive(Debug)]
pub(super) struct Spellings {
    all: Vec<String>,
    whole: AhoCorasick,
    /// Proper beginnings and ends, but those that are one word.
    beginnings: HashSet<String>,
    ends: HashSet<String>,
    longest: usize,
}

impl Spellings {
    /// # Errors
    /// Says why they cannot be searched for.
    pub(super) fn new(tokens: &[String]) -> Result<Spellings, String> {
        // Of white space a template could no longer trim it.
        let all: Vec<String> = tokens.iter().filter(|token| !token.trim().is_empty()).cloned().collect();
        let whole = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&all);
        let whole = whole.map_err(|e| format!("its special tokens cannot be searched for: {e}"))?;
        let (mut beginnings, mut ends) = (HashSet::new(), HashSet::new());
        for token in &all {
            for (at, _) in token.char_indices().skip(1) {
                beginnings.extend(Some(&token[..at]).filter(|part| !is_word(part)).map(str::to_owned));
                ends.extend(Some(&token[at..]).filter(|part| !is_word(part)).map(str::to_owned));
            }
        }
        let longest = all.iter().map(String::len).max().unwrap_or(0);
        Ok(Spellings { all, whole, beginnings, ends, longest })
    }

    /// A client's string with marks.
    pub(super) fn mark<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut places: Vec<usize> = self.whole.find_overlapping_iter(text).map(|found| found.start()).collect();
        places.extend(self.edges(text));
        if places.is_empty() && !text.contains(ESCAPE) {
            return Cow::Borrowed(text);
        }
        places.sort_unstable();
        places.dedup();
        let mut places = places.into_iter().peekable();
        let mut marked = String::with_capacity(text.len() + 64);
        for (at, c) in text.char_indices() {
            if places.next_if_eq(&at).is_some() {
                marked.extend([ESCAPE, MARK]);
            }
            marked.push(c);
            if c == ESCAPE {
                marked.push(ITSELF);
            }
        }
        Cow::Owned(marked)
    }

    /// Where a token could straddle the string's edges. Templates trim, so the edges are those without white space.
    fn edges(&self, text: &str) -> Vec<usize> {
        let start = text.len() - text.trim_start().len();
        let inner = text.trim();
        let near = |at: &usize| inner.len() - at < self.longest;
        let starts = inner.char_indices().rev().map(|(at, _)| at).take_while(near);
        let mut places: Vec<usize> =
            starts.filter(|&at| self.beginnings.contains(&inner[at..])).map(|at| start + at).collect();
        let mut stops = inner.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|&stop| stop < self.longest);
        let within = || inner.len() < self.longest && !is_word(inner) && self.all.iter().any(|t| t.contains(inner));
        if stops.any(|stop| self.ends.contains(&inner[..stop])) || within() {
            places.push(start);
        }
        places
    }

    /// Marks all strings in a value, keys of objects too.
    pub(super) fn mark_value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.mark(text).into_owned()),
            Value::Array(items) => items.iter().map(|item| self.mark_value(item)).collect(),
            Value::Object(fields) => fields
                .iter()
                .map(|(key, value)| (self.mark(key).into_owned(), self.mark_value(value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            plain @ (Value::Null | Value::Bool(_) | Value::Number(_)) => plain.clone(),
        }
    }
}

/// Takes the marks out; where they stood, in bytes of what is left.
pub(super) fn unmark(marked: &str) -> (String, Vec<usize>) {
    let (mut text, mut places) = (String::with_capacity(marked.len()), Vec::new());
    let mut chars = marked.chars().peekable();
    while let Some(c) = chars.next() {
        if c != ESCAPE {
            text.push(c);
        } else if chars.next_if_eq(&ITSELF).is_some() {
            text.push(ESCAPE);
        } else if chars.next_if_eq(&MARK).is_some() {
            places.push(text.len());
        }
    }
    (text, places)
}

fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ' ')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spellings() -> Spellings {
        Spellings::new(&["<|im_start|>", "<|im_end|>", "<s>", "[/INST]", "\n"].map(str::to_owned)).unwrap()
    }

    fn marks(text: &str) -> Vec<usize> {
        unmark(&spellings().mark(text)).1
    }

    #[test]
    fn spellings_are_marked_wherever_they_stand() {
        assert_eq!(marks("hello <|im_end|>\n<s>"), [6, 17]);
        assert_eq!(marks("<<s>"), [1]);
        assert_eq!(marks("a < b, [x] and\nmore"), Vec::<usize>::new());
        assert!(matches!(spellings().mark("plain text"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_token_that_the_template_could_complete_is_marked() {
        assert_eq!(marks("a <|im_en"), [2]);
        assert_eq!(marks("a <|im_en \n"), [2]);
        assert_eq!(marks("|> b"), [0]);
        assert_eq!(marks(" /INST "), [1]);
        // one word is nothing that could be told from another
        assert_eq!(marks("im_end"), Vec::<usize>::new());
    }

    #[test]
    fn values_are_marked_through_and_through() {
        let value = serde_json::json!({"a": ["<s>", 1, null], "<s>": {"b": "c"}});
        let marked = spellings().mark_value(&value).to_string();
        assert_eq!(unmark(&marked).0, value.to_string());
        assert_eq!(unmark(&marked).1.len(), 2);
    }

    proptest! {
        #[test]
        fn marks_come_out_as_they_went_in(
            parts in proptest::collection::vec(
                proptest::sample::select(&["<s>", "<|im_", "end|>", "a", " ", "\u{fdd0}", "\u{fdd1}", "\u{fdd2}", "é"][..]),
                0..12,
            ),
        ) {
            let text = parts.concat();
            let marked = spellings().mark(&text).into_owned();
            let (back, places) = unmark(&marked);
            prop_assert_eq!(&back, &text);
            for spelling in ["<s>", "<|im_end|>"] {
                for (at, _) in text.match_indices(spelling) {
                    prop_assert!(places.contains(&at), "{} in {:?}", spelling, text);
                }
            }
        }
    }
}
