//! The native dialect: `POST /models/{ref}/infer`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Object;
use super::received::Received;
use super::reply::{Dialect, Failure, put_stamp};
use super::routes::{Named, Routes};
use super::{App, openai, request};
use crate::error::{Error, Result};
use crate::process::{FinishOptions, PrepareOptions, RawPrompt};
use crate::slot::{Ask, WriteAsk};
use crate::value::{RawInput, Task};

pub(super) fn routes() -> Routes {
    Routes::default().post("/models/{ref}/infer", infer)
}

/// What a model is asked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InferRequest {
    /// At least one.
    #[schema(value_type = Vec<super::openapi::Input>, min_items = 1)]
    inputs: Vec<RawInput>,
    #[serde(default)]
    parameters: Parameters,
}

/// How it is asked; each may be left out.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// Cut an input that is too long (the default), rather than refuse it.
    truncate: Option<bool>,
    /// Only so many numbers of an embedding.
    #[schema(minimum = 1)]
    dimensions: Option<i64>,
    /// Embeddings of length 1, or as the model gives them.
    normalize: Option<bool>,
    /// Logits instead of probabilities.
    raw_scores: Option<bool>,
    /// Of a model that writes: tokens to write at most, 16 when it is not said.
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    /// Of a model that writes, as the four after it: 0 always takes the likeliest token.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    top_k: Option<i64>,
    seed: Option<i64>,
    #[schema(schema_with = super::openapi::openai_stop)]
    stop: Option<openai::Stop>,
    /// Milliseconds.
    #[schema(schema_with = super::openapi::deadline)]
    deadline_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct InferResponse<'a, T> {
    model: &'a str,
    version: &'a str,
    outputs: Vec<T>,
}

/// What was written after an input.
#[derive(Debug, Serialize)]
struct Written {
    text: String,
    finish_reason: &'static str,
    tokens: usize,
}

async fn infer(State(app): State<Arc<App>>, Named(reference): Named, request: Request) -> Response {
    match answer(&app, &reference, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn answer(app: &App, reference: &str, request: Request) -> Result<Response, Failure> {
    let is_image = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("image/"));
    let received = Received::of(app, request).await.map_err(Failure::native)?;
    let target = app.registry.resolve(reference).map_err(Failure::native)?;
    if target.slot.task() == Some(Task::Generate) {
        request::fits(&target.slot, received.body.len()).map_err(Failure::native)?;
        let request = if is_image { Err(not_written()) } else { read(&received.body) };
        return write(app, (reference, received), request.map_err(Failure::native)?).await;
    }
    let ask = |body: &[u8]| if is_image { Ok(image(body.to_vec())) } else { parse(body) };
    let answer = request::answer(app, Dialect::Native, reference, |_| Ok(()), received, ask).await?;
    let stamp = answer.stamp;
    let body = InferResponse { model: &stamp.model, version: &stamp.version, outputs: answer.outputs };
    let mut response = Json(body).into_response();
    put_stamp(&mut response, &stamp);
    Ok(response)
}

/// Has the inputs continued.
async fn write(
    app: &App,
    asked: (&str, Received),
    InferRequest { inputs, parameters }: InferRequest,
) -> Result<Response, Failure> {
    let prompts = inputs.into_iter().map(prompt).collect::<Result<Vec<_>>>().map_err(Failure::native)?;
    if prompts.is_empty() {
        return Err(Failure::native(nothing()));
    }
    if parameters.truncate == Some(true) {
        let message = "a text that is to be continued is not cut";
        return Err(Failure::native(Error::bad_param("parameters.truncate", message)));
    }
    let Parameters { max_tokens, temperature, top_p, top_k, seed, stop, deadline_ms, .. } = parameters;
    let shape = openai::Shape { max_tokens, temperature, top_p, top_k, seed, stop, ..Default::default() };
    let mut answers = openai::begin(app, Dialect::Native, asked, |writer| {
        let rules = openai::Rules { default_most: Some(openai::DEFAULT_MOST), ..Default::default() };
        let ask = shape.ask(writer, prompts, rules)?;
        Ok(WriteAsk { deadline: deadline_ms.map(Duration::from_millis), ..ask })
    })
    .await
    .map_err(|failure| *failure)?;
    let begun = (Vec::new(), answers.stamp.clone());
    let (texts, stamp) = openai::collect(app, &mut answers, begun).await.map_err(|(error, stamp)| Failure {
        error,
        dialect: Dialect::Native,
        stamp: Some(stamp),
    })?;
    let outputs = texts.into_iter().map(|text| {
        let (finish_reason, tokens) = text.ended.unwrap_or_default();
        Written { text: text.text, finish_reason, tokens }
    });
    let body = InferResponse { model: &stamp.model, version: &stamp.version, outputs: outputs.collect() };
    let mut response = Json(body).into_response();
    put_stamp(&mut response, &stamp);
    Ok(response)
}

fn prompt(input: RawInput) -> Result<RawPrompt> {
    match input {
        RawInput::Text(text) => Ok(RawPrompt::Text(text)),
        RawInput::Tokens(ids) => Ok(RawPrompt::Tokens(ids)),
        RawInput::Pair(..) | RawInput::Image(_) => Err(not_written()),
    }
}

fn not_written() -> Error {
    Error::bad_param("inputs", "this model continues texts; an input is a string or a list of token ids")
}

fn nothing() -> Error {
    Error::bad_param("inputs", "inputs is empty; give at least one")
}

impl Parameters {
    /// That nothing is said of how to write.
    ///
    /// # Errors
    /// `BadRequest` with the first that is.
    fn of_no_writer(&self) -> Result<()> {
        let said = [
            ("max_tokens", self.max_tokens.is_some()),
            ("temperature", self.temperature.is_some()),
            ("top_p", self.top_p.is_some()),
            ("top_k", self.top_k.is_some()),
            ("seed", self.seed.is_some()),
            ("stop", self.stop.is_some()),
        ];
        match said.into_iter().find(|(_, is_said)| *is_said) {
            Some((name, _)) => {
                Err(Error::bad_param("parameters", format!("{name} is for models that write, and this one does not")))
            }
            None => Ok(()),
        }
    }
}

fn image(file: Vec<u8>) -> Ask {
    Ask {
        inputs: vec![RawInput::Image(file)],
        prepare: PrepareOptions::default(),
        finish: FinishOptions::default(),
        deadline: None,
    }
}

fn read(bytes: &[u8]) -> Result<InferRequest> {
    Object::with_ids(bytes)?.read()
}

fn parse(bytes: &[u8]) -> Result<Ask> {
    let InferRequest { inputs, parameters } = read(bytes)?;
    if inputs.is_empty() {
        return Err(nothing());
    }
    parameters.of_no_writer()?;
    Ok(Ask {
        inputs,
        prepare: PrepareOptions { truncate: parameters.truncate.unwrap_or(true) },
        finish: FinishOptions {
            dimensions: parameters.dimensions,
            raw_scores: parameters.raw_scores.unwrap_or(false),
            normalize: parameters.normalize,
        },
        deadline: parameters.deadline_ms.map(Duration::from_millis),
    })
}
