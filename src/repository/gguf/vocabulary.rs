//! The tokens of a file, what each is, and those with a role.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::gguf::{Metadata, Strings, shown};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
/// What is tried for a token takes time with the square of its length; no vocabulary has any so long. Bytes.
const LONGEST_TOKEN: usize = 1024;

/// Several times as many tokens, or merges of them, as the largest vocabulary has: what is made of one takes a hundred bytes.
pub(super) const MOST: usize = 2_000_000;

/// `llama_token_type` of llama.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn of(number: i64) -> Option<Kind> {
        Some(match number {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => return None,
        })
    }
}

pub(super) struct Vocabulary<'a> {
    tokens: &'a Strings,
    kinds: Vec<Kind>,
    /// All but the unused ones, which no text becomes.
    ids: HashMap<&'a str, u32>,
    /// By what Hugging Face calls the role: `bos`, `eos`, `unk`, `pad`.
    special: HashMap<&'static str, u32>,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self, String> {
        let tokens = metadata.strings(TOKENS)?.ok_or_else(|| format!("{TOKENS} is missing"))?;
        if tokens.is_empty() {
            return Err(format!("{TOKENS} is empty"));
        }
        if tokens.len() > MOST {
            return Err(format!("{TOKENS} has {} tokens, the limit is {MOST}", tokens.len()));
        }
        let kinds = kinds(metadata, tokens.len())?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, (token, kind)) in tokens.iter().zip(&kinds).enumerate() {
            if token.len() > LONGEST_TOKEN {
                return Err(format!("{TOKENS}: token {id} has {} bytes, the limit is {LONGEST_TOKEN}", token.len()));
            }
            if *kind == Kind::Unused {
                continue;
            }
            if let Some(first) = ids.insert(token, id as u32) {
                return Err(format!("{TOKENS}: token {} is there twice, as {first} and {id}", shown(token)));
            }
        }
        let mut special = HashMap::new();
        for (role, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            let Some(id) = metadata.u32(&key)? else { continue };
            match tokens.get(id as usize) {
                Some(_) => special.insert(role, id),
                None => return Err(format!("{key} is {id}, the vocabulary has {} tokens", tokens.len())),
            };
        }
        Ok(Vocabulary { tokens, kinds, ids, special })
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Every token that a text may become: id and text.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &'a str)> {
        let used = self.tokens.iter().zip(&self.kinds).enumerate().filter(|(_, (_, kind))| **kind != Kind::Unused);
        used.map(|(id, (token, _))| (id as u32, token))
    }

    /// Id and text of the token with this role.
    pub(super) fn special(&self, role: &str) -> Option<(u32, &'a str)> {
        let id = *self.special.get(role)?;
        self.tokens.get(id as usize).map(|text| (id, text))
    }

    /// `vocab` of `tokenizer.json`.
    pub(super) fn json(&self) -> Value {
        Value::Object(self.iter().map(|(id, token)| (token.to_owned(), json!(id))).collect::<Map<_, _>>())
    }

    /// Tokens that are found in a text before anything else is done with it.
    pub(super) fn added(&self) -> Vec<Value> {
        let kinds = &self.kinds;
        self.iter()
            .filter_map(|(id, token)| {
                let special = match kinds.get(id as usize)? {
                    Kind::Control | Kind::Unknown => true,
                    Kind::UserDefined => false,
                    Kind::Normal | Kind::Unused | Kind::Byte => return None,
                };
                // An empty one would be found everywhere.
                let found = !token.is_empty();
                found.then(|| {
                    json!({
                        "id": id,
                        "content": token,
                        "single_word": false,
                        "lstrip": false,
                        "rstrip": false,
                        "normalized": false,
                        "special": special,
                    })
                })
            })
            .collect()
    }
}

/// What each token is: normal where the file does not say.
fn kinds(metadata: &Metadata, tokens: usize) -> Result<Vec<Kind>, String> {
    let Some(numbers) = metadata.numbers(KINDS)? else { return Ok(vec![Kind::Normal; tokens]) };
    if numbers.len() != tokens {
        return Err(format!("{KINDS} has {} types for {tokens} tokens", numbers.len()));
    }
    let numbers = numbers.integers().ok_or_else(|| format!("{KINDS}: expected whole numbers"))?;
    let kind = |(id, number): (usize, &i64)| {
        Kind::of(*number).ok_or_else(|| format!("{KINDS}: token {id} is of the type {number}, which is unknown"))
    };
    numbers.iter().enumerate().map(kind).collect()
}
