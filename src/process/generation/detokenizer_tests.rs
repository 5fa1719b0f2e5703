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

/// All at once, but that a run of byte tokens keeps what characters it has where the decoder takes text in parts.
fn decoded(tokenizer: &Tokenizer, decoder: &TextDecoder, ids: &[u32], skip: bool) -> String {
    let byte = |id: &u32| match decoder.pieces.get(*id as usize)?.kind {
        Kind::Byte(byte) => Some(byte),
        Kind::Special if !skip => decoder.join.byte(std::str::from_utf8(decoder.letters_of(*id)).ok()?),
        _ => None,
    };
    let nothing = |id: &u32| decoder.pieces.get(*id as usize).is_none_or(|piece| piece.kind == Kind::Nothing);
    let seen: Vec<u32> = ids.iter().copied().filter(|id| !(nothing(id) || skip && decoder.is_special(*id))).collect();
    if !decoder.join.takes_parts() {
        return tokenizer.decode(ids, skip).unwrap();
    }
    // What is no part of a character becomes a token that is in the text nowhere else, and is put right there.
    let mended = |bad: u32| {
        let mut mended = Vec::new();
        for run in seen.chunk_by(|a, b| byte(a).is_some() == byte(b).is_some()) {
            let bytes: Vec<u8> = run.iter().filter_map(byte).collect();
            if bytes.is_empty() {
                mended.extend_from_slice(run);
            }
            for chunk in bytes.utf8_chunks() {
                mended.extend(chunk.valid().bytes().map(|byte| 3 + u32::from(byte)));
                mended.extend(chunk.invalid().iter().map(|_| bad));
            }
        }
        mended
    };
    let mut stand_ins = ["<|im_start|>", "<|im_end|>", "<mask>", "<think>", "hello", "hell"].into_iter();
    stand_ins
        .find_map(|spelling| {
            let bad = tokenizer.token_to_id(spelling).unwrap();
            let text = tokenizer.decode(&mended(bad), false).unwrap();
            let there = mended(bad).iter().filter(|id| **id == bad).count();
            let alone = !seen.contains(&bad) && text.matches(spelling).count() == there;
            alone.then(|| text.replace(spelling, "\u{fffd}"))
        })
        .unwrap()
}

fn agrees(tokenizer: &Tokenizer, decoder: &Arc<TextDecoder>, ids: &[u32], prompt: usize) -> Result<(), TestCaseError> {
    for (specials, skip) in [(Specials::Skip, true), (Specials::Keep, false)] {
        let whole = decoded(tokenizer, decoder, ids, skip);
        let mut detokenizer = Detokenizer::new(Arc::clone(decoder), specials);
        prop_assert_eq!(streamed(&mut detokenizer, ids), whole.as_str(), "ids {:?}", ids);
        let (prompt, answer) = ids.split_at(prompt.min(ids.len()));
        let mut detokenizer = Detokenizer::after(Arc::clone(decoder), specials, prompt);
        let continued = streamed(&mut detokenizer, answer);
        let told = whole.ends_with(&continued);
        prop_assert!(told, "{:?} after {:?} gives {:?} of {:?}", answer, prompt, continued, whole);
        // Where the prompt ends with a character, the answer is exactly what it adds.
        let before = decoded(tokenizer, decoder, prompt, skip);
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
            (0..400).filter_map(char::from_u32).find(|c| super::super::steps::byte_of_letter(*c) == Some(b)).unwrap()
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

/// A run of them may be all of an answer, and stop strings are looked for in it.
#[test]
fn characters_of_byte_tokens_come_as_they_are_complete_and_are_told_as_bytes() {
    let (tokenizer, decoder) = decoder(Sort::Llama);
    let ids: Vec<u32> = "🙂é".bytes().map(|byte| 3 + u32::from(byte)).collect();
    let mut detokenizer = Detokenizer::new(Arc::clone(&decoder), Specials::Skip);
    let pushed: Vec<_> = ids.iter().map(|id| detokenizer.push(*id)).collect();
    assert_eq!(pushed, [None, None, None, Some("🙂".to_owned()), None, Some("é".to_owned())]);
    // Not UTF-8: one for each byte, and the character that follows.
    let of = |bytes: &[u8]| bytes.iter().map(|byte| 3 + u32::from(*byte)).collect::<Vec<_>>();
    assert_eq!(streamed(&mut detokenizer, &of(b"\xe5\x9fz\xf0")), "\u{fffd}\u{fffd}z\u{fffd}");
    assert_eq!((decoder.bytes_of(ids[0]), decoder.letters_of(ids[0])), (&[0xf0][..], &b"<0xF0>"[..]));
    let word = tokenizer.token_to_id("▁w").unwrap();
    assert_eq!((decoder.bytes_of(word), decoder.letters_of(word)), (&b" w"[..], &b" w"[..]));
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
fn special_tokens_that_are_kept_are_spelled_and_no_others() {
    for sort in Sort::ALL {
        let (tokenizer, decoder) = decoder(sort);
        let [end, start] = ["<|im_end|>", "<|im_start|>"].map(|token| tokenizer.token_to_id(token).unwrap());
        let mut detokenizer = Detokenizer::new(decoder, Specials::Skip).keeping([start].into());
        let text = streamed(&mut detokenizer, &[end, start, end]);
        assert_eq!(text.trim(), "<|im_start|>", "{sort:?}");
    }
}

#[test]
fn decoders_that_need_the_whole_text_are_refused_by_name() {
    let tokenizer = Tokenizer::from_file(fixture("bert-classify").join("tokenizer.json")).unwrap();
    let error = TextDecoder::new(&tokenizer).unwrap_err();
    assert!(error.contains("WordPiece cannot be run token by token"), "{error}");
}
