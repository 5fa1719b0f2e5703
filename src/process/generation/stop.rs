//! Finding stop strings in a text that arrives in pieces.
//!
//! It knows text only. It must not know tokens: where a stop string is found must not depend on how the text was
//! cut into pieces.

use std::sync::Arc;

use crate::error::{Error, Result};

/// Stop strings of one request. Every byte of its answer is compared with each.
const MOST: usize = 64;

/// Bytes of all of them: text that could be the beginning of one is held back, and each byte takes a table of its own.
const MOST_BYTES: usize = 16 << 10;

/// A streaming matcher of several strings.
///
/// The occurrence that is complete first ends the text, and of those that are complete at the same character the one
/// that began first; the text ends before it. Text that could be the beginning of an occurrence is held back, and
/// no more than that. One automaton a string (Knuth, Morris and Pratt, "Fast pattern matching in strings", 1977).
/// What is known of the strings themselves is shared by all that are cloned of one.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Arc<[Stop]>,
    /// How many bytes of each the text ends with.
    matched: Vec<usize>,
    /// Text that is not passed on yet: as long as the longest beginning of a stop string that it ends with.
    held: String,
    found: bool,
}

/// What became of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// What may be sent now.
    pub text: String,
    /// Which of the stop strings was found; nothing passes after it.
    pub stop: Option<usize>,
}

#[derive(Debug)]
struct Stop {
    text: Vec<u8>,
    /// Of the first `i + 1` bytes: the longest proper beginning that they also end with.
    fall_back: Vec<usize>,
}

impl StopStrings {
    /// # Errors
    /// `BadRequest` for an empty string, which would be found at once, and for too many or too long ones.
    pub fn new(stops: &[String]) -> Result<StopStrings> {
        if stops.len() > MOST {
            let message = format!("stop holds {} strings; at most {MOST} are possible", stops.len());
            return Err(Error::bad_param("stop", message));
        }
        if let Some(at) = stops.iter().position(String::is_empty) {
            return Err(Error::bad_param("stop", format!("stop string {at} is empty")));
        }
        let bytes: usize = stops.iter().map(String::len).sum();
        if bytes > MOST_BYTES {
            let message = format!("stop holds {bytes} bytes; at most {MOST_BYTES} are possible");
            return Err(Error::bad_param("stop", message));
        }
        let matched = vec![0; stops.len()];
        let stops = stops.iter().map(|stop| Stop::new(stop)).collect();
        Ok(StopStrings { stops, matched, held: String::new(), found: false })
    }

    /// Takes the next piece of the text. After a stop string was found nothing passes any more.
    pub fn push(&mut self, text: &str) -> Passed {
        if self.found {
            return Passed { text: String::new(), stop: None };
        }
        if self.stops.is_empty() {
            return Passed { text: text.to_owned(), stop: None };
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            if let Some(stop) = self.advance(byte) {
                let begins = before + at + 1 - self.stops[stop].text.len();
                self.held.truncate(begins);
                self.found = true;
                return Passed { text: std::mem::take(&mut self.held), stop: Some(stop) };
            }
        }
        let keep = self.matched.iter().copied().max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Passed { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// What was held back, once the text has ended without its stop string being complete.
    pub fn finish(&mut self) -> String {
        self.found = true;
        std::mem::take(&mut self.held)
    }

    /// The longest string that is complete with this byte.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        let mut longest: Option<usize> = None;
        for (at, matched) in self.matched.iter_mut().enumerate() {
            *matched = self.stops[at].after(*matched, byte);
            let complete = *matched == self.stops[at].text.len();
            if complete && longest.is_none_or(|best| self.stops[best].text.len() < self.stops[at].text.len()) {
                longest = Some(at);
            }
        }
        longest
    }
}

impl Stop {
    fn new(text: &str) -> Stop {
        let text = text.as_bytes().to_vec();
        let mut fall_back = vec![0; text.len()];
        for at in 1..text.len() {
            let mut length = fall_back[at - 1];
            while length > 0 && text[length] != text[at] {
                length = fall_back[length - 1];
            }
            fall_back[at] = length + usize::from(text[length] == text[at]);
        }
        Stop { text, fall_back }
    }

    /// How many bytes of it a text ends with after one more, of which it ended with so many: less than all.
    fn after(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.text[matched] != byte {
            matched = self.fall_back[matched - 1];
        }
        matched + usize::from(self.text[matched] == byte)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(list: &[&str]) -> StopStrings {
        StopStrings::new(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    /// All the text before the first stop string, by looking at every end in turn.
    fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            let Some(whole) = text.get(..end) else { continue };
            let found = (0..stops.len()).filter(|&i| whole.ends_with(&stops[i]));
            // `max_by_key` keeps the last of equals, the matcher the first
            if let Some(longest) = found.rev().max_by_key(|&i| stops[i].len()) {
                return (whole[..end - stops[longest].len()].to_owned(), Some(longest));
            }
        }
        (text.to_owned(), None)
    }

    /// The longest end of `text` that begins a stop string.
    fn could_begin(text: &str, stops: &[String]) -> usize {
        let begins =
            |length: &usize| stops.iter().any(|s| s.as_bytes().starts_with(&text.as_bytes()[text.len() - length..]));
        (0..=text.len()).rev().find(begins).unwrap_or(0)
    }

    /// Few letters, so that strings overlap; some of several bytes that share their first.
    fn letters(length: std::ops::Range<usize>) -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof!["a", "b", "é", "è", "🎉", "🎈"], length).prop_map(|c| c.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn pieces_find_what_a_search_of_the_whole_text_finds(
            pieces in proptest::collection::vec(letters(0..6), 0..8),
            stops in proptest::collection::vec(letters(1..6), 0..4),
        ) {
            let whole = pieces.concat();
            let mut matcher = StopStrings::new(&stops).unwrap();
            let (mut sent, mut seen, mut hit) = (String::new(), String::new(), None);
            for piece in &pieces {
                let passed = matcher.push(piece);
                sent.push_str(&passed.text);
                seen.push_str(piece);
                if passed.stop.is_some() {
                    hit = passed.stop;
                    break;
                }
                prop_assert_eq!(seen.len() - sent.len(), could_begin(&seen, &stops), "held back in {:?}", &seen);
            }
            sent.push_str(&matcher.finish());
            prop_assert_eq!((sent, hit), naive(&whole, &stops));
        }
    }

    #[test]
    fn a_string_that_straddles_pieces_is_held_back_and_found() {
        let mut matcher = stops(&["</done>"]);
        assert_eq!(matcher.push("yes <"), Passed { text: "yes ".into(), stop: None });
        assert_eq!(matcher.push("/do"), Passed { text: String::new(), stop: None });
        assert_eq!(matcher.push("ne> and more"), Passed { text: String::new(), stop: Some(0) });
        assert_eq!(matcher.push("even more"), Passed { text: String::new(), stop: None });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_let_go() {
        let mut matcher = stops(&["aab"]);
        assert_eq!(matcher.push("aa").text, "");
        assert_eq!(matcher.push("a").text, "a");
        assert_eq!(matcher.push("c").text, "aac");
        assert_eq!(matcher.push("x aa").text, "x ");
        assert_eq!(matcher.finish(), "aa");
    }

    #[test]
    fn the_first_to_be_complete_wins_and_of_equals_the_longest() {
        assert_eq!(stops(&["long stop", "g"]).push("a long stop"), Passed { text: "a lon".into(), stop: Some(1) });
        assert_eq!(stops(&["bc", "abc"]).push("xabc"), Passed { text: "x".into(), stop: Some(1) });
    }

    #[test]
    fn a_string_that_repeats_itself_is_found_where_it_begins_anew() {
        assert_eq!(stops(&["aabaaac"]).push("aabaaabaaac"), Passed { text: "aaba".into(), stop: Some(0) });
    }

    #[test]
    fn empty_strings_and_too_many_are_refused() {
        let error = StopStrings::new(&["a".into(), String::new()]).unwrap_err().to_string();
        assert!(error.contains("stop string 1 is empty"), "{error}");
        let error = StopStrings::new(&vec!["a".to_owned(); 65]).unwrap_err().to_string();
        assert!(error.contains("65 strings; at most 64"), "{error}");
        let error = StopStrings::new(&["a".repeat(16_000), "b".repeat(400)]).unwrap_err().to_string();
        assert!(error.contains("16400 bytes; at most 16384"), "{error}");
        assert!(StopStrings::new(&["a".repeat(16 << 10)]).is_ok());
        assert_eq!(stops(&[]).push("all of it"), Passed { text: "all of it".into(), stop: None });
    }
}
