//! Experiments: beginning, watching and ending one, and what clients say of the answers they got.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::reply::{Dialect, Failure};
use super::routes::{Named, Routes};
use super::{App, body};
use crate::error::{Error, Result};
use crate::rollout::{Answer, ExperimentPlan, Options};

const MOST_BYTES: usize = 64 << 10;
/// Wide enough for stars and percentages. Sums of squares stay exact enough in f64 to take a score out again.
const SCORES: std::ops::RangeInclusive<f64> = -1e3..=1e3;
/// Of a name, in bytes.
const LONGEST_NAME: usize = 64;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/admin/experiments", running)
        .post("/admin/experiments", start)
        .delete("/admin/experiments/{name}", stop)
}

/// For clients of the models.
pub(super) fn asking() -> Routes {
    Routes::default().post("/v1/feedback", feedback)
}

/// An experiment as it is begun.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExperimentOrder {
    /// What it is called: letters, digits, `-`, `_` and `.`.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    name: String,
    /// Needed where several models are served.
    model: Option<String>,
    /// Percent of requests for the live version and for one other: 100 together.
    weights: BTreeMap<String, f64>,
    /// By what clients stay with their version: `request`, `api-key` or `header:<name>`.
    #[schema(pattern = "^(request|api-key|header:.+)$")]
    sticky: Option<String>,
    /// For the record.
    reason: Option<String>,
    actor: Option<String>,
}

/// What a client says of an answer.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Feedback {
    /// The answer's `x-request-id`.
    request_id: String,
    /// More is better. A later one of the same answer replaces it.
    #[schema(minimum = -1000, maximum = 1000)]
    score: f64,
}

impl ExperimentOrder {
    fn plan(self) -> Result<(Option<String>, ExperimentPlan)> {
        let ExperimentOrder { name, model, weights, sticky, reason, actor } = self;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
            let message = format!("name: {name:?}, expected up to {LONGEST_NAME} letters, digits, '-', '_' and '.'");
            return Err(Error::bad_param("name", message));
        }
        let wrong = |reason| Error::bad_param("sticky", format!("sticky: {reason}"));
        let sticky = sticky.as_deref().map(str::parse).transpose().map_err(wrong)?;
        let options = Options { sticky, reason, actor, ..Options::default() };
        Ok((model, ExperimentPlan { name, weights, options }))
    }
}

async fn start(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async {
        let bytes = body::read(request, app.limits.bounds(MOST_BYTES)).await?;
        let (model, plan) = body::json::<ExperimentOrder>(&bytes)?.plan()?;
        told(app.supervisor.start_experiment(model.as_deref(), plan).await?)
    };
    work.await.unwrap_or_else(|error| Failure::native(error).into_response())
}

async fn stop(State(app): State<Arc<App>>, Named(name): Named) -> Response {
    match app.supervisor.stop_experiment(&name).await.and_then(told) {
        Ok(response) => response,
        Err(error) => Failure::native(error).into_response(),
    }
}

/// The rollout of the version that is compared.
fn told(answer: Answer) -> Result<Response> {
    match answer {
        Answer::Rollout(handle) => Ok(Json(handle.now().as_ref()).into_response()),
        Answer::Already { version, .. } => Err(Error::conflict(format!("'{version}' is live, and nothing beside it"))),
    }
}

async fn running(State(app): State<Arc<App>>) -> Response {
    Json(json!({ "experiments": app.supervisor.experiments().await })).into_response()
}

async fn feedback(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async {
        let bytes = body::read(request, app.limits.bounds(MOST_BYTES)).await?;
        let Feedback { request_id, score } = body::json(&bytes)?;
        if !SCORES.contains(&score) {
            return Err(Error::bad_param("score", format!("score: {score}, expected a number from -1000 to 1000")));
        }
        match app.registry.feedback(&request_id, score) {
            Some((model, _)) => Ok(Json(json!({ "model": model, "counted": true })).into_response()),
            None => Err(Error::NotFound { what: "answer of a running experiment with request id", id: request_id }),
        }
    };
    work.await.unwrap_or_else(|error| Failure::new(Dialect::OpenAi, error).into_response())
}
