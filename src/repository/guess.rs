//! What a model is for, told from Hugging Face's files where no `model.toml` says it.
//!
//! A guess for people's convenience: `cutover pull` writes it down and `cutover inspect` starts from it. The server
//! never guesses.

use serde_json::Value;

use crate::value::Task;

/// The task that `config.json` speaks of. `modules`: whether the folder has sentence-transformers' `modules.json`.
///
/// # Errors
/// What the files say, where that is not a task that is known here.
pub fn task_of(config: &Value, modules: bool) -> Result<Task, String> {
    let names = config["architectures"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
    let ends = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
    if ends("ForSequenceClassification") {
        // Checkpoints with one label are cross-encoders; a regression that is none is told with `task`.
        return Ok(if labels(config) == 1 { Task::Rerank } else { Task::Classify });
    }
    if ends("ForImageClassification") {
        return Ok(Task::ImageClassify);
    }
    if ends("ForCausalLM") || ends("LMHeadModel") {
        return Ok(Task::Generate);
    }
    if modules || ends("Model") || ends("ForMaskedLM") {
        return Ok(Task::Embed);
    }
    match names.as_slice() {
        [] => Err("config.json names no architectures".to_owned()),
        names => Err(format!("the architecture {} is of no known task", names.join(", "))),
    }
}

/// As many as `id2label` or `num_labels` says; transformers' default is 2.
fn labels(config: &Value) -> usize {
    let named = config["id2label"].as_object().map(serde_json::Map::len);
    let counted = || config["num_labels"].as_u64().and_then(|count| usize::try_from(count).ok());
    named.or_else(counted).unwrap_or(2)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_task_is_told_from_architecture_labels_and_modules() {
        let named = |name: &str| json!({"architectures": [name]});
        let mut reranker = named("XLMRobertaForSequenceClassification");
        reranker["id2label"] = json!({"0": "LABEL_0"});
        for (config, modules, task) in [
            (named("BertModel"), true, Task::Embed),
            (named("BertModel"), false, Task::Embed),
            (named("BertForMaskedLM"), false, Task::Embed),
            (json!({}), true, Task::Embed),
            (named("DistilBertForSequenceClassification"), false, Task::Classify),
            (reranker, false, Task::Rerank),
            (json!({"architectures": ["BertForSequenceClassification"], "num_labels": 1}), false, Task::Rerank),
            (named("ViTForImageClassification"), false, Task::ImageClassify),
            (named("LlamaForCausalLM"), false, Task::Generate),
            (named("GPT2LMHeadModel"), false, Task::Generate),
        ] {
            assert_eq!(task_of(&config, modules), Ok(task), "{config}");
        }
    }

    #[test]
    fn what_cannot_be_told_says_what_was_found() {
        let unknown = task_of(&json!({"architectures": ["WhisperForConditionalGeneration"]}), false).unwrap_err();
        assert!(unknown.contains("WhisperForConditionalGeneration"), "{unknown}");
        assert!(task_of(&json!({}), false).unwrap_err().contains("no architectures"));
        assert!(task_of(&json!({"architectures": "BertModel"}), false).is_err());
    }
}
