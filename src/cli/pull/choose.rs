//! Which of a repository's files make a version, and whether it is one that can be served: pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::hub::Listing;
use crate::error::{Error, Result};
use crate::model::FAMILIES;
use crate::repository::safe_relative;

const CONFIG: &str = "config.json";
pub(super) const MODULES: &str = "modules.json";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const SHARDS: &str = "model.safetensors.index.json";

/// Files at the top that are taken where they are there.
const SMALL: [&str; 8] = [
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "generation_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
];
/// Where sentence-transformers keeps the longest input: `sentence_bert_config.json`, and for each architecture its own.
const TRANSFORMER_CONFIG: (&str, &str) = ("sentence_", "_config.json");

/// What says what else is needed.
///
/// # Errors
/// A repository without a configuration, or without weights in safetensors.
pub(super) fn descriptions(listing: &Listing) -> Result<Vec<String>> {
    let has = |name: &str| listing.files.contains_key(name);
    if !has(CONFIG) {
        return Err(Error::unloadable(CONFIG, "the repository has none: it is not a model in transformers' layout"));
    }
    let mut names = vec![CONFIG];
    if !has(SINGLE) {
        if !has(SHARDS) {
            return Err(Error::unloadable(SINGLE, no_weights(listing)));
        }
        names.push(SHARDS);
    }
    if has(MODULES) {
        names.push(MODULES);
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

fn no_weights(listing: &Listing) -> String {
    const OTHERS: [&str; 7] = [".bin", ".safetensors", ".gguf", ".onnx", ".h5", ".pt", ".msgpack"];
    let other = listing.files.keys().find(|name| OTHERS.iter().any(|ending| name.ends_with(ending)));
    match other {
        Some(other) => format!(
            "the repository has none, only {other}: weights are taken in safetensors alone, and a .bin file could run code"
        ),
        None => "the repository has no weights".to_owned(),
    }
}

/// Whether an architecture here builds what `config.json` describes. Asked before the weights are fetched.
pub(super) fn supported(config: &Value) -> Result<()> {
    let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
    match config["model_type"].as_str() {
        Some(family) if known.contains(&family) => Ok(()),
        found => {
            let found = found.unwrap_or("nothing");
            let reason = format!("model_type: {found:?} is not supported; known are {}", known.join(", "));
            Err(Error::unloadable(CONFIG, reason))
        }
    }
}

/// Every file of the version. `modules` and `shards` are `modules.json` and the shard index, where they are there.
///
/// # Errors
/// A file that these name and the repository does not have, or that would lie outside the folder.
pub(super) fn everything(listing: &Listing, modules: Option<&Value>, shards: Option<&Value>) -> Result<Vec<String>> {
    let mut names: BTreeSet<String> = descriptions(listing)?.into_iter().collect();
    let (prefix, suffix) = TRANSFORMER_CONFIG;
    let top = listing.files.keys().filter(|name| !name.contains('/'));
    let taken = |name: &&String| SMALL.contains(&name.as_str()) || (name.starts_with(prefix) && name.ends_with(suffix));
    names.extend(top.filter(taken).cloned());
    match shards {
        Some(shards) => names.extend(shard_names(shards)?),
        None => drop(names.insert(SINGLE.to_owned())),
    }
    if let Some(modules) = modules {
        names.extend(module_files(listing, modules)?);
    }
    match names.iter().find(|name| !listing.files.contains_key(*name)) {
        Some(missing) => Err(Error::unloadable(missing, "is needed, and the repository has none")),
        None => Ok(names.into_iter().collect()),
    }
}

fn shard_names(shards: &Value) -> Result<Vec<String>> {
    let map = shards["weight_map"].as_object().ok_or_else(|| Error::unloadable(SHARDS, "has no weight_map"))?;
    let name = |value: &Value| {
        let name = value.as_str().ok_or_else(|| Error::unloadable(SHARDS, "weight_map: expected file names"))?;
        safe_relative(name).map_err(|why| Error::unloadable(SHARDS, format!("weight_map: {why}")))?;
        Ok(name.to_owned())
    };
    map.values().map(name).collect()
}

/// The configuration and weights in the folders of sentence-transformers' modules.
fn module_files(listing: &Listing, modules: &Value) -> Result<Vec<String>> {
    let wrong = |why: String| Error::unloadable(MODULES, why);
    let list = modules.as_array().ok_or_else(|| wrong("expected a list of modules".to_owned()))?;
    let mut names = Vec::new();
    for path in list.iter().filter_map(|module| module["path"].as_str()).filter(|path| !path.is_empty()) {
        safe_relative(path).map_err(wrong)?;
        let inside = |file: &str| format!("{}/{file}", path.trim_end_matches('/'));
        let (weights, pickled) = (inside(SINGLE), inside("pytorch_model.bin"));
        if listing.files.contains_key(&pickled) && !listing.files.contains_key(&weights) {
            return Err(Error::unloadable(
                weights,
                format!("the repository has none, only {pickled}, which is not taken"),
            ));
        }
        // Normalize has neither; what is needed and missing is found when the version is looked at.
        names.extend([inside(CONFIG), weights].into_iter().filter(|name| listing.files.contains_key(name)));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::cli::pull::hub::{Digest, Remote};

    fn listing(names: &[&str]) -> Listing {
        let remote = || Remote { size: 1, digest: Digest::GitBlob(String::new()) };
        let files: BTreeMap<_, _> = names.iter().map(|name| ((*name).to_owned(), remote())).collect();
        Listing { commit: String::new(), files }
    }

    #[test]
    fn only_what_a_version_needs_is_taken() {
        let listing = listing(&[
            ".gitattributes",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "README.md",
            "config.json",
            "config_sentence_transformers.json",
            "model.safetensors",
            "modules.json",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "sentence_bert_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "train_script.py",
            "0_Other/config.json",
        ]);
        let modules = json!([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Normalize"}]);
        assert_eq!(
            everything(&listing, Some(&modules), None).unwrap(),
            [
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "2_Dense/model.safetensors",
                "config.json",
                "config_sentence_transformers.json",
                "model.safetensors",
                "modules.json",
                "sentence_bert_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ]
        );
    }

    #[test]
    fn shards_are_those_that_the_index_names_and_stay_in_the_folder() {
        let listing =
            listing(&["config.json", SHARDS, "model-1.safetensors", "model-2.safetensors", "old.safetensors"]);
        let index = |file: &str| json!({"weight_map": {"a": "model-1.safetensors", "b": file}});
        let names = everything(&listing, None, Some(&index("model-2.safetensors"))).unwrap();
        assert_eq!(names, ["config.json", "model-1.safetensors", "model-2.safetensors", SHARDS]);
        let missing = everything(&listing, None, Some(&index("model-3.safetensors"))).unwrap_err().to_string();
        assert!(missing.starts_with("model-3.safetensors: is needed"), "{missing}");
        assert!(everything(&listing, None, Some(&index("../up.safetensors"))).is_err());
        let up = json!([{"path": "../up"}]);
        assert!(everything(&super::tests::listing(&["config.json", SINGLE]), Some(&up), None).is_err());
    }

    #[test]
    fn weights_that_are_not_safetensors_are_refused_by_name() {
        let refused = descriptions(&listing(&["config.json", "pytorch_model.bin"])).unwrap_err().to_string();
        assert!(refused.contains("only pytorch_model.bin"), "{refused}");
        let dense = listing(&["config.json", SINGLE, MODULES, "2_Dense/config.json", "2_Dense/pytorch_model.bin"]);
        let refused = everything(&dense, Some(&json!([{"path": "2_Dense"}])), None).unwrap_err().to_string();
        assert!(refused.contains("2_Dense/pytorch_model.bin, which is not taken"), "{refused}");
        assert!(descriptions(&listing(&["README.md"])).unwrap_err().to_string().contains("config.json"));
    }

    #[test]
    fn an_architecture_that_is_not_here_is_refused_with_those_that_are() {
        assert!(supported(&json!({"model_type": "bert"})).is_ok());
        let refused = supported(&json!({"model_type": "mamba"})).unwrap_err().to_string();
        assert!(refused.contains("\"mamba\" is not supported; known are bert"), "{refused}");
        assert!(supported(&json!({})).is_err());
    }
}
