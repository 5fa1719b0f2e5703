//! Which tokens end an answer.
//!
//! It knows the settings of Hugging Face's files. It must not know tokenizers, nor where files come from: those of a GGUF are
//! made from its metadata.

use std::collections::BTreeSet;

use serde_json::Value;

const GENERATION: &str = "generation_config.json";
const MODEL: &str = "config.json";
const TOKENIZER: &str = "tokenizer_config.json";

/// A file, and what is wrong with it.
type WrongFile = (&'static str, String);

/// Where a version says what ends an answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct EndSources<'a> {
    /// `generation_config.json`, whose `eos_token_id` is one id or a list.
    pub generation_config: Option<&'a Value>,
    /// `config.json`: its `eos_token_id` counts where `generation_config.json` has none, as in transformers.
    pub config: Option<&'a Value>,
    /// `tokenizer_config.json`: the token that `eos_token` spells, as in vLLM.
    pub tokenizer_config: Option<&'a Value>,
}

impl EndSources<'_> {
    /// The ids, ascending. None of them at all: answers end by their length.
    ///
    /// `id_of` finds a token's id by its spelling; `vocabulary` is how many ids there are.
    ///
    /// # Errors
    /// Says which setting of which file is not an id of this vocabulary.
    pub fn ends(&self, id_of: impl Fn(&str) -> Option<u32>, vocabulary: usize) -> Result<Vec<u32>, WrongFile> {
        let ids = match self.generation_config.and_then(eos_token_id) {
            Some(ids) => Some((GENERATION, ids)),
            None => self.config.and_then(eos_token_id).map(|ids| (MODEL, ids)),
        };
        let mut ends: BTreeSet<u32> = match ids {
            None => BTreeSet::new(),
            Some((file, ids)) => read_ids(ids, vocabulary).map_err(|why| (file, why))?.into_iter().collect(),
        };
        let token = self.tokenizer_config.and_then(|config| config.get("eos_token")).filter(|token| !token.is_null());
        if let Some(token) = token {
            let wrong = |why: String| (TOKENIZER, format!("'eos_token' is {why}"));
            let spelled = token.get("content").unwrap_or(token).as_str();
            let spelled = spelled.ok_or_else(|| wrong(format!("{token}, no token")))?;
            let id = id_of(spelled);
            let id = id.ok_or_else(|| wrong(format!("{spelled:?}, which the tokenizer does not have")))?;
            if id as usize >= vocabulary {
                return Err(wrong(format!("{spelled:?}, the token {id}, but the vocabulary has {vocabulary} tokens")));
            }
            ends.insert(id);
        }
        Ok(ends.into_iter().collect())
    }
}

fn eos_token_id(config: &Value) -> Option<&Value> {
    config.get("eos_token_id").filter(|ids| !ids.is_null())
}

fn read_ids(ids: &Value, vocabulary: usize) -> Result<Vec<u32>, String> {
    let one = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let all = match ids {
        Value::Array(list) => list.iter().map(one).collect(),
        single => one(single).map(|id| vec![id]),
    };
    let all: Vec<u32> = all.ok_or_else(|| format!("'eos_token_id' is {ids}, expected an id or a list of ids"))?;
    match all.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => Err(format!("'eos_token_id' names the token {id}, but the vocabulary has {vocabulary} tokens")),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id_of(token: &str) -> Option<u32> {
        ["<s>", "</s>", "<|eot_id|>"].iter().position(|t| *t == token).map(|at| at as u32)
    }

    #[test]
    fn all_that_the_files_say_ends_an_answer() {
        let (generation, config) = (json!({"eos_token_id": [7, 5]}), json!({"eos_token_id": 3}));
        let tokenizer = json!({"eos_token": {"content": "<|eot_id|>"}});
        let all = EndSources {
            generation_config: Some(&generation),
            config: Some(&config),
            tokenizer_config: Some(&tokenizer),
        };
        assert_eq!(all.ends(id_of, 10), Ok(vec![2, 5, 7]));
        let none = json!({"eos_token_id": null});
        assert_eq!(EndSources { generation_config: Some(&none), ..all }.ends(id_of, 10), Ok(vec![2, 3]));
        let plain = json!({"eos_token": "</s>"});
        let only = EndSources { tokenizer_config: Some(&plain), ..EndSources::default() };
        assert_eq!(only.ends(id_of, 10), Ok(vec![1]));
        assert_eq!(EndSources::default().ends(id_of, 10), Ok(vec![]));
    }

    #[test]
    fn what_is_no_token_of_the_vocabulary_is_refused() {
        let told = |config: Value, tokenizer: Value| {
            let sources =
                EndSources { config: Some(&config), tokenizer_config: Some(&tokenizer), ..EndSources::default() };
            sources.ends(id_of, 10).unwrap_err()
        };
        for (config, tokenizer, file, says) in [
            (json!({"eos_token_id": 10}), json!({}), MODEL, "the token 10, but the vocabulary has 10 tokens"),
            (json!({"eos_token_id": -1}), json!({}), MODEL, "'eos_token_id' is -1"),
            (json!({"eos_token_id": [1, "a"]}), json!({}), MODEL, "expected an id or a list"),
            (json!({}), json!({"eos_token": "<end>"}), TOKENIZER, "\"<end>\", which the tokenizer does not have"),
            (json!({}), json!({"eos_token": 3}), TOKENIZER, "'eos_token' is 3"),
        ] {
            let (blamed, why) = told(config, tokenizer);
            assert!(blamed == file && why.contains(says), "{blamed}: {why}");
        }
        let beyond = json!({"eos_token_id": 10});
        let sources = EndSources { generation_config: Some(&beyond), ..EndSources::default() };
        assert_eq!(sources.ends(id_of, 10).unwrap_err().0, GENERATION);
        let last = json!({"eos_token": "<|eot_id|>"});
        let sources = EndSources { tokenizer_config: Some(&last), ..EndSources::default() };
        assert!(sources.ends(id_of, 2).unwrap_err().1.contains("the token 2, but the vocabulary has 2"));
    }
}
