//! `/v1/embeddings`.
//!
//! Source: OpenAI API reference, "Embeddings"; the official clients ask for base64 by default.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{does, fits_its_model};
use crate::error::{Error, Result};
use crate::http::body::Object;
use crate::http::received::Received;
use crate::http::reply::{Dialect, Failure, put_stamp};
use crate::http::{App, request};
use crate::process::{FinishOptions, PrepareOptions};
use crate::slot::Ask;
use crate::value::{Output, RawInput, Task, Texts};

/// Inputs of one request, as OpenAI allows.
pub(in crate::http) const MOST_INPUTS: usize = 2048;

/// OpenAI's request for embeddings; other fields of theirs are taken and have no effect.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct EmbeddingsRequest {
    /// A model, or `model@version`.
    model: String,
    #[schema(schema_with = crate::http::openapi::openai_input)]
    input: Texts,
    #[schema(inline)]
    encoding_format: Option<Encoding>,
    /// Only so many numbers of each embedding.
    #[schema(minimum = 1)]
    dimensions: Option<i64>,
    /// Not OpenAI's, but text-embeddings-inference's: an input that is too long is cut (the default), or with `false` refused.
    truncate: Option<bool>,
    /// vLLM's. Only -1, which is the default: an input that is too long is cut to what the version takes.
    #[schema(minimum = -1, maximum = -1)]
    truncate_prompt_tokens: Option<i64>,
}

/// Numbers, or base64 of little-endian f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    Base64,
}

#[derive(Debug, Serialize)]
struct EmbeddingsResponse<'a> {
    object: &'static str,
    data: Vec<Item>,
    model: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Values,
}

/// Written straight from f32, and so in as few digits as tell it apart from its neighbours.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Values {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

pub(super) async fn answer(State(app): State<Arc<App>>, request: Request) -> Response {
    match embed(&app, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn embed(app: &App, request: Request) -> Result<Response, Failure> {
    let plain = |error| Failure::new(Dialect::OpenAi, error);
    let received = Received::of(app, request).await.map_err(plain)?;
    let parsed = EmbeddingsRequest::of(app, &received.body).map_err(plain)?;
    let encoding = parsed.encoding_format.unwrap_or(Encoding::Float);
    let (reference, dimensions) = (parsed.model, parsed.dimensions);
    let ask = move |_: &[u8]| {
        Ok(Ask {
            inputs: inputs(parsed.input)?,
            prepare: PrepareOptions { truncate: parsed.truncate.unwrap_or(true) },
            // A shortened embedding is made a unit vector again, as OpenAI's are.
            finish: FinishOptions { dimensions, normalize: dimensions.map(|_| true), ..FinishOptions::default() },
            deadline: None,
        })
    };
    let answer = request::answer(app, Dialect::OpenAi, &reference, does(Task::Embed, "embed"), received, ask).await?;
    let data = answer.outputs.into_iter().enumerate().map(|(at, output)| Item::of(at, output, encoding)).collect();
    let stamp = answer.stamp;
    let usage = Usage { prompt_tokens: answer.tokens, total_tokens: answer.tokens };
    let body = EmbeddingsResponse { object: "list", data, model: &stamp.model, usage };
    let mut response = Json(body).into_response();
    put_stamp(&mut response, &stamp);
    Ok(response)
}

impl EmbeddingsRequest {
    fn of(app: &App, body: &[u8]) -> Result<EmbeddingsRequest> {
        let object = Object::with_ids(body)?;
        fits_its_model(app, &object)?;
        let request: EmbeddingsRequest = object.read()?;
        match request.truncate_prompt_tokens {
            None | Some(-1) => Ok(request),
            Some(tokens) => {
                let message =
                    format!("truncate_prompt_tokens is {tokens}; only -1, what the version takes, is supported");
                Err(Error::bad_param("truncate_prompt_tokens", message))
            }
        }
    }
}

fn inputs(input: Texts) -> Result<Vec<RawInput>> {
    let inputs: Vec<RawInput> = match input {
        Texts::One(text) => vec![RawInput::Text(text)],
        Texts::Many(texts) => texts.into_iter().map(RawInput::Text).collect(),
        Texts::Ids(ids) => vec![RawInput::Tokens(ids)],
        Texts::ManyIds(lists) => lists.into_iter().map(RawInput::Tokens).collect(),
    };
    if inputs.is_empty() || inputs.len() > MOST_INPUTS {
        let message = format!("input holds {} items; 1 to {MOST_INPUTS} are possible", inputs.len());
        return Err(Error::bad_param("input", message));
    }
    let empty = |input: &RawInput| match input {
        RawInput::Text(text) => text.is_empty(),
        RawInput::Tokens(ids) => ids.is_empty(),
        RawInput::Pair(..) | RawInput::Image(_) => false,
    };
    if let Some(at) = inputs.iter().position(empty) {
        return Err(Error::bad_param("input", format!("input {at} is empty")));
    }
    Ok(inputs)
}

impl Item {
    fn of(index: usize, output: Output, encoding: Encoding) -> Item {
        let embedding = match output {
            Output::Embedding { embedding } => embedding,
            // `does` has seen that the task is to embed, and a task has one kind of output.
            _ => Vec::new(),
        };
        let embedding = match encoding {
            Encoding::Float => Values::Float(embedding),
            // Little-endian f32, as openai-python and openai-node decode it.
            Encoding::Base64 => {
                let bytes: Vec<u8> = embedding.iter().flat_map(|value| value.to_le_bytes()).collect();
                Values::Base64(STANDARD.encode(bytes))
            }
        };
        Item { object: "embedding", index, embedding }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Vec<RawInput>, String> {
        let request: EmbeddingsRequest = crate::http::body::json(json.as_bytes()).map_err(|e| e.to_string())?;
        inputs(request.input).map_err(|e| e.to_string())
    }

    #[test]
    fn every_form_of_input_is_taken() {
        assert_eq!(parse(r#"{"model":"m","input":"a"}"#).unwrap(), [RawInput::Text("a".into())]);
        assert_eq!(parse(r#"{"model":"m","input":["a","b"]}"#).unwrap().len(), 2);
        assert_eq!(parse(r#"{"model":"m","input":[1,2]}"#).unwrap(), [RawInput::Tokens(vec![1, 2])]);
        assert_eq!(parse(r#"{"model":"m","input":[[1],[2,3]]}"#).unwrap().len(), 2);
    }

    #[test]
    fn empty_and_foreign_inputs_are_refused() {
        assert!(parse(r#"{"model":"m","input":""}"#).unwrap_err().contains("empty"));
        assert!(parse(r#"{"model":"m","input":[]}"#).unwrap_err().contains("1 to 2048"));
        assert!(parse(r#"{"model":"m","input":["a",""]}"#).unwrap_err().contains("input 1"));
        assert!(
            parse(r#"{"model":"m","input":{"a":1}}"#)
                .unwrap_err()
                .contains("input: invalid type: map, expected a string")
        );
    }

    #[test]
    fn base64_is_little_endian_f32() {
        let item = Item::of(0, Output::Embedding { embedding: vec![1.0] }, Encoding::Base64);
        assert_eq!(serde_json::to_value(item).unwrap()["embedding"], "AACAPw==");
    }

    #[test]
    fn numbers_have_the_digits_of_an_f32() {
        let item = Item::of(0, Output::Embedding { embedding: vec![0.1, -2.5] }, Encoding::Float);
        let told = serde_json::to_string(&item).unwrap();
        assert_eq!(told, r#"{"object":"embedding","index":0,"embedding":[0.1,-2.5]}"#);
    }
}
