//! Health, metrics, and the description of the interface: what operators' tools read.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::App;
use super::routes::Routes;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/health", live)
        .get("/ready", ready)
        .get("/v2/health/live", live)
        .get("/v2/health/ready", ready)
        .get("/metrics", metrics)
}

async fn live() -> Response {
    Json(json!({ "live": true })).into_response()
}

/// 200 while every model that has a version serves; loading a candidate changes nothing.
async fn ready(State(app): State<Arc<App>>) -> Response {
    let waiting: Vec<_> = app
        .registry
        .slots()
        .values()
        .filter(|slot| !slot.is_ready())
        .filter_map(|slot| Some(json!({ "model": slot.name(), "reason": slot.reason()? })))
        .collect();
    match app.is_ready() {
        true => Json(json!({ "ready": true })).into_response(),
        false => {
            let body = Json(json!({ "ready": false, "not_serving": waiting }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    match app.metrics.text(&app.supervisor).await {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => super::reply::Failure::native(error).into_response(),
    }
}
