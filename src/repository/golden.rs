//! Golden cases: stored inputs with what must come out, how they are read, and how an answer is judged.
//!
//! Pure but for the reading of one file. It must not know how a case is run, or how many must pass.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files;
use crate::error::{Error, Result};
use crate::value::{LabelScore, RawInput, Task};

mod judge;
pub use judge::Verdict;

/// The longest line: an image of some megapixels, in base64.
const MAX_LINE_BYTES: u64 = 16 << 20;
const MAX_CASES: usize = 100_000;
const MAX_ID_BYTES: usize = 256;

/// One stored input with what must come out. Written and read as one line of `golden.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(into = "Line")]
pub struct GoldenCase {
    pub id: String,
    /// At least one; how many is fixed by `expect`.
    pub inputs: Vec<RawInput>,
    pub expect: Expect,
}

/// What must come out. All tolerances are finite and not negative.
#[derive(Debug, Clone, PartialEq)]
pub enum Expect {
    /// The label with the highest score.
    Label {
        label: String,
        min_score: Option<f32>,
    },
    /// The scores of some labels, each within `max_abs`.
    Labels {
        labels: Vec<LabelScore>,
        max_abs: f32,
    },
    Embedding {
        embedding: Vec<f32>,
        min_cosine: f32,
        max_abs: Option<f32>,
    },
    Score {
        score: f32,
        max_abs: f32,
    },
    /// Least cosine of two inputs.
    SimilarAtLeast(f32),
    /// Greatest cosine of two inputs.
    SimilarAtMost(f32),
    /// Indices by falling score. Rerank: of all inputs. Embed: of the inputs after the first, which is
    /// the query, by falling cosine with it.
    Order(Vec<usize>),
    /// How a prompt is continued, token by token the likeliest (a model that writes).
    Continuation(String),
    /// The logarithms of the probabilities of an input's tokens but the first, each within `max_abs`.
    Logprobs {
        logprobs: Vec<f32>,
        max_abs: f32,
    },
    /// Greatest perplexity of an input's tokens but the first.
    MaxPerplexity(f32),
}

impl GoldenCase {
    /// What is run for it: a prompt is run with what is expected to continue it.
    pub fn asked(&self) -> Vec<RawInput> {
        match (&self.expect, self.inputs.as_slice()) {
            (Expect::Continuation(text), [RawInput::Text(prompt)]) => {
                vec![RawInput::Pair(prompt.as_str().into(), text.clone())]
            }
            (_, inputs) => inputs.to_vec(),
        }
    }
}

/// Reads a `golden.jsonl`; a missing file is no cases. Blank lines are skipped.
///
/// Errors: [`Error::Unloadable`] with `file:line` and what is wrong with the first line that is.
pub fn read_golden(path: &Path) -> Result<Vec<GoldenCase>> {
    let label = label_of(path);
    let opened = files::open(path).map_err(|why| Error::unloadable(&label, why))?;
    let Some(file) = opened else { return Ok(Vec::new()) };
    let mut reader = BufReader::new(file);
    let mut cases = Vec::new();
    let mut ids = HashSet::new();
    let mut bytes = Vec::new();
    for number in 1_usize.. {
        let refused = |why: String| Error::unloadable(format!("{label}:{number}"), why);
        bytes.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes);
        if read.map_err(|e| refused(format!("cannot be read: {e}")))? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(refused(format!("the line is longer than {MAX_LINE_BYTES} bytes")));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| refused("the line is not UTF-8".to_owned()))?.trim();
        if text.is_empty() {
            continue;
        }
        let case = parse_case(text).map_err(&refused)?;
        if !ids.insert(case.id.clone()) {
            return Err(refused(format!("the id {:?} is used twice", case.id)));
        }
        if cases.len() == MAX_CASES {
            return Err(refused(format!("the file holds more than {MAX_CASES} cases")));
        }
        cases.push(case);
    }
    Ok(cases)
}

/// Errors name the file by its folder, never by where the repository is on this machine.
fn label_of(path: &Path) -> String {
    let name = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let folder = path.parent();
    // A version's file is told with its model, beside whose model.toml the version's folder lies.
    let model = folder.and_then(Path::parent).filter(|model| model.join(super::MODEL_TOML).exists());
    if let (Some(model), Some(folder)) = (model.and_then(Path::file_name), folder.and_then(Path::file_name))
        && let Some(file) = path.file_name()
    {
        let [model, folder, file] = [model, folder, file].map(|part| part.to_string_lossy());
        return format!("{model}/{folder}/{file}");
    }
    match (name(folder.and_then(Path::file_name)), name(path.file_name())) {
        (Some(parent), Some(file)) => format!("{parent}/{file}"),
        (None, Some(file)) => file,
        (_, None) => "golden.jsonl".to_owned(),
    }
}

/// A line as it is written. Everything is optional here, so that what is missing is said in our words.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<RawInput>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inputs: Option<Vec<RawInput>>,
    expect: Expected,
}

#[derive(Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Expected {
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Vec<LabelScore>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_cosine: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_abs: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    similar_at_least: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    similar_at_most: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Vec<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_perplexity: Option<f32>,
}

fn parse_case(text: &str) -> Result<GoldenCase, String> {
    let line: Line = serde_json::from_str(text).map_err(|e| {
        // one line at a time is parsed, so the parser's line number would mislead
        let message = e.to_string();
        match message.rsplit_once(" at line ") {
            Some((reason, _)) => format!("{reason} (column {})", e.column()),
            None => message,
        }
    })?;
    if line.id.is_empty() || line.id.len() > MAX_ID_BYTES || line.id.chars().any(char::is_control) {
        return Err(format!("id: expected 1 to {MAX_ID_BYTES} bytes without control characters"));
    }
    let inputs = match (line.input, line.inputs) {
        (Some(input), None) => vec![input],
        (None, Some(inputs)) if !inputs.is_empty() => inputs,
        (None, Some(_)) => return Err("inputs: expected at least one".to_owned()),
        _ => return Err("expected either input or inputs".to_owned()),
    };
    let expect = line.expect.into_expect()?;
    expect.fits_inputs(inputs.len())?;
    Ok(GoldenCase { id: line.id, inputs, expect })
}

impl Expected {
    /// The one expectation that the keys spell. Each takes the keys that are its own; nothing may be left.
    fn into_expect(mut self) -> Result<Expect, String> {
        let missing = |key: &str| format!("expect: {key} is missing");
        let expect = if let Some(label) = self.label.take() {
            Expect::Label { label, min_score: self.min_score.take() }
        } else if let Some(labels) = self.labels.take() {
            Expect::Labels { labels, max_abs: self.max_abs.take().ok_or_else(|| missing("max_abs"))? }
        } else if let Some(embedding) = self.embedding.take() {
            let min_cosine = self.min_cosine.take().ok_or_else(|| missing("min_cosine"))?;
            Expect::Embedding { embedding, min_cosine, max_abs: self.max_abs.take() }
        } else if let Some(score) = self.score.take() {
            Expect::Score { score, max_abs: self.max_abs.take().ok_or_else(|| missing("max_abs"))? }
        } else if let Some(least) = self.similar_at_least.take() {
            Expect::SimilarAtLeast(least)
        } else if let Some(most) = self.similar_at_most.take() {
            Expect::SimilarAtMost(most)
        } else if let Some(order) = self.order.take() {
            Expect::Order(order)
        } else if let Some(text) = self.continuation.take() {
            Expect::Continuation(text)
        } else if let Some(logprobs) = self.logprobs.take() {
            Expect::Logprobs { logprobs, max_abs: self.max_abs.take().ok_or_else(|| missing("max_abs"))? }
        } else if let Some(most) = self.max_perplexity.take() {
            Expect::MaxPerplexity(most)
        } else {
            let kinds = "label, labels, embedding, score, similar_at_least, similar_at_most, order, continuation, \
                         logprobs, max_perplexity";
            return Err(format!("expect: expected one of {kinds}"));
        };
        if self != Expected::default() {
            let left = serde_json::to_value(&self).map_err(|e| format!("expect: {e}"))?;
            let left: Vec<&str> = left.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            return Err(format!("expect: {} cannot stand with {}", expect.name(), left.join(", ")));
        }
        expect.check()?;
        Ok(expect)
    }
}

impl Expect {
    /// The key that the expectation is written under.
    pub fn name(&self) -> &'static str {
        match self {
            Expect::Label { .. } => "label",
            Expect::Labels { .. } => "labels",
            Expect::Embedding { .. } => "embedding",
            Expect::Score { .. } => "score",
            Expect::SimilarAtLeast(_) => "similar_at_least",
            Expect::SimilarAtMost(_) => "similar_at_most",
            Expect::Order(_) => "order",
            Expect::Continuation(_) => "continuation",
            Expect::Logprobs { .. } => "logprobs",
            Expect::MaxPerplexity(_) => "max_perplexity",
        }
    }

    /// Whether a model of this task can show what is expected.
    pub fn fits(&self, task: Task) -> Result<(), String> {
        let fits = match self {
            Expect::Label { .. } | Expect::Labels { .. } => matches!(task, Task::Classify | Task::ImageClassify),
            Expect::Embedding { .. } | Expect::SimilarAtLeast(_) | Expect::SimilarAtMost(_) => task == Task::Embed,
            Expect::Score { .. } => task == Task::Rerank,
            Expect::Order(_) => matches!(task, Task::Embed | Task::Rerank),
            Expect::Continuation(_) | Expect::Logprobs { .. } | Expect::MaxPerplexity(_) => task == Task::Generate,
        };
        if fits { Ok(()) } else { Err(format!("{} cannot be expected of a model whose task is {task}", self.name())) }
    }

    /// The numbers make sense: no NaN, which would pass or fail everything, and no empty expectation.
    fn check(&self) -> Result<(), String> {
        let finite = |key: &str, value: f32| match value.is_finite() {
            true => Ok(()),
            false => Err(format!("expect: {key}: expected a finite number, found {value}")),
        };
        let tolerance = |value: f32| match value.is_finite() && value >= 0.0 {
            true => Ok(()),
            false => Err(format!("expect: max_abs: expected a finite number of at least 0, found {value}")),
        };
        let cosine = |key: &str, value: f32| match (-1.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(format!("expect: {key}: expected a cosine from -1 to 1, found {value}")),
        };
        match self {
            Expect::Label { min_score, .. } => min_score.map_or(Ok(()), |score| finite("min_score", score)),
            Expect::Labels { labels, max_abs } => {
                let mut seen = HashSet::new();
                if labels.is_empty() {
                    return Err("expect: labels: expected at least one".to_owned());
                }
                for LabelScore { label, score } in labels {
                    finite("labels", *score)?;
                    if !seen.insert(label) {
                        return Err(format!("expect: labels: {label:?} is listed twice"));
                    }
                }
                tolerance(*max_abs)
            }
            Expect::Embedding { embedding, min_cosine, max_abs } => {
                embedding.iter().try_for_each(|value| finite("embedding", *value))?;
                if embedding.iter().all(|value| *value == 0.0) {
                    return Err("expect: embedding: expected a vector with a length above 0".to_owned());
                }
                cosine("min_cosine", *min_cosine)?;
                max_abs.map_or(Ok(()), tolerance)
            }
            Expect::Score { score, max_abs } => finite("score", *score).and_then(|()| tolerance(*max_abs)),
            Expect::SimilarAtLeast(value) => cosine("similar_at_least", *value),
            Expect::SimilarAtMost(value) => cosine("similar_at_most", *value),
            Expect::Order(order) => {
                let distinct: HashSet<_> = order.iter().filter(|index| **index < order.len()).collect();
                if order.len() < 2 || distinct.len() != order.len() {
                    return Err("expect: order: expected each index from 0 once, and at least two".to_owned());
                }
                Ok(())
            }
            Expect::Continuation(text) if text.is_empty() => Err("expect: continuation: expected some text".to_owned()),
            Expect::Continuation(_) => Ok(()),
            Expect::Logprobs { logprobs, max_abs } => {
                if let Some(above) = logprobs.iter().find(|value| !(value.is_finite() && **value <= 0.0)) {
                    return Err(format!("expect: logprobs: expected numbers of at most 0, found {above}"));
                }
                if logprobs.is_empty() {
                    return Err("expect: logprobs: expected at least one".to_owned());
                }
                tolerance(*max_abs)
            }
            Expect::MaxPerplexity(most) if most.is_finite() && *most >= 1.0 => Ok(()),
            Expect::MaxPerplexity(most) => {
                Err(format!("expect: max_perplexity: expected a finite number of at least 1, found {most}"))
            }
        }
    }

    /// How many inputs the expectation is about.
    fn fits_inputs(&self, inputs: usize) -> Result<(), String> {
        let (fits, expected) = match self {
            Expect::Label { .. }
            | Expect::Labels { .. }
            | Expect::Embedding { .. }
            | Expect::Score { .. }
            | Expect::Continuation(_)
            | Expect::Logprobs { .. }
            | Expect::MaxPerplexity(_) => (inputs == 1, "one input".to_owned()),
            Expect::SimilarAtLeast(_) | Expect::SimilarAtMost(_) => (inputs == 2, "two inputs".to_owned()),
            Expect::Order(order) => {
                let n = order.len();
                (inputs == n || inputs == n + 1, format!("{n} inputs, or a query and {n} inputs"))
            }
        };
        if fits { Ok(()) } else { Err(format!("expect: {} needs {expected}, found {inputs}", self.name())) }
    }
}

impl From<GoldenCase> for Line {
    fn from(case: GoldenCase) -> Line {
        let mut expect = Expected::default();
        match case.expect {
            Expect::Label { label, min_score } => (expect.label, expect.min_score) = (Some(label), min_score),
            Expect::Labels { labels, max_abs } => (expect.labels, expect.max_abs) = (Some(labels), Some(max_abs)),
            Expect::Embedding { embedding, min_cosine, max_abs } => {
                (expect.embedding, expect.min_cosine, expect.max_abs) = (Some(embedding), Some(min_cosine), max_abs);
            }
            Expect::Score { score, max_abs } => (expect.score, expect.max_abs) = (Some(score), Some(max_abs)),
            Expect::SimilarAtLeast(least) => expect.similar_at_least = Some(least),
            Expect::SimilarAtMost(most) => expect.similar_at_most = Some(most),
            Expect::Order(order) => expect.order = Some(order),
            Expect::Continuation(text) => expect.continuation = Some(text),
            Expect::Logprobs { logprobs, max_abs } => {
                (expect.logprobs, expect.max_abs) = (Some(logprobs), Some(max_abs))
            }
            Expect::MaxPerplexity(most) => expect.max_perplexity = Some(most),
        }
        let mut inputs = case.inputs;
        match inputs.len() {
            1 => Line { id: case.id, input: inputs.pop(), inputs: None, expect },
            _ => Line { id: case.id, input: None, inputs: Some(inputs), expect },
        }
    }
}

#[cfg(test)]
#[path = "golden_tests.rs"]
mod tests;
