use std::path::PathBuf;

use tokenizers::Tokenizer;

use super::*;
use crate::gguf::writer::{Given, Writer};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn built(files: &TokenizerFiles) -> Tokenizer {
    Tokenizer::from_bytes(serde_json::to_vec(&files.tokenizer).unwrap()).unwrap()
}

/// Texts, and the ids that others give them.
fn cases(name: &str) -> Vec<(String, Vec<u32>)> {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn agrees(tokenizer: &Tokenizer, name: &str) {
    let cases = cases(name);
    assert!(cases.len() > 20, "{name}");
    for (text, expected) in cases {
        let found = tokenizer.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(found.get_ids(), expected, "{name}: {text:?}");
    }
}

#[test]
fn every_pre_tokenizer_cuts_as_llama_cpp_cuts() {
    for pre in ["default", "gpt-2", "smollm", "llama-bpe", "qwen2"] {
        let files = TokenizerFiles::read(&fixture(&format!("bytes-{pre}.gguf"))).unwrap();
        agrees(&built(&files), &format!("bytes-{pre}.json"));
    }
}

#[test]
fn sentence_piece_is_joined_as_llama_cpp_and_sentence_piece_join_it() {
    let files = TokenizerFiles::read(&fixture("pieces.gguf")).unwrap();
    agrees(&built(&files), "pieces.json");
}

#[test]
fn texts_come_back_from_their_ids() {
    for name in ["bytes-llama-bpe", "bytes-smollm", "pieces"] {
        let tokenizer = built(&TokenizerFiles::read(&fixture(&format!("{name}.gguf"))).unwrap());
        for (text, ids) in cases(&format!("{name}.json")) {
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
        }
    }
}

/// The vocabulary of the model that `models/fetch smollm2` brings, against llama.cpp and Hugging Face's tokenizer.
#[test]
fn smollm2_is_cut_as_llama_cpp_and_its_publishers_cut_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/smollm2/q4_1/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        eprintln!("skipped: smollm2 is not there; models/fetch smollm2 brings it");
        return;
    }
    let files = TokenizerFiles::read(&path).unwrap();
    agrees(&built(&files), "smollm2.json");
    assert_eq!(files.config["eos_token"], "<|im_end|>");
    assert_eq!(files.config["add_bos_token"], false);
    assert!(files.config["chat_template"].as_str().unwrap().contains("<|im_start|>"));
}

/// Three words and what they are made of.
fn bytes() -> Writer {
    Writer::new()
        .with("tokenizer.ggml.model", "gpt2")
        .with("tokenizer.ggml.pre", "gpt-2")
        .with("tokenizer.ggml.tokens", Given::strings(&["a", "b", "ab", "<s>", "</s>", "<x>", "[PAD]", "[PAD]"]))
        .with("tokenizer.ggml.token_type", Given::i32s(&[1, 1, 1, 3, 3, 4, 5, 5]))
        .with("tokenizer.ggml.merges", Given::strings(&["a b", "a b"]))
        .with("tokenizer.ggml.bos_token_id", 3u32)
        .with("tokenizer.ggml.eos_token_id", 4u32)
}

fn pieces() -> Writer {
    bytes()
        .instead("tokenizer.ggml.model", "llama")
        .with("tokenizer.ggml.scores", Given::f32s(&[0.0, -1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
}

fn read(writer: &Writer) -> Result<TokenizerFiles, String> {
    let bytes = writer.bytes();
    TokenizerFiles::of(&gguf::read(bytes.as_slice(), bytes.len() as u64)?.metadata)
}

fn refused(writer: &Writer) -> String {
    read(writer).unwrap_err()
}

fn ids(writer: &Writer, text: &str) -> Vec<u32> {
    built(&read(writer).unwrap()).encode(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn special_tokens_stand_where_the_file_says() {
    let with = |bos: bool, eos: bool| {
        bytes().with("tokenizer.ggml.add_bos_token", bos).with("tokenizer.ggml.add_eos_token", eos)
    };
    assert_eq!(ids(&bytes(), "ab"), [2]);
    assert_eq!(ids(&with(true, false), "ab"), [3, 2]);
    assert_eq!(ids(&with(false, true), "ab"), [2, 4]);
    assert_eq!(ids(&with(true, true), "ab"), [3, 2, 4]);
    // Llama's begin with one unless told otherwise, and what is not there is not added.
    assert_eq!(ids(&bytes().instead("tokenizer.ggml.pre", "llama-bpe"), "ab"), [3, 2]);
    assert_eq!(ids(&with(true, true).without("tokenizer.ggml.bos_token_id"), "ab"), [2, 4]);
    assert_eq!(read(&pieces()).unwrap().config["add_bos_token"], true);
}

#[test]
fn tokens_are_found_in_texts_by_what_they_are() {
    assert_eq!(ids(&bytes(), "ab</s>a<x>b"), [2, 4, 0, 5, 1]);
    let tokenizer = built(&read(&bytes()).unwrap());
    assert_eq!(tokenizer.decode(&[2, 4, 5], true).unwrap(), "ab<x>");
    // Unused ones are no text's.
    assert_eq!(tokenizer.token_to_id("[PAD]"), None);
}

#[test]
fn what_the_configuration_of_hugging_face_would_say_is_said() {
    let files = read(&bytes().with("tokenizer.chat_template", "{{ x }}").with("tokenizer.ggml.unknown_token_id", 0u32));
    assert_eq!(
        files.unwrap().config,
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "add_bos_token": false,
            "add_eos_token": false,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "a",
            "chat_template": "{{ x }}",
        })
    );
}

#[test]
fn tokenizers_that_are_not_read_are_named() {
    assert!(
        refused(&bytes().instead("tokenizer.ggml.model", "bert")).contains("'bert' is not read; gpt2 and llama are")
    );
    let unknown = refused(&bytes().instead("tokenizer.ggml.pre", "tekken"));
    assert!(unknown.contains("the pre-tokenizer 'tekken' is not known"), "{unknown}");
    // As llama.cpp: a file without the key is an old one.
    assert!(read(&bytes().without("tokenizer.ggml.pre")).is_ok());
    assert_eq!(refused(&bytes().without("tokenizer.ggml.model")), "tokenizer.ggml.model is missing");
}

#[test]
fn vocabularies_that_do_not_add_up_are_refused() {
    let long = "x".repeat(1025);
    for (writer, why) in [
        (bytes().without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens is missing"),
        (bytes().instead("tokenizer.ggml.tokens", Given::strings::<&str>(&[])), "is empty"),
        (bytes().instead("tokenizer.ggml.tokens", Given::i32s(&[1])), "expected an array of strings"),
        (bytes().instead("tokenizer.ggml.token_type", Given::i32s(&[1])), "has 1 types for 8 tokens"),
        (bytes().instead("tokenizer.ggml.token_type", Given::i32s(&[1, 1, 1, 3, 3, 4, 5, 7])), "of the type 7"),
        (bytes().instead("tokenizer.ggml.token_type", Given::i32s(&[1; 8])), "'[PAD]' is there twice, as 6 and 7"),
        (bytes().instead("tokenizer.ggml.token_type", Given::f32s(&[1.0; 8])), "expected whole numbers"),
        (bytes().instead("tokenizer.ggml.bos_token_id", 8u32), "bos_token_id is 8, the vocabulary has 8 tokens"),
        (bytes().without("tokenizer.ggml.merges"), "tokenizer.ggml.merges is missing"),
        (bytes().instead("tokenizer.ggml.merges", Given::strings(&["ab"])), "'ab' is no pair"),
        (bytes().instead("tokenizer.ggml.merges", Given::strings(&[""])), "'' is no pair"),
        (bytes().instead("tokenizer.ggml.merges", Given::strings(&["a c"])), "'a c' is not of tokens, or makes none"),
        (bytes().instead("tokenizer.ggml.merges", Given::strings(&["b a"])), "'b a' is not of tokens, or makes none"),
        (
            bytes().instead("tokenizer.ggml.tokens", Given::strings(&[&long])).without("tokenizer.ggml.token_type"),
            "1025 bytes",
        ),
        (pieces().without("tokenizer.ggml.scores"), "tokenizer.ggml.scores is missing"),
        (pieces().instead("tokenizer.ggml.scores", Given::f32s(&[0.0])), "has 1 scores for 8 tokens"),
        (pieces().instead("tokenizer.ggml.scores", Given::f32s(&[f32::NAN; 8])), "expected numbers of f32"),
        (bytes().with("tokenizer.chat_template", 7u32), "expected a string, found 7"),
    ] {
        let error = refused(&writer);
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn vocabularies_that_are_far_too_large_are_refused() {
    use crate::repository::gguf::vocabulary::MOST;
    let many = vec![""; MOST + 1];
    let tokens = bytes().instead("tokenizer.ggml.tokens", Given::strings(&many));
    assert!(refused(&tokens).contains("has 2000001 tokens, the limit is 2000000"), "{}", refused(&tokens));
    let merges = bytes().instead("tokenizer.ggml.merges", Given::strings(&many));
    assert!(refused(&merges).contains("has 2000001 pairs, the limit is 2000000"), "{}", refused(&merges));
    // Each of a character's repetitions is made of two shorter ones in as many ways as it is long.
    let repeated: Vec<String> =
        ('a'..='h').flat_map(|letter| (1..=1000).map(move |times| letter.to_string().repeat(times))).collect();
    let pieces = pieces()
        .instead("tokenizer.ggml.tokens", Given::strings(&repeated))
        .without("tokenizer.ggml.token_type")
        .instead("tokenizer.ggml.scores", Given::f32s(&vec![0.0; repeated.len()]));
    assert!(refused(&pieces).contains("in more than 2000000 ways"));
}
