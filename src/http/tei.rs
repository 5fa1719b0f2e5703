//! text-embeddings-inference's dialect: `/embed`, `/predict`, `/rerank`, `/info`, and `/`, which does what its model does.
//!
//! Source: the interface of Hugging Face's text-embeddings-inference, which `huggingface_hub.InferenceClient` speaks.
//! No request names a model: `[tei] model` answers what its task answers, and the only model of a task the rest.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::body::Object;
use super::received::Received;
use super::reply::{self, Dialect, Failure, put_stamp};
use super::routes::Routes;
use super::{App, body, request};
use crate::error::{Error, Result};
use crate::process::{FinishOptions, PrepareOptions};
use crate::slot::{Answer, Ask, Slot};
use crate::value::{LabelScore, Output, RawInput, Task, Texts};

/// What this dialect can ask for.
const TASKS: [Task; 3] = [Task::Embed, Task::Classify, Task::Rerank];

pub(super) fn routes() -> Routes {
    Routes::default()
        .post("/", root)
        .post("/embed", embed)
        .post("/predict", predict)
        .post("/rerank", rerank)
        .get("/info", info)
        .post("/info", info)
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct EmbedRequest {
    #[schema(schema_with = super::openapi::tei_embed_inputs)]
    inputs: Texts,
    /// Cut an input that is too long, rather than refuse it (the default).
    truncate: Option<bool>,
    /// Only `right`.
    #[schema(pattern = "^[Rr][Ii][Gg][Hh][Tt]$")]
    truncation_direction: Option<String>,
    /// Embeddings of length 1 (the default), or as the model gives them.
    normalize: Option<bool>,
    /// Only so many numbers of each embedding.
    #[schema(minimum = 1)]
    dimensions: Option<i64>,
    /// Not supported yet, and refused.
    #[schema(schema_with = super::openapi::nothing)]
    prompt_name: Option<String>,
    /// Only `float`.
    #[schema(pattern = "^float$")]
    encoding_format: Option<String>,
}

/// What becomes of inputs that are too long: `truncate`, `truncation_direction`.
struct Cut(Option<bool>, Option<String>);

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct PredictRequest {
    #[schema(schema_with = super::openapi::tei_predict_inputs)]
    inputs: PredictInputs,
    /// Cut an input that is too long, rather than refuse it (the default).
    truncate: Option<bool>,
    /// Only `right`.
    #[schema(pattern = "^[Rr][Ii][Gg][Hh][Tt]$")]
    truncation_direction: Option<String>,
    /// Logits instead of probabilities.
    raw_scores: Option<bool>,
    /// What Hugging Face's own service takes. Refused unless it is empty.
    #[schema(schema_with = super::openapi::nothings)]
    parameters: Option<Map<String, Value>>,
}

/// A text, a list of one text or of the two of a pair, or a batch of such lists.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a pair of strings, or a batch: a list of lists of one or two strings"
)]
enum PredictInputs {
    One(String),
    Sequence(Vec<String>),
    Batch(Vec<Vec<String>>),
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct RerankRequest {
    query: String,
    #[schema(min_items = 1)]
    texts: Vec<String>,
    /// Cut an input that is too long, rather than refuse it (the default).
    truncate: Option<bool>,
    /// Only `right`.
    #[schema(pattern = "^[Rr][Ii][Gg][Hh][Tt]$")]
    truncation_direction: Option<String>,
    /// Logits instead of scores between 0 and 1.
    raw_scores: Option<bool>,
    /// Whether each rank repeats its text; false where it is not said.
    return_text: Option<bool>,
}

/// Why there is no answer.
enum Refusal {
    Failed(Box<Failure>),
    /// Nothing was asked, for which the dialect has a word of its own.
    Empty(String),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Refusal::Failed(Box::new(failure))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Failed(Box::new(Failure::new(Dialect::Tei, error)))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Refusal::Failed(failure) => failure.into_response(),
            Refusal::Empty(error) => {
                (StatusCode::BAD_REQUEST, Json(json!({ "error": error, "error_type": "Empty" }))).into_response()
            }
        }
    }
}

async fn root(State(app): State<Arc<App>>, request: Request) -> Response {
    respond(&app, &TASKS, request).await
}

async fn embed(State(app): State<Arc<App>>, request: Request) -> Response {
    respond(&app, &[Task::Embed], request).await
}

async fn predict(State(app): State<Arc<App>>, request: Request) -> Response {
    respond(&app, &[Task::Classify], request).await
}

async fn rerank(State(app): State<Arc<App>>, request: Request) -> Response {
    respond(&app, &[Task::Rerank], request).await
}

async fn respond(app: &App, tasks: &[Task], request: Request) -> Response {
    answer(app, tasks, request).await.unwrap_or_else(Refusal::into_response)
}

async fn answer(app: &App, tasks: &[Task], request: Request) -> Result<Response, Refusal> {
    let received = Received::of(app, request).await?;
    let (slot, task) = choose(app, tasks)?;
    request::fits(&slot, received.body.len())?;
    match task {
        Task::Classify => {
            let parsed: PredictRequest = body::json(&received.body)?;
            let single = !matches!(parsed.inputs, PredictInputs::Batch(_));
            let finish = FinishOptions { raw_scores: parsed.raw_scores.unwrap_or(false), ..FinishOptions::default() };
            if parsed.parameters.is_some_and(|given| given.values().any(|value| !value.is_null())) {
                return Err(Error::bad_param("parameters", "parameters is not supported; use raw_scores").into());
            }
            let answer = ask(
                app,
                &slot,
                received,
                sequences(parsed.inputs)?,
                &Cut(parsed.truncate, parsed.truncation_direction),
                finish,
            )
            .await?;
            Ok(stamped(predictions(&answer, single), &answer))
        }
        Task::Rerank => {
            let parsed: RerankRequest = body::json(&received.body)?;
            let finish = FinishOptions { raw_scores: parsed.raw_scores.unwrap_or(false), ..FinishOptions::default() };
            let pairs = pairs(&parsed.query, &parsed.texts)?;
            let answer =
                ask(app, &slot, received, pairs, &Cut(parsed.truncate, parsed.truncation_direction), finish).await?;
            let texts = parsed.return_text.unwrap_or(false).then_some(parsed.texts);
            Ok(stamped(ranks(&answer, texts.as_deref()), &answer))
        }
        // `choose` gives no other task.
        _ => {
            let parsed: EmbedRequest = Object::with_ids(&received.body)?.read()?;
            if parsed.prompt_name.is_some() {
                return Err(
                    Error::bad_param("prompt_name", "prompt_name is not supported; write it into inputs").into()
                );
            }
            if parsed.encoding_format.as_deref().is_some_and(|format| format != "float") {
                return Err(Error::bad_param("encoding_format", "only the encoding_format 'float' is supported").into());
            }
            let normalize = Some(parsed.normalize.unwrap_or(true));
            let finish = FinishOptions { dimensions: parsed.dimensions, normalize, ..FinishOptions::default() };
            let answer = ask(
                app,
                &slot,
                received,
                texts(parsed.inputs)?,
                &Cut(parsed.truncate, parsed.truncation_direction),
                finish,
            )
            .await?;
            Ok(stamped(embeddings(&answer), &answer))
        }
    }
}

async fn ask(
    app: &App,
    slot: &Slot,
    received: Received,
    inputs: Vec<RawInput>,
    cut: &Cut,
    finish: FinishOptions,
) -> Result<Answer, Refusal> {
    if cut.1.as_deref().is_some_and(|direction| !direction.eq_ignore_ascii_case("right")) {
        let message = "only the truncation_direction 'right' is supported";
        return Err(Error::bad_param("truncation_direction", message).into());
    }
    let prepare = PrepareOptions { truncate: cut.0.unwrap_or(false) };
    let ask = |_: &[u8]| Ok(Ask { inputs, prepare, finish, deadline: None });
    Ok(request::answer(app, Dialect::Tei, slot.name(), |_| Ok(()), received, ask).await?)
}

/// The model that answers for one of these tasks, and the task.
///
/// # Errors
/// `Unknown` for a configured model that is not here; `NotFound` when no model has such a task; `Ambiguous` with the
/// candidates when several have.
fn choose(app: &App, tasks: &[Task]) -> Result<(Arc<Slot>, Task)> {
    let slots = app.registry.slots();
    let fit = |slot: &Slot| slot.task().filter(|task| tasks.contains(task));
    if let Some(name) = &app.tei_model {
        let known = || Error::Unknown { reference: name.clone(), known: slots.keys().cloned().collect() };
        let slot = slots.get(name).ok_or_else(known)?;
        if let Some(task) = fit(slot) {
            return Ok((Arc::clone(slot), task));
        }
    }
    let fitting: Vec<(Arc<Slot>, Task)> =
        slots.values().filter_map(|slot| Some((Arc::clone(slot), fit(slot)?))).collect();
    let wanted = tasks.iter().map(|task| task.name()).collect::<Vec<_>>().join(" or ");
    match <[_; 1]>::try_from(fitting) {
        Ok([one]) => Ok(one),
        Err(none) if none.is_empty() => {
            let told = |slot: &Arc<Slot>| format!("{} ({})", slot.name(), slot.task().map_or("?", Task::name));
            Err(Error::NoModelFor { task: wanted, known: slots.values().map(told).collect() })
        }
        Err(several) => {
            let candidates = several.iter().map(|(slot, _)| slot.name().to_owned()).collect();
            Err(Error::Ambiguous { reference: format!("[tei] model for {wanted}"), candidates })
        }
    }
}

fn empty(what: &str) -> Refusal {
    Refusal::Empty(format!("`{what}` cannot be empty"))
}

fn texts(inputs: Texts) -> Result<Vec<RawInput>, Refusal> {
    let inputs: Vec<RawInput> = match inputs {
        Texts::One(text) => vec![RawInput::Text(text)],
        Texts::Many(texts) => texts.into_iter().map(RawInput::Text).collect(),
        Texts::Ids(ids) => vec![RawInput::Tokens(ids)],
        Texts::ManyIds(lists) => lists.into_iter().map(RawInput::Tokens).collect(),
    };
    filled(inputs)
}

fn sequences(inputs: PredictInputs) -> Result<Vec<RawInput>, Refusal> {
    let lists = match inputs {
        PredictInputs::One(text) => vec![vec![text]],
        PredictInputs::Sequence(texts) => vec![texts],
        PredictInputs::Batch(lists) => lists,
    };
    filled(lists.into_iter().map(sequence).collect::<Result<_, Refusal>>()?)
}

fn sequence(texts: Vec<String>) -> Result<RawInput, Refusal> {
    let mut texts = texts.into_iter();
    match (texts.next(), texts.next(), texts.next()) {
        (None, ..) => Err(empty("inputs")),
        (Some(text), None, _) => Ok(RawInput::Text(text)),
        (Some(a), Some(b), None) => Ok(RawInput::Pair(a.into(), b)),
        _ => {
            Err(Error::bad_param("inputs", "a sequence is one text or a pair; a batch is a list of such lists").into())
        }
    }
}

fn pairs(query: &str, texts: &[String]) -> Result<Vec<RawInput>, Refusal> {
    if texts.is_empty() {
        return Err(empty("texts"));
    }
    let query: Arc<str> = query.into();
    Ok(texts.iter().map(|text| RawInput::Pair(Arc::clone(&query), text.clone())).collect())
}

fn filled(inputs: Vec<RawInput>) -> Result<Vec<RawInput>, Refusal> {
    let is_empty = |input: &RawInput| match input {
        RawInput::Text(text) => text.is_empty(),
        RawInput::Tokens(ids) => ids.is_empty(),
        RawInput::Pair(..) | RawInput::Image(_) => false,
    };
    if inputs.is_empty() || inputs.iter().any(is_empty) { Err(empty("inputs")) } else { Ok(inputs) }
}

fn embeddings(answer: &Answer) -> Vec<&[f32]> {
    let rows = answer.outputs.iter().filter_map(|output| match output {
        Output::Embedding { embedding } => Some(embedding.as_slice()),
        // A task has one kind of output, here and below.
        _ => None,
    });
    rows.collect()
}

/// The labels of one sequence, or of each of several.
#[derive(Serialize)]
#[serde(untagged)]
enum Predictions<'a> {
    One(Option<&'a [LabelScore]>),
    Many(Vec<&'a [LabelScore]>),
}

/// A text's score, with the text where that was asked for.
#[derive(Serialize)]
struct Rank<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    score: f32,
}

fn predictions(answer: &Answer, single: bool) -> Predictions<'_> {
    let rows = answer.outputs.iter().filter_map(|output| match output {
        Output::Labels { labels } => Some(labels.as_slice()),
        _ => None,
    });
    let mut rows: Vec<&[LabelScore]> = rows.collect();
    if single { Predictions::One(rows.pop()) } else { Predictions::Many(rows) }
}

/// The highest score first; equal scores in the order of the texts.
fn ranks<'a>(answer: &Answer, texts: Option<&'a [String]>) -> Vec<Rank<'a>> {
    let scores = answer.outputs.iter().enumerate().filter_map(|(index, output)| match output {
        Output::Score { score } => Some((index, *score)),
        _ => None,
    });
    let mut scores: Vec<(usize, f32)> = scores.collect();
    scores.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let rank = |(index, score): (usize, f32)| Rank {
        index,
        text: texts.and_then(|texts| texts.get(index)).map(String::as_str),
        score,
    };
    scores.into_iter().map(rank).collect()
}

fn stamped(body: impl Serialize, answer: &Answer) -> Response {
    let mut response = Json(body).into_response();
    put_stamp(&mut response, &answer.stamp);
    response
}

async fn info(State(app): State<Arc<App>>) -> Response {
    tell(&app).unwrap_or_else(|error| Failure::new(Dialect::Tei, error).into_response())
}

/// What is known of the model that `/` asks; figures of TEI's own scheduler have no counterpart and are left out.
fn tell(app: &App) -> Result<Response> {
    let (slot, task) = choose(app, &TASKS)?;
    let admission = slot.admit(None, None)?;
    let generation = admission.generation();
    let kind = match task {
        Task::Classify => "classifier",
        Task::Rerank => "reranker",
        _ => "embedding",
    };
    let body = json!({
        "model_id": slot.name(),
        "served_model_name": slot.name(),
        "model_sha": generation.digest,
        "model_type": { kind: {} },
        "max_input_length": generation.processor.max_tokens(),
        "max_client_batch_size": generation.limits.max_inputs.min(generation.limits.queue),
        "auto_truncate": false,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let mut response = Json(body).into_response();
    reply::put_stamp(&mut response, &generation.stamp);
    Ok(response)
}
