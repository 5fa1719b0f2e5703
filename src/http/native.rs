//! The native dialect: `POST /models/{ref}/infer`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::reply::{Dialect, Failure, put_stamp};
use super::routes::{Named, Routes};
use super::{App, body, request};
use crate::error::{Error, Result};
use crate::process::{FinishOptions, PrepareOptions};
use crate::slot::Ask;
use crate::value::{Output, RawInput};

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
    /// Milliseconds.
    #[schema(schema_with = super::openapi::deadline)]
    deadline_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct InferResponse<'a> {
    model: &'a str,
    version: &'a str,
    outputs: Vec<Output>,
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
    let bytes = body::read(request, app.limits.bounds(app.limits.max_body_bytes)).await.map_err(Failure::native)?;
    let size = bytes.len();
    let ask = move || if is_image { Ok(image(bytes.to_vec())) } else { parse(&bytes) };
    let answer = request::answer(app, Dialect::Native, reference, |_| Ok(()), size, ask).await?;
    let stamp = answer.stamp;
    let body = InferResponse { model: &stamp.model, version: &stamp.version, outputs: answer.outputs };
    let mut response = Json(body).into_response();
    put_stamp(&mut response, &stamp);
    Ok(response)
}

fn image(file: Vec<u8>) -> Ask {
    Ask {
        inputs: vec![RawInput::Image(file)],
        prepare: PrepareOptions::default(),
        finish: FinishOptions::default(),
        deadline: None,
    }
}

fn parse(bytes: &[u8]) -> Result<Ask> {
    let InferRequest { inputs, parameters } = body::json(bytes)?;
    if inputs.is_empty() {
        return Err(Error::bad_param("inputs", "inputs is empty; give at least one"));
    }
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
