//! Which tokens end an answer.
//!
//! It knows the settings of Hugging Face's files and of a GGUF's metadata. It must not know files or tokenizers.

use std::collections::BTreeSet;

use serde_json::Value;

/// Where a version says what ends an answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct EndSources<'a> {
    /// `generation_config.json`, whose `eos_token_id` is one id or a list.
    pub generation_config: Option<&'a Value>,
    /// `config.json`: its `eos_token_id` counts where `generation_config.json` has none, as in transformers.
    pub config: Option<&'a Value>,
    /// `tokenizer_config.json`: the token that `eos_token` spells, as in vLLM.
    pub tokenizer_config: Option<&'a Value>,
    /// A GGUF's `tokenizer.ggml.eos_token_id`, `eot_token_id` and `eom_token_id`.
    pub gguf: &'a [u32],
}

impl EndSources<'_> {
    /// The ids, ascending. None of them at all: answers end by their length.
    ///
    /// `id_of` finds a token's id by its spelling; `vocabulary` is how many ids there are.
    ///
    /// # Errors
    /// Says which setting is not an id of this vocabulary.
    pub fn ends(&self, id_of: impl Fn(&str) -> Option<u32>, vocabulary: usize) -> Result<Vec<u32>, String> {
        let mut ends: BTreeSet<u32> = self.gguf.iter().copied().collect();
        match self.generation_config.and_then(eos_token_id) {
            Some(ids) => ends.extend(read_ids(ids, "generation_config.json")?),
            None => {
                let ids = self.config.and_then(eos_token_id);
                ends.extend(ids.map(|ids| read_ids(ids, "config.json")).transpose()?.unwrap_or_default());
            }
        }
        let token = self.tokenizer_config.and_then(|config| config.get("eos_token")).filter(|token| !token.is_null());
        if let Some(token) = token {
            let spelled = token.get("content").unwrap_or(token).as_str();
            let spelled = spelled.ok_or_else(|| format!("tokenizer_config.json: 'eos_token' is {token}, no token"))?;
            let missing =
                || format!("tokenizer_config.json: 'eos_token' is {spelled:?}, which the tokenizer does not have");
            ends.insert(id_of(spelled).ok_or_else(missing)?);
        }
        match ends.iter().find(|id| **id as usize >= vocabulary) {
            Some(id) => Err(format!("the token {id} is to end answers, but the vocabulary has {vocabulary} tokens")),
            None => Ok(ends.into_iter().collect()),
        }
    }
}

fn eos_token_id(config: &Value) -> Option<&Value> {
    config.get("eos_token_id").filter(|ids| !ids.is_null())
}

fn read_ids(ids: &Value, file: &str) -> Result<Vec<u32>, String> {
    let one = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let all = match ids {
        Value::Array(list) => list.iter().map(one).collect(),
        single => one(single).map(|id| vec![id]),
    };
    all.ok_or_else(|| format!("{file}: 'eos_token_id' is {ids}, expected an id or a list of ids"))
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
            gguf: &[9],
        };
        assert_eq!(all.ends(id_of, 10), Ok(vec![2, 5, 7, 9]));
        let none = json!({"eos_token_id": null});
        assert_eq!(EndSources { generation_config: Some(&none), ..all }.ends(id_of, 10), Ok(vec![2, 3, 9]));
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
        assert!(told(json!({"eos_token_id": 10}), json!({})).contains("the vocabulary has 10 tokens"));
        assert!(told(json!({"eos_token_id": -1}), json!({})).contains("config.json: 'eos_token_id' is -1"));
        assert!(told(json!({"eos_token_id": [1, "a"]}), json!({})).contains("expected an id or a list"));
        assert!(
            told(json!({}), json!({"eos_token": "<end>"})).contains("\"<end>\", which the tokenizer does not have")
        );
        assert!(told(json!({}), json!({"eos_token": 3})).contains("'eos_token' is 3"));
    }
}
