//! In what two versions differ, as far as their descriptions say it: in words, and how grave each difference is.
//!
//! Pure: two descriptions in, sentences out. What is breaking is the contract's to say ([`Contract::changes_from`]), and
//! that is what the gate refuses; nothing else here is. It must not know weights: their part is `weights::difference`'s.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::contract::{Contract, ContractChange};
use super::spec::Spec;
use crate::value::Task;

/// Keys that are told one by one before the rest is only counted.
const MOST_KEYS: usize = 64;
/// The longest value that is kept as it is; a longer one is kept as the beginning of its text. Bytes of JSON.
const LONGEST_VALUE: usize = 2048;
/// Labels that a sentence names.
const NAMED_LABELS: usize = 3;

/// What a difference means for those who use the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// No answer changes by it.
    Harmless,
    /// Answers may be others, in the same form.
    Notable,
    /// Clients could not rely on what they did: the gate refuses it, unless an operator accepts it.
    Breaking,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Severity::Harmless => "harmless",
            Severity::Notable => "notable",
            Severity::Breaking => "breaking",
        }
    }
}

/// One thing that is not the same in two versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// `labels`, `config.hidden_size`, `tensors`: the same whichever of the two is compared with the other.
    pub what: String,
    pub severity: Severity,
    /// For people.
    pub message: String,
    #[serde(default)]
    pub from: Value,
    #[serde(default)]
    pub to: Value,
    /// Of `tensors` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<TensorCounts>,
}

/// How many tensors have other values, and how far they are from what they were.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorCounts {
    /// Of those with the same name and shape in both.
    pub changed: usize,
    pub of: usize,
    /// Of those that changed, how many distances are known.
    pub measured: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest: Option<Distance>,
    /// Of the distances that are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median: Option<f64>,
}

/// Of one tensor to another of the same shape, both in f32: `‖a − b‖ / max(‖a‖, ‖b‖)` in the Euclidean norm. 0 is the same, and
/// 2 the most; which of them came first makes no difference to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    pub tensor: String,
    pub distance: f64,
}

impl Difference {
    pub fn new(what: impl Into<String>, severity: Severity, message: impl Into<String>) -> Self {
        let (what, message) = (what.into(), message.into());
        Difference { what, severity, message, from: Value::Null, to: Value::Null, tensors: None }
    }

    pub fn between(self, from: Value, to: Value) -> Self {
        Difference { from: bounded(from), to: bounded(to), ..self }
    }
}

/// What came of a comparison.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compared {
    pub differences: Vec<Difference>,
    /// What is the same, where that is worth saying: names as in [`Difference::what`].
    pub same: Vec<String>,
    /// What the two do not both say, in words.
    pub incomparable: Vec<String>,
}

impl Compared {
    pub fn add(&mut self, other: Compared) {
        self.differences.extend(other.differences);
        self.same.extend(other.same);
        self.incomparable.extend(other.incomparable);
    }

    fn differs(&mut self, difference: Difference) {
        self.differences.push(difference);
    }
}

/// What clients rely on.
pub fn contracts(before: &Contract, now: &Contract) -> Compared {
    let changes = now.changes_from(before);
    let mut compared = Compared::default();
    for change in &changes {
        let told = Difference::new(change.field, Severity::Breaking, sentence(change));
        compared.differs(told.between(change.from.clone(), change.to.clone()));
    }
    let (was, is) = (before.max_tokens, now.max_tokens);
    if was != is && !changes.iter().any(|change| change.field == "max_tokens") {
        let longest = |tokens: Option<usize>| tokens.map_or("no limit".to_owned(), |tokens| format!("{tokens} tokens"));
        let message = format!("longer inputs are taken whole: {}, where it was {}", longest(is), longest(was));
        compared.differs(Difference::new("max_tokens", Severity::Harmless, message).between(json!(was), json!(is)));
    }
    let shared = [
        ("task", before.task == now.task),
        ("dimension", before.dimension.is_some() && before.dimension == now.dimension),
        ("labels", !before.labels.is_empty() && before.labels == now.labels),
        ("tokenizer", before.tokenizer.is_some() && before.tokenizer == now.tokenizer),
        ("pooling", before.pooling.is_some() && before.pooling == now.pooling),
        ("max_tokens", was.is_some() && was == is),
        ("chats", before.chats.is_some() && before.chats == now.chats),
    ];
    compared.same.extend(shared.into_iter().filter(|(_, same)| *same).map(|(what, _)| what.to_owned()));
    compared
}

/// What the files beside the weights say of a version.
pub fn descriptions(before: &Spec, now: &Spec) -> Compared {
    let mut compared = Compared::default();
    if before.family != now.family {
        let message = format!("the architecture is {}, and was {}", now.family, before.family);
        let told = Difference::new("family", Severity::Notable, message);
        compared.differs(told.between(json!(before.family), json!(now.family)));
    }
    let formats = [before, now].map(|spec| if spec.gguf().is_some() { "GGUF" } else { "safetensors" });
    let across = formats[0] != formats[1];
    if across {
        let message = format!("the weights come as {}, and came as {}", formats[1], formats[0]);
        let told = Difference::new("format", Severity::Harmless, message);
        compared.differs(told.between(json!(formats[0]), json!(formats[1])));
    }
    let labelled = matches!(now.task, Task::Classify | Task::ImageClassify) && before.task == now.task;
    keys(&mut compared, ("config", &before.config, &now.config), (across, labelled));
    let nothing = Value::Object(Map::new());
    let prepared = |spec: &Spec| spec.preprocessor.clone().unwrap_or_else(|| nothing.clone());
    keys(&mut compared, ("preprocessor", &prepared(before), &prepared(now)), (false, false));
    if let (Some(was), Some(is)) = (&before.embedding, &now.embedding)
        && was.dense != is.dense
    {
        let (was, is) = (was.dense.len(), is.dense.len());
        let message = format!("other layers follow the pooling: {is}, where there were {was}");
        compared.differs(Difference::new("dense", Severity::Notable, message).between(json!(was), json!(is)));
    }
    compared
}

/// A contract's change for people: long lists and digests are counted and named, not written out.
fn sentence(change: &ContractChange) -> String {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    match change.field {
        "labels" => {
            let (was, is) = (list(&change.from), list(&change.to));
            let other: Vec<String> = (0..was.len().max(is.len()))
                .filter(|&at| was.get(at) != is.get(at))
                .map(|at| {
                    let shown = |label: Option<&Value>| label.map_or("nothing".to_owned(), brief);
                    format!("{at} is {}, and was {}", shown(is.get(at)), shown(was.get(at)))
                })
                .collect();
            let named = other.iter().take(NAMED_LABELS).cloned().collect::<Vec<_>>().join("; ");
            let more = if other.len() > NAMED_LABELS { "; …" } else { "" };
            format!("{} of {} labels are others: {named}{more}", other.len(), was.len().max(is.len()))
        }
        "tokenizer" => match (&change.from, &change.to) {
            (Value::Null, _) => "there is a tokenizer, and there was none".to_owned(),
            (_, Value::Null) => "there is no tokenizer, and there was one".to_owned(),
            _ => "the tokenizer is another".to_owned(),
        },
        "max_tokens" if change.from.is_null() => {
            format!("inputs are cut at {} tokens, and were taken whole", change.to)
        }
        "max_tokens" => format!("inputs are cut at {} tokens, and were at {}", change.to, change.from),
        "chats" => {
            let is = list(&change.to);
            let lost: Vec<Value> = list(&change.from).into_iter().filter(|chat| !is.contains(chat)).collect();
            let kind = |chat: &Value| match chat.as_str() {
                Some("user") => "a question".to_owned(),
                Some("turns") => "a conversation".to_owned(),
                Some("system") => "a system message".to_owned(),
                Some("tools") => "tools".to_owned(),
                _ => brief(chat),
            };
            let lost = lost.iter().map(kind).collect::<Vec<_>>().join(", ");
            format!("its chat template does not take any more: {lost}")
        }
        _ => change.to_string(),
    }
}

/// What keys of a configuration no answer depends on: who wrote the file, and what only training reads.
fn is_remark(key: &str) -> bool {
    const REMARKS: [&str; 14] = [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "dtype",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "initializer_range",
        "name_or_path",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "resid_pdrop",
    ];
    REMARKS.contains(&key)
}

/// Compares two objects key by key. `across`: one of them was made of a GGUF file, which says less than a `config.json`.
fn keys(compared: &mut Compared, (title, was, is): (&str, &Value, &Value), (across, labelled): (bool, bool)) {
    let (was, is) = (flat(was), flat(is));
    let names: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let (mut told, mut more, mut unsaid) = (0usize, 0usize, [Vec::new(), Vec::new()]);
    for name in names {
        let (from, to) = (was.get(name), is.get(name));
        let labels = matches!(name.as_str(), "id2label" | "label2id" | "num_labels");
        if equal(from, to) || labels && labelled {
            continue;
        }
        if across && (from.is_none() || to.is_none()) {
            unsaid[usize::from(from.is_none())].push(name.as_str());
            continue;
        }
        if told == MOST_KEYS {
            more += 1;
            continue;
        }
        told += 1;
        let severity = if is_remark(name) || labels { Severity::Harmless } else { Severity::Notable };
        let shown = |value: Option<&Value>| value.map_or("absent".to_owned(), brief);
        let message = format!("{title}: {name} is {}, and was {}", shown(to), shown(from));
        let value = |value: Option<&Value>| value.cloned().unwrap_or_default();
        compared.differs(Difference::new(format!("{title}.{name}"), severity, message).between(value(from), value(to)));
    }
    if more > 0 {
        let message = format!("{title}: {more} keys more are not the same");
        compared.differs(Difference::new(title, Severity::Notable, message));
    }
    for (names, who) in unsaid.iter().zip(["the version before", "this version"]) {
        if !names.is_empty() {
            compared.incomparable.push(format!("{title}: only {who} says {}", names.join(", ")));
        }
    }
    if told == 0 && was.len() + is.len() > 0 && unsaid.iter().all(Vec::is_empty) {
        compared.same.push(title.to_owned());
    }
}

/// Every value by the path to it; what is null is absent. Tables of labels stay whole.
fn flat(value: &Value) -> BTreeMap<String, Value> {
    fn walk(prefix: &str, object: &Map<String, Value>, into: &mut BTreeMap<String, Value>) {
        for (key, value) in object {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Null => {}
                Value::Object(inner) if !matches!(path.as_str(), "id2label" | "label2id") => walk(&path, inner, into),
                other => {
                    into.insert(path, other.clone());
                }
            }
        }
    }
    let mut paths = BTreeMap::new();
    if let Value::Object(object) = value {
        walk("", object, &mut paths);
    }
    paths
}

/// Numbers are the same when they are in f32, as which GGUF keeps them: 1e-5 there is 9.99999974737875e-6.
fn equal(was: Option<&Value>, is: Option<&Value>) -> bool {
    match (was, is) {
        (Some(Value::Number(was)), Some(Value::Number(is))) if was.is_f64() || is.is_f64() => {
            let (Some(was), Some(is)) = (was.as_f64(), is.as_f64()) else { return false };
            was == is || was as f32 == is as f32
        }
        (was, is) => was == is,
    }
}

/// A value in a sentence.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A value that may be kept: a file that somebody else wrote may hold anything.
fn bounded(value: Value) -> Value {
    let is_long = match &value {
        Value::Array(_) | Value::Object(_) | Value::String(_) => value.to_string().len() > LONGEST_VALUE,
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    };
    if is_long { Value::String(brief(&value)) } else { value }
}

#[cfg(test)]
#[path = "difference_tests.rs"]
mod tests;
