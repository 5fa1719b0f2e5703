//! One inference: from tensors to what a model is asked, and from its outputs to tensors.
//!
//! Pure: it knows values and tasks, not HTTP. A model's tensors follow from its task (`inputs_of`, `outputs_of`), so that
//! metadata and requests cannot disagree.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::json::from_base64;
use super::tensor::{Input, Output, Values, Wanted};
use crate::error::{Error, Result};
use crate::process::{FinishOptions, PrepareOptions};
use crate::repository::Contract;
use crate::slot::Ask;
use crate::value::{self, RawInput, Task};

/// A tensor as metadata tells it; -1 is any size.
pub(super) struct Told {
    pub(super) name: &'static str,
    pub(super) datatype: &'static str,
    pub(super) shape: Vec<i64>,
}

/// What a task takes, the first of them alone where a request is nothing but one element.
pub(super) fn inputs_of(task: Task) -> Vec<Told> {
    let names: &[&'static str] = match task {
        Task::Rerank => &["query", "text"],
        Task::ImageClassify => &["image"],
        Task::Embed | Task::Classify => &["text"],
        // A text that is written is no tensor: such a model is asked by other routes.
        Task::Generate => &[],
    };
    names.iter().map(|name| Told { name, datatype: "BYTES", shape: vec![-1] }).collect()
}

pub(super) fn outputs_of(contract: &Contract) -> Vec<Told> {
    let size = |size: usize| i64::try_from(size).unwrap_or(-1);
    let shape = match contract.task {
        Task::Embed => vec![-1, contract.dimension.map_or(-1, size)],
        Task::Classify | Task::ImageClassify => vec![-1, size(contract.labels.len())],
        Task::Rerank | Task::Generate => vec![-1],
    };
    let told = |name: &&'static str| Told {
        name,
        datatype: if *name == LABEL { "BYTES" } else { "FP32" },
        shape: shape.clone(),
    };
    output_names(contract.task).iter().map(told).collect()
}

const LABEL: &str = "label";

fn output_names(task: Task) -> &'static [&'static str] {
    match task {
        Task::Embed => &["embedding"],
        Task::Rerank => &["score"],
        Task::Classify | Task::ImageClassify => &[LABEL, "score"],
        Task::Generate => &[],
    }
}

/// The outputs that come back, in their order, each with whether it comes as bytes: said before anything is computed.
///
/// # Errors
/// `BadRequest` for one that the task does not give, and for one that is asked for twice.
pub(super) fn wanted(task: Task, asked: Option<&[Wanted]>, binary: bool) -> Result<Vec<(&'static str, bool)>> {
    let known = output_names(task);
    let Some(asked) = asked else { return Ok(known.iter().map(|name| (*name, binary)).collect()) };
    let mut found: Vec<(&'static str, bool)> = Vec::with_capacity(known.len());
    for wanted in asked {
        let Some(name) = known.iter().find(|name| **name == wanted.name) else {
            let message = format!("output '{}' is unknown; there is {}", wanted.name, known.join(" and "));
            return Err(Error::bad_param("outputs", message));
        };
        // Each is computed once and written as often as it is asked for: a request must not make an answer of any size.
        if found.iter().any(|(there, _)| there == name) {
            return Err(Error::bad_param("outputs", format!("output '{name}' is asked for twice")));
        }
        found.push((name, wanted.binary.unwrap_or(binary)));
    }
    Ok(found)
}

/// What a model with this task is asked by these tensors.
pub(super) fn ask(task: Task, inputs: Vec<Input>, parameters: &Map<String, Value>) -> Result<Ask> {
    let known: Vec<&str> = inputs_of(task).iter().map(|told| told.name).collect();
    let mut given = Given(inputs);
    let inputs = match task {
        Task::Embed | Task::Classify => texts(given.take("text", &known)?)?.into_iter().map(RawInput::Text).collect(),
        Task::Rerank => {
            let queries = texts(given.take("query", &known)?)?;
            pairs(queries, texts(given.take("text", &known)?)?)?
        }
        Task::ImageClassify => files(given.take("image", &known)?)?.into_iter().map(RawInput::Image).collect(),
        Task::Generate => return Err(no_tensors()),
    };
    if let Some(more) = given.0.first() {
        return Err(Error::bad_param(
            "inputs",
            format!("input '{}' is unknown; there is {}", more.name, known.join(" and ")),
        ));
    }
    if inputs.is_empty() {
        return Err(Error::bad_param("inputs", "the inputs are empty; give at least one element"));
    }
    let options = Options(parameters);
    Ok(Ask {
        inputs,
        prepare: PrepareOptions { truncate: options.flag("truncate")?.unwrap_or(true) },
        finish: FinishOptions {
            dimensions: options.number("dimensions")?,
            raw_scores: options.flag("raw_scores")?.unwrap_or(false),
            normalize: options.flag("normalize")?,
        },
        // Microseconds; none or 0 is no deadline of the client's own.
        deadline: options
            .number("timeout")?
            .filter(|micros| *micros != 0)
            .map(|micros| u64::try_from(micros).map_err(|_| options.wrong("timeout", "a number of microseconds")))
            .transpose()?
            .map(Duration::from_micros),
    })
}

/// Why a model that writes is not asked here.
pub(super) fn no_tensors() -> Error {
    let ways = "/v1/completions, /v1/chat/completions or /models/{model}/infer";
    Error::bad_request(format!("this model writes text, which has no tensors here: ask it by {ways}"))
}

/// A request's inputs, taken one by one.
struct Given(Vec<Input>);

impl Given {
    fn take(&mut self, name: &str, known: &[&str]) -> Result<Input> {
        let Some(at) = self.0.iter().position(|input| input.name == name) else {
            let found: Vec<&str> = self.0.iter().map(|input| input.name.as_str()).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            let message = format!("input '{name}' is missing; the model takes {}, found {found}", known.join(" and "));
            return Err(Error::bad_param("inputs", message));
        };
        Ok(self.0.remove(at))
    }
}

fn texts(input: Input) -> Result<Vec<String>> {
    let name = input.name;
    let text = |bytes: Vec<u8>| {
        let at = |error: std::string::FromUtf8Error| error.utf8_error().valid_up_to();
        String::from_utf8(bytes).map_err(|error| {
            Error::bad_param("inputs", format!("input '{name}' holds a text that is not UTF-8 (at byte {})", at(error)))
        })
    };
    input.elements.into_iter().map(text).collect()
}

fn files(input: Input) -> Result<Vec<Vec<u8>>> {
    match input.json {
        true => input.elements.iter().map(|text| from_base64(&input.name, text)).collect(),
        false => Ok(input.elements),
    }
}

/// One query for all texts, or one for each.
fn pairs(mut queries: Vec<String>, texts: Vec<String>) -> Result<Vec<RawInput>> {
    if queries.len() == 1 {
        let query: Arc<str> = queries.swap_remove(0).into();
        return Ok(texts.into_iter().map(|text| RawInput::Pair(Arc::clone(&query), text)).collect());
    }
    if queries.len() != texts.len() {
        let message =
            format!("{} elements of 'query' for {} of 'text'; give one, or as many", queries.len(), texts.len());
        return Err(Error::bad_param("inputs", message));
    }
    Ok(queries.into_iter().zip(texts).map(|(query, text)| RawInput::Pair(query.into(), text)).collect())
}

/// A request's parameters. Those that nobody here knows are ignored, as the protocol has it.
struct Options<'a>(&'a Map<String, Value>);

impl Options<'_> {
    fn given(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.given(name).map(|value| value.as_bool().ok_or_else(|| self.wrong(name, "true or false"))).transpose()
    }

    fn number(&self, name: &str) -> Result<Option<i64>> {
        self.given(name).map(|value| value.as_i64().ok_or_else(|| self.wrong(name, "a whole number"))).transpose()
    }

    fn wrong(&self, name: &str, expected: &str) -> Error {
        let found = self.0.get(name).unwrap_or(&Value::Null);
        Error::bad_param("parameters", format!("{name}: expected {expected}, found {found}"))
    }
}

/// The outputs that are wanted, in that order.
pub(super) fn outputs(rows: Vec<value::Output>, wanted: &[(&'static str, bool)]) -> Result<Vec<(Output, bool)>> {
    let all = tensors(rows)?;
    let find = |&(name, binary): &(&'static str, bool)| match all.iter().find(|output| output.name == name) {
        Some(output) => Ok((output.clone(), binary)),
        None => Err(Error::internal(format!("the model gave no '{name}'"))),
    };
    wanted.iter().map(find).collect()
}

/// A batch's answers as tensors. All are of one kind and one width, as their task is.
fn tensors(rows: Vec<value::Output>) -> Result<Vec<Output>> {
    let count = rows.len();
    let (mut numbers, mut labels) = (Vec::new(), Vec::new());
    let mut name = "score";
    let mut flat = false;
    for row in rows {
        match row {
            value::Output::Embedding { embedding } => {
                name = "embedding";
                numbers.extend(embedding);
            }
            value::Output::Score { score } => {
                flat = true;
                numbers.push(score);
            }
            // Models that write are refused before: they have no tensors to give.
            value::Output::Likelihood { logprobs, .. } => {
                name = "logprobs";
                numbers.extend(logprobs);
            }
            value::Output::Labels { labels: ranked } => {
                for one in ranked {
                    labels.push(one.label);
                    numbers.push(one.score);
                }
            }
        }
    }
    if !numbers.len().is_multiple_of(count.max(1)) {
        return Err(Error::internal(format!("{} values for {count} inputs", numbers.len())));
    }
    let shape = if flat { vec![count] } else { vec![count, numbers.len() / count.max(1)] };
    let told =
        (!labels.is_empty()).then(|| Output { name: LABEL, shape: shape.clone(), values: Values::Bytes(labels) });
    Ok(told.into_iter().chain([Output { name, shape, values: Values::F32(numbers) }]).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::value::LabelScore;

    fn input(name: &str, elements: &[&str]) -> Input {
        let elements = elements.iter().map(|text| text.as_bytes().to_vec()).collect();
        Input { name: name.into(), elements, json: true }
    }

    fn parameters(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[track_caller]
    fn refused(task: Task, inputs: Vec<Input>, given: Value, says: &str) {
        let error = ask(task, inputs, &parameters(given)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn a_query_is_paired_with_every_text() {
        let asked = |queries: &[&str]| {
            let inputs = vec![input("text", &["a", "b"]), input("query", queries)];
            ask(Task::Rerank, inputs, &Map::new()).map(|ask| ask.inputs)
        };
        let pair = |a: &str, b: &str| RawInput::Pair(a.into(), b.into());
        assert_eq!(asked(&["q"]).unwrap(), [pair("q", "a"), pair("q", "b")]);
        assert_eq!(asked(&["q", "r"]).unwrap(), [pair("q", "a"), pair("r", "b")]);
        assert!(asked(&["q", "r", "s"]).unwrap_err().to_string().contains("give one, or as many"));
    }

    #[test]
    fn files_are_base64_in_json_and_themselves_in_bytes() {
        let asked = |json: bool, element: &str| {
            let input = Input { json, ..input("image", &[element]) };
            ask(Task::ImageClassify, vec![input], &Map::new()).map(|ask| ask.inputs)
        };
        assert_eq!(asked(true, "aGk=").unwrap(), [RawInput::Image(b"hi".to_vec())]);
        assert_eq!(asked(false, "aGk=").unwrap(), [RawInput::Image(b"aGk=".to_vec())]);
        assert!(asked(true, "*").unwrap_err().to_string().contains("base64"));
    }

    #[test]
    fn parameters_are_options_and_unknown_ones_are_ignored() {
        let given =
            json!({ "timeout": 1500, "dimensions": 8, "normalize": false, "truncate": false, "sequence_id": 7 });
        let asked = ask(Task::Embed, vec![input("text", &["a"])], &parameters(given)).unwrap();
        assert_eq!(asked.deadline, Some(Duration::from_micros(1500)));
        assert_eq!((asked.finish.dimensions, asked.finish.normalize), (Some(8), Some(false)));
        assert!(!asked.prepare.truncate);
        let text = || vec![input("text", &["a"])];
        refused(Task::Embed, text(), json!({ "timeout": -1 }), "microseconds");
        refused(Task::Embed, text(), json!({ "timeout": "soon" }), "a whole number");
        refused(Task::Embed, text(), json!({ "normalize": 1 }), "true or false");
    }

    #[test]
    fn inputs_that_are_missing_unknown_or_empty_are_told() {
        refused(Task::Embed, vec![], json!({}), "'text' is missing");
        refused(Task::Embed, vec![input("texts", &["a"])], json!({}), "found texts");
        refused(Task::Embed, vec![input("text", &["a"]), input("x", &[])], json!({}), "'x' is unknown");
        refused(Task::Embed, vec![input("text", &[])], json!({}), "are empty");
        let broken = Input { elements: vec![vec![b'a', 0xff]], ..input("text", &[]) };
        refused(Task::Classify, vec![broken], json!({}), "not UTF-8 (at byte 1)");
    }

    #[test]
    fn outputs_come_as_asked() {
        let labels = |a: f32| {
            let label = |label: &str, score| LabelScore { label: label.into(), score };
            value::Output::Labels { labels: vec![label("x", a), label("y", 1.0 - a)] }
        };
        let rows = || vec![labels(0.75), labels(0.5)];
        let asked = |asked: Option<&[Wanted]>, binary| wanted(Task::Classify, asked, binary);
        let all = outputs(rows(), &asked(None, true).unwrap()).unwrap();
        let told: Vec<_> = all.iter().map(|(output, binary)| (output.name, output.shape.clone(), *binary)).collect();
        assert_eq!(told, [("label", vec![2, 2], true), ("score", vec![2, 2], true)]);
        let want = |name: &str, binary| Wanted { name: name.into(), binary };
        let some = asked(Some(&[want("score", Some(false)), want("label", None)]), true).unwrap();
        assert_eq!(some, [("score", false), ("label", true)]);
        assert_eq!(outputs(rows(), &some).unwrap()[0].0.values, Values::F32(vec![0.75, 0.25, 0.5, 0.5]));
        assert!(asked(Some(&[want("logits", None)]), false).unwrap_err().to_string().contains("'logits' is unknown"));
        let rerank = wanted(Task::Rerank, None, false).unwrap();
        let scores = outputs(vec![value::Output::Score { score: 1.0 }], &rerank).unwrap();
        assert_eq!((scores[0].0.name, &scores[0].0.shape[..]), ("score", &[1usize][..]));
    }
}
