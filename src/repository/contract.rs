//! The contract of a version: what clients rely on, and in what two versions differ.
//!
//! It knows descriptions and the bytes of `tokenizer.json`. It must not know what is done about a
//! change; the gate decides that.

use std::fmt;
use std::io::ErrorKind;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::files;
use super::spec::Spec;
use crate::error::Result;
use crate::value::Task;

/// What a client could notice when one version takes another's place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contract {
    pub task: Task,
    /// Length of an embedding.
    pub dimension: Option<usize>,
    /// In the order of the logits; empty where answers carry no labels.
    pub labels: Vec<String>,
    /// blake3 of `tokenizer.json`, in hex, or of what it would be for a GGUF file; `None` for images and where there is none.
    pub tokenizer: Option<String>,
    pub pooling: Option<String>,
    /// Whether embeddings have length 1.
    pub normalize: Option<bool>,
    /// The longest input that is not cut off; `None` is no limit.
    pub max_tokens: Option<usize>,
    /// Of a version that writes, the chats that its template takes: of `user`, `turns`, `system`, `tools`.
    #[serde(default)]
    pub chats: Option<Vec<String>>,
}

/// One term that is not what it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ContractChange {
    pub field: &'static str,
    pub from: Value,
    pub to: Value,
}

impl fmt::Display for ContractChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} changes from {} to {}", self.field, self.from, self.to)
    }
}

impl Contract {
    /// The contract of a version whose processor takes `max_tokens` (`None` for images). `tokenizer`: a digest that says
    /// more of it than the bytes of its file, which two formats spell differently.
    ///
    /// Errors: a `tokenizer.json` that is there and cannot be read.
    pub fn of(spec: &Spec, max_tokens: Option<usize>, tokenizer: Option<&str>) -> Result<Contract> {
        let labels = match spec.task {
            Task::Classify | Task::ImageClassify => spec.labels.clone(),
            // one logit whose label nobody sees, or none
            Task::Rerank | Task::Embed | Task::Generate => Vec::new(),
        };
        Ok(Contract {
            task: spec.task,
            dimension: spec.dimension(),
            labels,
            tokenizer: match (spec.task, tokenizer) {
                (_, Some(digest)) => Some(digest.to_owned()),
                (Task::ImageClassify, None) => None,
                _ => tokenizer_digest(spec)?,
            },
            pooling: spec.embedding.as_ref().map(|embedding| embedding.pooling.name().to_owned()),
            normalize: spec.embedding.as_ref().map(|embedding| embedding.normalize),
            max_tokens,
            chats: None,
        })
    }

    /// What a client of `live` would find changed; empty when this version can take its place unseen.
    /// Taking longer inputs, or more kinds of chats, is no change; taking only shorter ones, or fewer, is.
    pub fn changes_from(&self, live: &Contract) -> Vec<ContractChange> {
        let shorter = match (live.max_tokens, self.max_tokens) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(live), Some(now)) => now < live,
        };
        let no_chats = Vec::new();
        let [was, is] = [live, self].map(|contract| contract.chats.as_ref().unwrap_or(&no_chats));
        let fewer = was.iter().any(|chat| !is.contains(chat));
        let terms = [
            ("task", self.task != live.task, json!(live.task), json!(self.task)),
            ("dimension", self.dimension != live.dimension, json!(live.dimension), json!(self.dimension)),
            ("labels", self.labels != live.labels, json!(live.labels), json!(self.labels)),
            ("tokenizer", self.tokenizer != live.tokenizer, json!(live.tokenizer), json!(self.tokenizer)),
            ("pooling", self.pooling != live.pooling, json!(live.pooling), json!(self.pooling)),
            ("normalize", self.normalize != live.normalize, json!(live.normalize), json!(self.normalize)),
            ("max_tokens", shorter, json!(live.max_tokens), json!(self.max_tokens)),
            ("chats", fewer, json!(live.chats), json!(self.chats)),
        ];
        let changed = terms.into_iter().filter(|(_, differs, ..)| *differs);
        changed.map(|(field, _, from, to)| ContractChange { field, from, to }).collect()
    }
}

fn tokenizer_digest(spec: &Spec) -> Result<Option<String>> {
    const FILE: &str = "tokenizer.json";
    if spec.gguf().is_some() {
        // As `cutover convert` writes it, so that a version and what was converted from it cut texts alike.
        let bytes = spec.read_file(FILE)?;
        return Ok(bytes.map(|bytes| blake3::hash(&bytes).to_hex().to_string()));
    }
    let opened = files::open(&spec.dir.join(FILE)).map_err(|why| spec.file_error(FILE, why))?;
    let Some(mut file) = opened else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match std::io::Read::read(&mut file, &mut buffer) {
            Ok(0) => return Ok(Some(hasher.finalize().to_hex().to_string())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(spec.file_error(FILE, format!("cannot be read: {e}"))),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::model_toml::ModelConfig;
    use std::fs;

    fn contract() -> Contract {
        Contract {
            task: Task::Classify,
            dimension: Some(4),
            labels: vec!["a".to_owned(), "b".to_owned()],
            tokenizer: Some("00".to_owned()),
            pooling: Some("mean".to_owned()),
            normalize: Some(true),
            max_tokens: Some(128),
            chats: None,
        }
    }

    fn changed_fields(live: &Contract, change: impl Fn(&mut Contract)) -> Vec<&'static str> {
        let mut candidate = live.clone();
        change(&mut candidate);
        candidate.changes_from(live).iter().map(|change| change.field).collect()
    }

    #[test]
    fn every_term_that_a_client_relies_on_is_compared() {
        let live = contract();
        assert!(live.changes_from(&live).is_empty());
        assert_eq!(changed_fields(&live, |c| c.task = Task::Rerank), ["task"]);
        assert_eq!(changed_fields(&live, |c| c.dimension = Some(5)), ["dimension"]);
        assert_eq!(changed_fields(&live, |c| c.labels.push("c".to_owned())), ["labels"]);
        assert_eq!(changed_fields(&live, |c| c.labels.reverse()), ["labels"]);
        assert_eq!(changed_fields(&live, |c| c.tokenizer = None), ["tokenizer"]);
        assert_eq!(changed_fields(&live, |c| c.pooling = Some("cls".to_owned())), ["pooling"]);
        assert_eq!(changed_fields(&live, |c| c.normalize = Some(false)), ["normalize"]);
    }

    #[test]
    fn only_a_smaller_maximum_length_is_a_change() {
        let live = contract();
        assert_eq!(changed_fields(&live, |c| c.max_tokens = Some(127)), ["max_tokens"]);
        assert!(changed_fields(&live, |c| c.max_tokens = Some(129)).is_empty());
        assert!(changed_fields(&live, |c| c.max_tokens = None).is_empty());
        let unlimited = Contract { max_tokens: None, ..contract() };
        assert_eq!(changed_fields(&unlimited, |c| c.max_tokens = Some(1)), ["max_tokens"]);
    }

    #[test]
    fn only_chats_that_are_not_taken_any_more_are_a_change() {
        let chats = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let live = Contract { chats: chats(&["user", "system"]), ..contract() };
        for fewer in [chats(&["user"]), chats(&["system", "turns"]), chats(&[]), None] {
            assert_eq!(changed_fields(&live, |c| c.chats.clone_from(&fewer)), ["chats"], "{fewer:?}");
        }
        assert!(changed_fields(&live, |c| c.chats = chats(&["system", "tools", "user"])).is_empty());
        assert!(changed_fields(&contract(), |c| c.chats = chats(&["user"])).is_empty());
    }

    #[test]
    fn a_change_says_from_what_to_what() {
        let live = contract();
        let candidate = Contract { dimension: None, ..contract() };
        let change = candidate.changes_from(&live).remove(0);
        assert_eq!(change.to_string(), "dimension changes from 4 to null");
        assert_eq!(serde_json::to_value(&change).unwrap(), json!({"field": "dimension", "from": 4, "to": null}));
    }

    #[test]
    fn the_contract_is_taken_from_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), r#"{"model_type": "bert", "hidden_size": 8}"#).unwrap();
        fs::write(dir.path().join("model.safetensors"), "").unwrap();
        let of = |task| {
            let spec = Spec::read(dir.path(), "m", "v", &ModelConfig::new(task)).unwrap();
            Contract::of(&spec, Some(9), None).unwrap()
        };
        assert_eq!(of(Task::Embed).tokenizer, None);
        // longer than one read, so that the whole file counts
        let mut tokenizer = "x".repeat(100_000);
        fs::write(dir.path().join("tokenizer.json"), &tokenizer).unwrap();
        let embed = of(Task::Embed);
        assert_eq!(embed.tokenizer, Some(blake3::hash(tokenizer.as_bytes()).to_hex().to_string()));
        assert_eq!((embed.dimension, embed.pooling.as_deref(), embed.normalize), (Some(8), Some("mean"), Some(true)));
        assert_eq!((embed.labels.len(), embed.max_tokens), (0, Some(9)));
        tokenizer.push('y');
        fs::write(dir.path().join("tokenizer.json"), &tokenizer).unwrap();
        assert_ne!(of(Task::Embed).tokenizer, embed.tokenizer);
        assert_eq!(of(Task::Classify).labels, ["LABEL_0", "LABEL_1"]);
        assert_eq!((of(Task::Rerank).labels.len(), of(Task::ImageClassify).tokenizer), (0, None));
    }
}
