//! What there is and was: models, versions, rollouts and memory, as they are at the moment. It changes nothing.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::error::Error;
use crate::http::App;
use crate::http::reply::Failure;
use crate::http::routes::{Asked, Named};

pub(super) async fn models(State(app): State<Arc<App>>) -> Response {
    Json(json!({ "models": app.supervisor.models().await })).into_response()
}

pub(super) async fn model(State(app): State<Arc<App>>, Named(reference): Named) -> Response {
    match app.supervisor.resolve(&reference).await {
        Ok(target) => match app.supervisor.model(target.slot.name()).await {
            Some(report) => Json(report).into_response(),
            None => Failure::native(Error::Unknown { reference, known: Vec::new() }).into_response(),
        },
        Err(error) => Failure::native(error).into_response(),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Against {
    /// The version that is compared with; the live one where it is not said.
    against: Option<String>,
}

/// Changes nothing, but reads files and takes a thread: for operators.
pub(super) async fn diff(
    State(app): State<Arc<App>>,
    Named(reference): Named,
    Asked(other): Asked<Against>,
) -> Response {
    match app.supervisor.diff(&reference, other.against.as_deref()).await {
        Ok(comparison) => Json(comparison).into_response(),
        Err(error) => Failure::native(error).into_response(),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    model: Option<String>,
    limit: Option<u32>,
}

pub(super) async fn rollouts(State(app): State<Arc<App>>, Asked(listing): Asked<Listing>) -> Response {
    let work = async {
        let limit = listing.limit.map_or(50, |limit| limit.min(1000) as usize);
        let rollouts = app.supervisor.rollouts(listing.model.clone(), limit).await?;
        let kept = app.supervisor.rollouts_kept(listing.model.clone()).await?;
        let figures = app.supervisor.figures(listing.model).await?;
        Ok(Json(json!({ "rollouts": rollouts, "kept": kept, "figures": figures })).into_response())
    };
    work.await.unwrap_or_else(|error| Failure::native(error).into_response())
}

pub(super) async fn rollout(State(app): State<Arc<App>>, Named(id): Named) -> Response {
    match app.supervisor.rollout(&id).await {
        Ok(view) => Json(view).into_response(),
        Err(error) => Failure::native(error).into_response(),
    }
}

pub(super) async fn shadow(State(app): State<Arc<App>>, Named(id): Named) -> Response {
    match app.supervisor.shadow(&id).await {
        Ok(seen) => Json(seen).into_response(),
        Err(error) => Failure::native(error).into_response(),
    }
}

pub(super) async fn memory(State(app): State<Arc<App>>) -> Response {
    match app.supervisor.memory().await {
        Ok(report) => Json(report).into_response(),
        Err(error) => Failure::native(error).into_response(),
    }
}
